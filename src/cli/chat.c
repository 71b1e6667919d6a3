/* chat.c - `baton chat` and `baton complete`: a model folder or a server, from the terminal. */
#include "base/file.h"
#include "base/json.h"
#include "cli/talk.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define EXIT_INTERRUPTED 130 /* as shells tell it */
/* Of standard input: what is read whole, or one line of a talk. Far beyond any model's context. */
#define STDIN_MAX (16u << 20)

struct chat_options {
        const char *system, *model, *api_key;
        double temperature, top_p;
        int64_t max_tokens, seed;
        bool thinking, stats, ignore_eos;
        struct option_list serve;
};

#define COMMON_OPTIONS                                                                                                 \
        {"model", 0, OPTION_STRING, offsetof(struct chat_options, model), "NAME",                                      \
            "the served model's name (the server's own)"},                                                             \
            {"api-key", 0, OPTION_STRING, offsetof(struct chat_options, api_key), "KEY",                               \
                "sent as Authorization: Bearer"},                                                                      \
            {"temperature", 't', OPTION_DOUBLE, offsetof(struct chat_options, temperature), "T",                       \
                "0: always the likeliest token (the server's default)"},                                               \
            {"top-p", 0, OPTION_DOUBLE, offsetof(struct chat_options, top_p), "P",                                     \
                "nucleus sampling (the server's default)"},                                                            \
            {"max-tokens", 'n', OPTION_INT, offsetof(struct chat_options, max_tokens), "N",                            \
                "end after so many tokens", .min = 1, .max = 1 << 24},                                                 \
            {"seed", 0, OPTION_INT, offsetof(struct chat_options, seed), "N", "makes sampling reproducible"},          \
            {"ignore-eos", 0, OPTION_FLAG, offsetof(struct chat_options, ignore_eos), NULL,                            \
                "go on where the model would end, up to --max-tokens (vLLM's ignore_eos)"},                            \
            {"stats", 0, OPTION_FLAG, offsetof(struct chat_options, stats), NULL,                                      \
                "after each answer a line of figures on stderr: who served it, tokens, TTFT, tokens/s"},               \
        {                                                                                                              \
                "serve", 0, OPTION_LIST, offsetof(struct chat_options, serve), "ARG",                                  \
                    "for a folder: an argument of `baton serve`, written --serve=--dtype --serve=bfloat16"             \
        }

static const struct option chat_table[] = {
    {"system", 0, OPTION_STRING, offsetof(struct chat_options, system), "TEXT", "a system message"},
    {"thinking", 0, OPTION_FLAG, offsetof(struct chat_options, thinking), NULL,
        "ask for reasoning (chat_template_kwargs.thinking)"},
    COMMON_OPTIONS,
};
static const struct option complete_table[] = {COMMON_OPTIONS};

static const struct option_set chat_set = {"baton chat MODEL-FOLDER|URL [QUESTION] [options]",
    "Asks a question and streams the answer; without a question it goes on turn by turn until end of input. Ctrl-C "
    "ends the answer, and the talk when none is on its way.",
    chat_table, sizeof(chat_table) / sizeof(*chat_table), 2};
static const struct option_set complete_set = {"baton complete MODEL-FOLDER|URL [TEXT] [options]",
    "Continues a text (or what stands on standard input) and streams what follows.", complete_table,
    sizeof(complete_table) / sizeof(*complete_table), 2};

static const struct chat_options defaults = {.temperature = -1, .top_p = -1, .seed = INT64_MIN};

static void add_sampling(struct json_writer *w, const struct chat_options *o) {
        if (o->model) {
                json_key(w, "model");
                json_str(w, o->model);
        }
        if (o->temperature >= 0) {
                json_key(w, "temperature");
                json_double(w, o->temperature);
        }
        if (o->top_p >= 0) {
                json_key(w, "top_p");
                json_double(w, o->top_p);
        }
        if (o->max_tokens) {
                json_key(w, "max_tokens");
                json_i64(w, o->max_tokens);
        }
        if (o->seed != INT64_MIN) {
                json_key(w, "seed");
                json_i64(w, o->seed);
        }
        if (o->ignore_eos) {
                json_key(w, "ignore_eos");
                json_bool(w, true);
        }
        json_key(w, "stream");
        json_bool(w, true);
        json_key(w, "stream_options");
        json_raw(w, SLICE_LIT("{\"include_usage\":true}"));
}

struct screen {
        bool color, in_reasoning;
};

static void show(void *context, enum talk_part part, struct slice text) {
        struct screen *s = context;

        if ((part == TALK_REASONING) != s->in_reasoning) {
                s->in_reasoning = part == TALK_REASONING;
                fputs(s->color ? (s->in_reasoning ? "\033[2m" : "\033[0m\n") : s->in_reasoning ? "" : "\n", stdout);
        }
        fwrite(text.ptr, 1, text.len, stdout);
        fflush(stdout);
}

static void show_bytes(uint64_t bytes) {
        if (bytes < 10240)
                fprintf(stderr, "%.1f KB", (double)bytes / 1024);
        else if (bytes < 10u << 20)
                fprintf(stderr, "%.0f KB", (double)bytes / 1024);
        else
                fprintf(stderr, "%.0f MB", (double)bytes / (1 << 20));
}

static void show_stats(const struct talk_result *r) {
        if (r->tokens < 0)
                return;
        fprintf(stderr, "  %s%s%lld prompt tokens", r->route, r->route[0] ? "   " : "", (long long)r->prompt_tokens);
        if (r->cached_tokens >= 0)
                fprintf(stderr, " (%lld cached)", (long long)r->cached_tokens);
        if (r->kv_bytes) {
                fprintf(stderr, " · KV ");
                show_bytes(r->kv_bytes);
                fprintf(stderr, " in %.1f ms", r->kv_ms);
        }
        fprintf(stderr, " · TTFT %.1f ms · %lld tokens", r->ttft_ms, (long long)r->tokens);
        if (r->gap_ms > 0)
                fprintf(stderr, " at %.2f ms", r->gap_ms);
        if (r->tokens > 0 && r->total_ms > 0)
                fprintf(stderr, ", %.0f tokens/s", 1000 * (double)r->tokens / r->total_ms);
        fprintf(stderr, "\n");
}

/* Stream one answer to the screen. Returns as talk_stream; the text is appended to `answer` when not NULL. */
static int answer_one(struct talk *t, const char *path, struct buf *body, const struct chat_options *o,
    struct buf *answer, struct error *e) {
        struct screen screen = {.color = cli_color(STDOUT_FILENO)};
        struct talk_result result = {0};
        int r;

        if (!buf_ok(body))
                return error_set(e, -ENOMEM, "out of memory");
        r = talk_stream(t, path, buf_slice(body), show, &screen, &result, e);
        if (screen.in_reasoning && screen.color)
                fputs("\033[0m", stdout);
        if (result.text.len || result.reasoning.len)
                fputc('\n', stdout);
        fflush(stdout);
        if (o->stats && r == 0)
                show_stats(&result);
        if (answer)
                buf_add(answer, buf_slice(&result.text));
        talk_result_free(&result);
        return r;
}

/* ---- turns ------------------------------------------------------------------------------------------------------------- */

static void add_message(struct buf *messages, const char *role, struct slice content) {
        struct json_writer w = {.out = messages};

        if (messages->len)
                buf_add_char(messages, ',');
        json_open(&w, '{');
        json_key(&w, "role");
        json_str(&w, role);
        json_key(&w, "content");
        json_string(&w, content);
        json_close(&w, '}');
}

static int one_turn(
    struct talk *t, struct buf *messages, struct slice question, const struct chat_options *o, struct error *e) {
        struct buf body = {0}, answer = {0};
        struct json_writer w = {.out = &body};
        size_t before = messages->len;
        int r;

        add_message(messages, "user", question);
        json_open(&w, '{');
        json_key(&w, "messages");
        buf_add_char(&body, '[');
        buf_add(&body, buf_slice(messages));
        buf_add_char(&body, ']');
        w.after_key = false;
        if (o->thinking) {
                json_key(&w, "chat_template_kwargs");
                json_raw(&w, SLICE_LIT("{\"thinking\":true}"));
        }
        add_sampling(&w, o);
        json_close(&w, '}');
        r = answer_one(t, "/v1/chat/completions", &body, o, &answer, e);
        if (r == 0 || r == -ECANCELED)
                add_message(messages, "assistant", buf_slice(&answer));
        else
                messages->len = before; /* the question stays out of the history when nothing answered it */
        buf_free(&body);
        buf_free(&answer);
        return r;
}

struct input { /* standard input, by the line */
        struct buf bytes;
        size_t used; /* of bytes, by the lines handed out */
        bool ended;
};

/* Take what has come; one read, when there is something. Returns 0 or a negative errno, -ECANCELED for a signal. */
static int read_more(struct input *in, struct talk *t) {
        char *to;
        ssize_t n;
        int r = talk_wait(t, STDIN_FILENO);

        if (r < 0)
                return r;
        buf_consume(&in->bytes, in->used);
        in->used = 0;
        if (in->bytes.len > STDIN_MAX)
                return -EFBIG;
        to = buf_reserve(&in->bytes, 65536);
        if (!to)
                return -ENOMEM;
        n = read(STDIN_FILENO, to, 65536);
        if (n < 0)
                return errno == EINTR || errno == EAGAIN ? 0 : -errno;
        buf_commit(&in->bytes, (size_t)n);
        in->ended = n == 0;
        return 0;
}

/* The next line, valid until the next call. Returns 1, 0 at the end of input, or as read_more(). */
static int next_line(struct input *in, struct talk *t, struct slice *ret_line) {
        for (;;) {
                size_t end = slice_find(buf_slice(&in->bytes), '\n', in->used);
                int r;

                if (end < in->bytes.len || (in->ended && in->used < end)) {
                        *ret_line = slice_sub(buf_slice(&in->bytes), in->used, end);
                        in->used = end < in->bytes.len ? end + 1 : end;
                        return 1;
                }
                if (in->ended)
                        return 0;
                r = read_more(in, t);
                if (r < 0)
                        return r;
        }
}

static int next_question(struct input *in, struct talk *t, bool terminal, struct slice *ret_line) {
        if (terminal) {
                fputs("> ", stdout);
                fflush(stdout);
        }
        return next_line(in, t, ret_line);
}

static int turns(struct talk *t, struct buf *messages, const struct chat_options *o) {
        bool terminal = isatty(STDIN_FILENO) == 1, go_on = true;
        struct input in = {0};
        struct slice line;
        int exit_code = EXIT_FINE, r = 0;

        while (go_on && (r = next_question(&in, t, terminal, &line)) > 0) {
                struct error e = {0};

                line = slice_trim(line);
                if (line.len == 0)
                        continue;
                r = one_turn(t, messages, line, o, &e);
                if (r < 0 && r != -ECANCELED) {
                        exit_code = cli_fail(r, &e);
                        go_on = terminal;
                }
        }
        if (terminal)
                fputc('\n', stdout);
        if (go_on && r == -ECANCELED)
                exit_code = EXIT_INTERRUPTED;
        else if (go_on && r < 0)
                exit_code = cli_fail(r, &(struct error){0});
        buf_free(&in.bytes);
        return exit_code;
}

static int open_talk(const char *where, struct chat_options *o, struct talk **ret_talk) {
        const char **args = calloc(o->serve.count + 1, sizeof(*args));
        struct talk_options options = {.where = where, .api_key = o->api_key, .serve_args = args};
        struct error e = {0};
        int r;

        if (!args)
                return cli_fail(-ENOMEM, NULL);
        for (size_t i = 0; i < o->serve.count; i++)
                args[i] = o->serve.items[i];
        r = talk_open(&options, ret_talk, &e);
        free(args);
        return r == -ECANCELED ? EXIT_INTERRUPTED : r < 0 ? cli_fail(r, &e) : -1;
}

int cmd_chat(int argc, char **argv) {
        struct chat_options o = defaults;
        struct options_result parsed;
        struct talk *t = NULL;
        struct buf messages = {0};
        struct error e = {0};
        int r = cli_options(&chat_set, argc, argv, &o, &parsed);

        if (r >= 0)
                return r;
        if (!parsed.count_positional) {
                fprintf(stderr, "baton chat: which model folder or URL? usage: %s\n", chat_set.usage);
                r = EXIT_USAGE;
        } else
                r = open_talk(parsed.positional[0], &o, &t);
        if (r < 0) {
                if (o.system)
                        add_message(&messages, "system", slice_str(o.system));
                if (parsed.count_positional > 1) {
                        r = one_turn(t, &messages, slice_str(parsed.positional[1]), &o, &e);
                        r = r == 0 ? EXIT_FINE : r == -ECANCELED ? EXIT_INTERRUPTED : cli_fail(r, &e);
                } else
                        r = turns(t, &messages, &o);
        }
        talk_close(t);
        buf_free(&messages);
        options_list_free(&o.serve);
        options_result_free(&parsed);
        return r;
}

/* Returns -1 to go on, or the exit code. */
static int read_stdin(struct buf *text) {
        struct error e = {0};
        int r = file_read_fd(STDIN_FILENO, STDIN_MAX, text);

        if (r == 0)
                return -1;
        if (r == -EFBIG)
                error_set(&e, r, "standard input is longer than %u MiB, which no model takes", STDIN_MAX >> 20);
        else
                error_set(&e, r, "cannot read standard input: %s", strerror(-r));
        return cli_fail(r, &e);
}

int cmd_complete(int argc, char **argv) {
        struct chat_options o = defaults;
        struct options_result parsed;
        struct talk *t = NULL;
        struct buf text = {0}, body = {0};
        struct json_writer w = {.out = &body};
        struct error e = {0};
        int r = cli_options(&complete_set, argc, argv, &o, &parsed);

        if (r >= 0)
                return r;
        if (!parsed.count_positional) {
                fprintf(stderr, "baton complete: which model folder or URL? usage: %s\n", complete_set.usage);
                r = EXIT_USAGE;
        } else if (parsed.count_positional > 1)
                buf_add_str(&text, parsed.positional[1]);
        else
                r = read_stdin(&text);
        if (r < 0)
                r = open_talk(parsed.positional[0], &o, &t);
        if (r < 0) {
                json_open(&w, '{');
                json_key(&w, "prompt");
                json_string(&w, buf_slice(&text));
                add_sampling(&w, &o);
                json_close(&w, '}');
                r = answer_one(t, "/v1/completions", &body, &o, NULL, &e);
                r = r == 0 ? EXIT_FINE : r == -ECANCELED ? EXIT_INTERRUPTED : cli_fail(r, &e);
        }
        talk_close(t);
        buf_free(&text);
        buf_free(&body);
        options_list_free(&o.serve);
        options_result_free(&parsed);
        return r;
}
