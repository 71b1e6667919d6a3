/* quantize.c - `baton quantize`: an int8 or fp8 copy of a checkpoint, and the prompts that its ranges are taken from. */
#include "base/file.h"
#include "base/json.h"
#include "cli/cli.h"
#include "model/model.h"
#include "os/os.h"
#include "text/text.h"
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

/* A file of prompts: far more than calibration has a use for. */
#define PROMPTS_BYTES_MAX ((size_t)256 << 20)

struct options {
        const char *format, *calibration;
        int64_t threads;
        bool quiet;
};

static const struct option table[] = {
    {"format", 0, OPTION_STRING, offsetof(struct options, format), NULL, "what to make",
        .choices = "w8a8-dynamic|w8a8-static|w8a8-mix|fp8"},
    {"calibration", 0, OPTION_STRING, offsetof(struct options, calibration), "FILE",
        "prompts for w8a8-static and w8a8-mix, one a line: text, or JSON with \"messages\" or \"prompt\""},
    {"threads", 0, OPTION_INT, offsetof(struct options, threads), "N", "threads that compute (one per usable core)",
        .min = 1, .max = 1024},
    {"quiet", 'q', OPTION_FLAG, offsetof(struct options, quiet), NULL, "no progress"},
};
static const struct option_set set = {"baton quantize IN OUT --format FORMAT",
    "Writes a quantised copy of the f32, f16 or bf16 checkpoint in the folder IN to the new folder OUT. w8a8-dynamic "
    "and "
    "w8a8-static are Ascend's int8 (IN may be fp8, too), fp8 is e4m3 in blocks of 128 x 128. OUT appears when it is "
    "complete.",
    table, sizeof(table) / sizeof(*table), 2};

static void progress(void *context, const char *doing, size_t done, size_t all) {
        const struct options *o = context;

        if (!o->quiet)
                fprintf(stderr, "%s %zu of %zu\n", doing, done, all);
}

/* ---- prompts -------------------------------------------------------------------------------------------------------- */

struct prompts {
        const char *dir; /* of the model */
        struct arena arena;
        struct tokenizer *tokenizer;
        struct chat_format chat;
        bool chat_known;
        struct quantize_prompt *items;
        size_t count;
};

/* The text of a conversation, as the model's template prints it. */
static int render(struct prompts *p, struct slice line, struct buf *out, struct error *e) {
        const struct openai_defaults defaults = {.temperature = 1,
            .top_p = 1,
            .repetition_penalty = 1,
            .vocab = UINT32_MAX,
            .max_model_len = UINT32_MAX,
            .thinking = -1};
        struct openai_request request = {0};
        struct openai_error refusal = {0};
        int r = p->chat_known ? 0 : chat_format_detect(p->dir, &p->chat, e);

        if (r < 0)
                return r;
        p->chat_known = true;
        r = openai_parse(OPENAI_CHAT, line, &defaults, &p->arena, &request, &refusal);
        if (r < 0)
                return error_set(e, r, "%s", r == -ENOMEM ? "out of memory" : refusal.message);
        r = chat_render(&p->chat, p->tokenizer, &request, out, e);
        openai_request_done(&request);
        return r;
}

/* The text of a line into `out`; whether it holds its special tokens already. */
static int read_line(
    struct prompts *p, struct slice line, struct buf *out, enum tokenize_mode *ret_mode, struct error *e) {
        yyjson_doc *doc = NULL;
        yyjson_val *prompt;
        int r;

        *ret_mode = TOKENIZE_ADD_SPECIAL;
        if (line.ptr[0] != '{') {
                buf_add(out, line);
                return 0;
        }
        r = json_parse(line, &doc, e);
        if (r < 0)
                return r;
        prompt = json_get(yyjson_doc_get_root(doc), "prompt");
        if (json_slice(prompt).ptr)
                buf_add(out, json_slice(prompt));
        else if (json_get(yyjson_doc_get_root(doc), "messages")) {
                *ret_mode = TOKENIZE_PLAIN;
                r = render(p, line, out, e);
        } else
                r = error_set(e, -EINVAL, "neither \"messages\" nor a \"prompt\" that is text");
        yyjson_doc_free(doc);
        return r;
}

static int add_prompt(struct prompts *p, struct slice line, struct error *e) {
        struct buf text = {0};
        enum tokenize_mode mode = TOKENIZE_PLAIN;
        struct token_list tokens = {0};
        int r = read_line(p, line, &text, &mode, e);

        if (r == 0 && !buf_ok(&text))
                r = error_set(e, -ENOMEM, "out of memory");
        if (r == 0) {
                r = tokenizer_encode(p->tokenizer, buf_slice(&text), mode, &p->arena, &tokens);
                if (r < 0)
                        error_set(e, r, "the text cannot be tokenized: it is too long, or memory is out");
        }
        if (r == 0 && tokens.count)
                p->items[p->count++] = (struct quantize_prompt){tokens.ids, tokens.count};
        buf_free(&text);
        return r;
}

static int read_prompts(struct prompts *p, const char *path, struct error *e) {
        struct buf file = {0};
        struct slice rest, line;
        size_t lines = 1, number = 0;
        int r = file_read_whole(path, PROMPTS_BYTES_MAX, &file, e);

        if (r == 0)
                r = tokenizer_load(p->dir, &p->tokenizer, e);
        rest = buf_slice(&file);
        for (size_t at = 0; (at = slice_find(rest, '\n', at)) < rest.len; at++)
                lines++;
        p->items = arena_array(&p->arena, lines, sizeof(*p->items));
        if (r == 0 && !p->items)
                r = error_set(e, -ENOMEM, "out of memory");
        while (r == 0 && slice_split(&rest, '\n', &line)) {
                number++;
                line = slice_trim(line);
                if (line.len)
                        r = add_prompt(p, line, e);
                if (r < 0)
                        error_prefix(e, r, "%s:%zu", path, number);
        }
        buf_free(&file);
        return r;
}

/* ---- the command ---------------------------------------------------------------------------------------------------- */

static const struct format {
        const char *name;
        enum quantize_format format;
        bool calibrated;
} formats[] = {{"w8a8-dynamic", QUANTIZE_W8A8_DYNAMIC, false}, {"w8a8-static", QUANTIZE_W8A8_STATIC, true},
    {"w8a8-mix", QUANTIZE_W8A8_MIX, true}, {"fp8", QUANTIZE_FP8, false}};

static int choose_format(
    const struct options *o, const struct options_result *words, const struct format **ret_format, struct error *e) {
        const struct format *f = formats;

        if (words->count_positional != 2)
                return error_set(e, -EINVAL, "which folders? usage: %s", set.usage);
        if (!o->format)
                return error_set(e, -EINVAL, "--format is needed: w8a8-dynamic, w8a8-static, w8a8-mix or fp8");
        while (strcmp(f->name, o->format) != 0) /* there: the option's choices */
                f++;
        if (f->calibrated && !o->calibration)
                return error_set(e, -EINVAL,
                    "%s takes the ranges of activations from prompts: give a file of them with --calibration", f->name);
        if (!f->calibrated && o->calibration)
                return error_set(
                    e, -EINVAL, "--calibration is for w8a8-static and w8a8-mix; %s needs no prompts", f->name);
        *ret_format = f;
        return 0;
}

/* A signal's handler has nothing else to write to. */
static volatile sig_atomic_t stop;

static void on_signal(int number) {
        stop = number;
}

/* What was half written is to be cleared away first. The second signal ends at once. */
static void take_signals(void) {
        const struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};

        sigaction(SIGINT, &action, NULL);
        sigaction(SIGTERM, &action, NULL);
        sigaction(SIGHUP, &action, NULL);
}

static int quantize(struct options *o, const struct options_result *words, struct prompts *p, struct error *e) {
        struct compute_options c = {
            .isa = ISA_BEST, .threads = (unsigned)(o->threads ? o->threads : os_cpu_count()), .spin_us = 50};
        struct quantize_options q = {.progress = progress, .context = o, .stop = &stop};
        const struct format *format = NULL;
        int r = choose_format(o, words, &format, e);

        if (r < 0)
                return r;
        q.from = p->dir = words->positional[0];
        q.to = words->positional[1];
        q.format = format->format;
        if (o->calibration)
                r = read_prompts(p, o->calibration, e);
        q.prompts = p->items;
        q.prompt_count = p->count;
        if (r == 0)
                r = compute_new(&c, &q.compute, e);
        take_signals();
        if (r == 0)
                r = model_quantize(&q, e);
        compute_free(q.compute);
        return r;
}

int cmd_quantize(int argc, char **argv) {
        struct options o = {0};
        struct options_result words;
        struct prompts p = {0};
        struct error e = {0};
        int code = cli_options(&set, argc, argv, &o, &words), r;

        if (code >= 0)
                return code;
        r = quantize(&o, &words, &p, &e);
        tokenizer_free(p.tokenizer);
        arena_free(&p.arena);
        options_result_free(&words);
        return r < 0 ? cli_fail(r, &e) : EXIT_FINE;
}
