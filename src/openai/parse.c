/* parse.c - request bodies: a table of members per endpoint, read in vLLM's order with vLLM's leniency. */
#include "openai/parse.h"
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>

/* ---- helpers -------------------------------------------------------------------------------------------------------------- */

void parser_refuse(struct parser *p, const char *param, const char *format, ...) {
        char text[sizeof(p->err->message)];
        va_list args;

        if (p->failed)
                return;
        va_start(args, format);
        vsnprintf(text, sizeof(text), format, args);
        va_end(args);
        p->failed = openai_fail(p->err, 400, "BadRequestError", param, "%s", text);
}

void *parser_array(struct parser *p, size_t count, size_t size) {
        void *array = arena_array(p->arena, count, size);

        if (!array)
                parser_no_memory(p);
        return array;
}

const char *parser_loc(struct parser *p, const char *format, ...) {
        char text[160];
        struct slice copy;
        va_list args;

        if (p->issues.count > ISSUES_TOLD_MAX)
                return "";
        va_start(args, format);
        vsnprintf(text, sizeof(text), format, args);
        va_end(args);
        copy = arena_copy(p->arena, slice_str(text));
        if (!copy.ptr)
                parser_no_memory(p);
        return copy.ptr ? copy.ptr : "";
}

/* ---- scalars, as leniently as pydantic ------------------------------------------------------------------------------------ */

/* The number a text stands for: Python's int() and float() allow white space around it and a plus. */
static bool text_number(struct slice s, double *ret_value) {
        static const char *const words[] = {"nan", "inf", "infinity"};

        s = slice_trim(s);
        if (s.len && *s.ptr == '+')
                slice_take(&s, 1);
        if (slice_to_double(s, ret_value) == 0)
                return true;
        for (size_t i = 0; i < 3; i++)
                if (slice_is_icase(s, words[i])) {
                        *ret_value = i ? INFINITY : NAN;
                        return true;
                }
        return false;
}

static int64_t clamp(double value) {
        if (value >= 0x1p63)
                return INT64_MAX;
        return value <= -0x1p63 ? INT64_MIN : (int64_t)value;
}

static bool text_integer(struct slice s, int64_t *ret_value) {
        double number;

        s = slice_trim(s);
        if (s.len && *s.ptr == '+')
                slice_take(&s, 1);
        if (slice_to_i64(s, ret_value) == 0)
                return true;
        if (!text_number(s, &number) || !isfinite(number) || number != trunc(number) || slice_find(s, 'e', 0) < s.len ||
            slice_find(s, 'E', 0) < s.len)
                return false;
        *ret_value = clamp(number);
        return true;
}

static double number_of(yyjson_val *v) {
        struct slice raw;
        double value;
        bool minus;

        if (!yyjson_is_raw(v))
                return yyjson_get_num(v);
        /* What is beyond a double, and NaN and Infinity, come as text. */
        raw = slice_of(yyjson_get_raw(v), yyjson_get_len(v));
        minus = raw.len && *raw.ptr == '-';
        slice_take(&raw, minus);
        if (!text_number(raw, &value))
                value = INFINITY;
        return minus ? -value : value;
}

bool parser_integer(struct parser *p, const char *loc, yyjson_val *v, int64_t *ret_value) {
        if (yyjson_is_sint(v))
                *ret_value = yyjson_get_sint(v);
        else if (yyjson_is_uint(v))
                *ret_value = yyjson_get_uint(v) > INT64_MAX ? INT64_MAX : (int64_t)yyjson_get_uint(v);
        else if (yyjson_is_bool(v))
                *ret_value = yyjson_get_bool(v);
        else if ((yyjson_is_real(v) || yyjson_is_raw(v)) && number_of(v) == trunc(number_of(v)))
                *ret_value = clamp(number_of(v));
        else if (!yyjson_is_str(v) || !text_integer(json_slice(v), ret_value)) {
                issue_not_integer(&p->issues, loc, v);
                return false;
        }
        return true;
}

bool parser_number(struct parser *p, const char *loc, yyjson_val *v, double *ret_value) {
        if (yyjson_is_num(v) || yyjson_is_raw(v))
                *ret_value = number_of(v);
        else if (yyjson_is_bool(v))
                *ret_value = yyjson_get_bool(v);
        else if (!yyjson_is_str(v) || !text_number(json_slice(v), ret_value)) {
                issue_not_number(&p->issues, loc, v);
                return false;
        }
        return true;
}

bool parser_boolean(struct parser *p, const char *loc, yyjson_val *v, bool *ret_value) {
        static const char *const words[] = {"0", "off", "f", "false", "n", "no", "1", "on", "t", "true", "y", "yes"};
        double number = yyjson_is_num(v) ? yyjson_get_num(v) : -1;

        if (yyjson_is_bool(v)) {
                *ret_value = yyjson_get_bool(v);
                return true;
        }
        if (number == 0 || number == 1) {
                *ret_value = number == 1;
                return true;
        }
        for (size_t i = 0; yyjson_is_str(v) && i < 12; i++)
                if (slice_is_icase(json_slice(v), words[i])) {
                        *ret_value = i >= 6;
                        return true;
                }
        issue_not_boolean(&p->issues, loc, v);
        return false;
}

bool parser_string(struct parser *p, const char *loc, yyjson_val *v, struct slice *ret_value) {
        if (!yyjson_is_str(v)) {
                issue_not_string(&p->issues, loc, v);
                return false;
        }
        *ret_value = json_slice(v);
        return true;
}

/* ---- the table ------------------------------------------------------------------------------------------------------------ */

/* Members whose values are looked at again after the table has run. */
struct raw {
        int64_t max_tokens, max_completion_tokens, n, min_tokens, top_k, logprobs, prompt_logprobs, priority;
        int64_t top_logprobs;
        double temperature, top_p, min_p, presence, frequency, repetition;
        bool chat_logprobs, beam;
        yyjson_val *seen[64]; /* by row; NULL: absent or null */
};

enum type {
        T_INTEGER,
        T_NUMBER,
        T_BOOLEAN,
        T_STRING,
        T_OBJECT,
        T_STRINGS, /* a list of strings */
        T_IDS,     /* a list of integers */
        T_ANY,     /* looked at later, by name */
};

#define COMPLETION (1u << OPENAI_COMPLETION)
#define CHAT       (1u << OPENAI_CHAT)
#define TOKENIZE   (1u << OPENAI_TOKENIZE)
#define DETOKENIZE (1u << OPENAI_DETOKENIZE)
#define GENERATE   (COMPLETION | CHAT)

struct row {
        const char *name;
        unsigned kinds;
        enum type type;
        bool of_request; /* the target is in struct openai_request, else in struct raw */
        size_t target;
};

#define IN_REQUEST(member) true, offsetof(struct openai_request, member)
#define IN_RAW(member)     false, offsetof(struct raw, member)
#define NOWHERE            false, SIZE_MAX

/* In the order in which vLLM's models declare them, which is the order in which errors are told. */
static const struct row rows[] = {
    {"messages", CHAT | TOKENIZE, T_ANY, NOWHERE},
    {"model", GENERATE | TOKENIZE | DETOKENIZE, T_STRING, IN_REQUEST(model)},
    {"prompt", COMPLETION | TOKENIZE, T_ANY, NOWHERE},
    {"tokens", DETOKENIZE, T_ANY, NOWHERE},
    {"echo", GENERATE, T_BOOLEAN, IN_REQUEST(echo)},
    {"frequency_penalty", GENERATE, T_NUMBER, IN_RAW(frequency)},
    {"logit_bias", GENERATE, T_OBJECT, NOWHERE},
    {"logprobs", COMPLETION, T_INTEGER, IN_RAW(logprobs)},
    {"logprobs", CHAT, T_BOOLEAN, IN_RAW(chat_logprobs)},
    {"top_logprobs", CHAT, T_INTEGER, IN_RAW(top_logprobs)},
    {"max_tokens", GENERATE, T_INTEGER, IN_RAW(max_tokens)},
    {"max_completion_tokens", CHAT, T_INTEGER, IN_RAW(max_completion_tokens)},
    {"n", GENERATE, T_INTEGER, IN_RAW(n)},
    {"presence_penalty", GENERATE, T_NUMBER, IN_RAW(presence)},
    {"response_format", GENERATE, T_OBJECT, NOWHERE},
    {"seed", GENERATE, T_ANY, NOWHERE},
    {"stop", GENERATE, T_ANY, NOWHERE},
    {"stream", GENERATE, T_BOOLEAN, IN_REQUEST(stream)},
    {"stream_options", GENERATE, T_OBJECT, NOWHERE},
    {"suffix", COMPLETION, T_STRING, NOWHERE},
    {"temperature", GENERATE, T_NUMBER, IN_RAW(temperature)},
    {"top_p", GENERATE, T_NUMBER, IN_RAW(top_p)},
    {"tools", CHAT | TOKENIZE, T_ANY, NOWHERE},
    {"tool_choice", CHAT, T_ANY, NOWHERE},
    {"include_reasoning", CHAT, T_BOOLEAN, IN_REQUEST(include_reasoning)},
    {"user", GENERATE, T_STRING, IN_REQUEST(user)},
    {"use_beam_search", GENERATE, T_BOOLEAN, IN_RAW(beam)},
    {"top_k", GENERATE, T_INTEGER, IN_RAW(top_k)},
    {"min_p", GENERATE, T_NUMBER, IN_RAW(min_p)},
    {"repetition_penalty", GENERATE, T_NUMBER, IN_RAW(repetition)},
    {"stop_token_ids", GENERATE, T_IDS, NOWHERE},
    {"include_stop_str_in_output", GENERATE, T_BOOLEAN, IN_REQUEST(sampling.include_stop)},
    {"ignore_eos", GENERATE, T_BOOLEAN, IN_REQUEST(sampling.ignore_eos)},
    {"min_tokens", GENERATE, T_INTEGER, IN_RAW(min_tokens)},
    {"skip_special_tokens", GENERATE, T_BOOLEAN, IN_REQUEST(skip_special)},
    {"spaces_between_special_tokens", GENERATE, T_BOOLEAN, NOWHERE},
    {"truncate_prompt_tokens", GENERATE, T_INTEGER, IN_REQUEST(truncate_prompt_tokens)},
    {"allowed_token_ids", GENERATE, T_IDS, NOWHERE},
    {"bad_words", GENERATE, T_STRINGS, NOWHERE},
    {"prompt_logprobs", GENERATE, T_INTEGER, IN_RAW(prompt_logprobs)},
    {"prompt_embeds", COMPLETION, T_ANY, NOWHERE},
    {"add_generation_prompt", CHAT | TOKENIZE, T_BOOLEAN, IN_REQUEST(add_generation_prompt)},
    {"continue_final_message", CHAT | TOKENIZE, T_BOOLEAN, IN_REQUEST(continue_final_message)},
    {"add_special_tokens", COMPLETION | CHAT | TOKENIZE, T_BOOLEAN, IN_REQUEST(add_special)},
    {"chat_template", CHAT | TOKENIZE, T_STRING, NOWHERE},
    {"chat_template_kwargs", CHAT | TOKENIZE, T_OBJECT, NOWHERE},
    {"structured_outputs", GENERATE, T_OBJECT, NOWHERE},
    {"priority", GENERATE, T_INTEGER, IN_RAW(priority)},
    {"request_id", GENERATE, T_STRING, IN_REQUEST(request_id)},
    {"return_tokens_as_token_ids", GENERATE, T_BOOLEAN, IN_REQUEST(return_tokens_as_ids)},
    {"return_token_ids", GENERATE, T_BOOLEAN, IN_REQUEST(return_token_ids)},
    {"return_token_strs", TOKENIZE, T_BOOLEAN, IN_REQUEST(return_token_strs)},
    {"cache_salt", GENERATE, T_STRING, IN_REQUEST(cache_salt)},
    {"kv_transfer_params", GENERATE, T_OBJECT, NOWHERE},
};
#define ROW_COUNT (sizeof(rows) / sizeof(*rows))
_Static_assert(ROW_COUNT <= 64, "struct raw.seen is too small");

static yyjson_val *seen(const struct raw *raw, const char *name) {
        for (size_t i = 0; i < ROW_COUNT; i++)
                if (raw->seen[i] && !strcmp(rows[i].name, name))
                        return raw->seen[i];
        return NULL;
}

static void check_list(struct parser *p, const struct row *row, yyjson_val *v) {
        yyjson_arr_iter iter;
        yyjson_val *item;
        size_t i = 0;

        if (!yyjson_is_arr(v)) {
                issue_not_list(&p->issues, row->name, v);
                return;
        }
        yyjson_arr_iter_init(v, &iter);
        for (; (item = yyjson_arr_iter_next(&iter)); i++) {
                int64_t id;

                if (row->type == T_STRINGS && !yyjson_is_str(item))
                        issue_not_string(&p->issues, parser_loc(p, "%s.%zu", row->name, i), item);
                else if (row->type == T_IDS && !yyjson_is_int(item))
                        parser_integer(p, parser_loc(p, "%s.%zu", row->name, i), item, &id);
        }
}

static void read_member(struct parser *p, struct raw *raw, const struct row *row, yyjson_val *v) {
        char *target = row->target == SIZE_MAX ? NULL
                       : row->of_request       ? (char *)p->r + row->target
                                               : (char *)raw + row->target;
        struct slice unused;
        bool unused_flag;

        switch (row->type) {
        case T_INTEGER:
                parser_integer(p, row->name, v, (int64_t *)target);
                break;
        case T_NUMBER:
                parser_number(p, row->name, v, (double *)target);
                break;
        case T_BOOLEAN:
                parser_boolean(p, row->name, v, target ? (bool *)target : &unused_flag);
                break;
        case T_STRING:
                parser_string(p, row->name, v, target ? (struct slice *)target : &unused);
                break;
        case T_OBJECT:
                if (!yyjson_is_obj(v))
                        issue_not_object(&p->issues, row->name, v);
                break;
        case T_STRINGS:
        case T_IDS:
                check_list(p, row, v);
                break;
        case T_ANY:
                break;
        }
}

/* One pass over the members; the last of a name counts. */
static int find_members(struct parser *p, struct raw *raw) {
        yyjson_obj_iter iter;
        yyjson_val *key;

        if (yyjson_obj_size(p->root) > OPENAI_MEMBERS_MAX) {
                parser_refuse(p, NULL, "The body has more than %d members", OPENAI_MEMBERS_MAX);
                return p->failed;
        }
        yyjson_obj_iter_init(p->root, &iter);
        while ((key = yyjson_obj_iter_next(&iter)))
                for (size_t i = 0; i < ROW_COUNT; i++)
                        if (rows[i].kinds & 1u << p->r->kind && slice_is(json_slice(key), rows[i].name)) {
                                yyjson_val *v = yyjson_obj_iter_get_val(key);

                                raw->seen[i] = yyjson_is_null(v) ? NULL : v;
                        }
        return 0;
}

/* ---- members with a shape of their own ------------------------------------------------------------------------------------ */

static void read_seed(struct parser *p, yyjson_val *v) {
        int64_t seed = 0;
        double value = yyjson_is_num(v) || yyjson_is_raw(v) ? number_of(v) : 0;

        if (value == trunc(value) && (value >= 0x1p63 || value < -0x1p63)) {
                bool high = value > 0;

                issue_add(&p->issues, high ? "less_than_equal" : "greater_than_equal", "seed",
                    high ? "Input should be less than or equal to 9223372036854775807"
                         : "Input should be greater than or equal to -9223372036854775808",
                    v, high ? ", 'ctx': {'le': 9223372036854775807}" : ", 'ctx': {'ge': -9223372036854775808}");
                return;
        }
        p->r->sampling.has_seed = parser_integer(p, "seed", v, &seed);
        p->r->sampling.seed = seed;
}

static bool add_stop(struct parser *p, struct slice *stops, struct slice text) {
        if (text.len == 0)
                parser_refuse(p, NULL, "stop cannot contain an empty string.");
        if (text.len > OPENAI_STOP_BYTES)
                parser_refuse(p, NULL, "A stop string may have at most %d bytes.", OPENAI_STOP_BYTES);
        stops[p->r->sampling.stop_count++] = text;
        return !p->failed;
}

static void read_stop(struct parser *p, yyjson_val *v) {
        size_t count = yyjson_is_arr(v) ? yyjson_arr_size(v) : 1, i = 0;
        struct slice *stops;
        yyjson_arr_iter iter;
        yyjson_val *item;

        if (!yyjson_is_str(v) && !yyjson_is_arr(v)) {
                issue_not_string(&p->issues, "stop", v);
                issue_not_list(&p->issues, "stop", v);
                return;
        }
        if (count > OPENAI_STOPS_MAX) {
                parser_refuse(p, NULL, "At most %d stop strings are supported.", OPENAI_STOPS_MAX);
                return;
        }
        stops = parser_array(p, count ? count : 1, sizeof(*stops));
        if (!stops)
                return;
        p->r->sampling.stop = stops;
        if (yyjson_is_str(v)) {
                add_stop(p, stops, json_slice(v));
                return;
        }
        for (yyjson_arr_iter_init(v, &iter); (item = yyjson_arr_iter_next(&iter)); i++) {
                if (!yyjson_is_str(item)) {
                        if (i == 0 || !p->issues.count)
                                issue_not_string(&p->issues, "stop", v);
                        issue_not_string(&p->issues, parser_loc(p, "stop.%zu", i), item);
                } else if (!add_stop(p, stops, json_slice(item)))
                        return;
        }
}

static void read_stream_options(struct parser *p, yyjson_val *v) {
        yyjson_val *usage = json_get(v, "include_usage"), *continuous = json_get(v, "continuous_usage_stats");

        if (!yyjson_is_obj(v))
                return;
        if (usage && !yyjson_is_null(usage))
                parser_boolean(p, "stream_options.include_usage", usage, &p->r->include_usage);
        if (continuous && !yyjson_is_null(continuous))
                parser_boolean(p, "stream_options.continuous_usage_stats", continuous, &p->r->continuous_usage);
        if (!p->r->stream)
                parser_refuse(p, "stream_options",
                    "Stream options can only be defined when `stream=True`. (parameter=stream_options)");
}

static void read_ids(struct parser *p, yyjson_val *v, const uint32_t **ret_ids, uint32_t *ret_count) {
        size_t count = yyjson_arr_size(v);
        yyjson_arr_iter iter;
        yyjson_val *item;
        uint32_t *ids;
        uint32_t n = 0;

        if (!yyjson_is_arr(v))
                return;
        if (count > p->defaults->vocab) /* more than there are: some are out of range or twice */
                count = p->defaults->vocab;
        ids = parser_array(p, count ? count : 1, sizeof(*ids));
        if (!ids)
                return;
        for (yyjson_arr_iter_init(v, &iter); n < count && (item = yyjson_arr_iter_next(&iter));) {
                int64_t id = -1;

                parser_integer(p, "", item, &id); /* its type was checked */
                if (id >= 0 && id < p->defaults->vocab)
                        ids[n++] = (uint32_t)id;
        }
        *ret_ids = ids;
        *ret_count = n;
}

static void read_words(struct parser *p, yyjson_val *v) {
        size_t count = yyjson_arr_size(v);
        struct slice *words;

        if (!yyjson_is_arr(v) || count == 0)
                return;
        if (count > OPENAI_WORDS_MAX) {
                parser_refuse(p, "bad_words", "At most %d bad words are supported.", OPENAI_WORDS_MAX);
                return;
        }
        words = parser_array(p, count, sizeof(*words));
        if (!words)
                return;
        for (size_t i = 0; i < count; i++) {
                words[i] = json_slice(yyjson_arr_get(v, i));
                if (words[i].len == 0 && yyjson_is_str(yyjson_arr_get(v, i)))
                        parser_refuse(p, "bad_words", "bad_words cannot contain an empty string (parameter=bad_words)");
        }
        p->r->sampling.bad_words = words;
        p->r->sampling.bad_word_count = (uint32_t)count;
}

static void read_bias(struct parser *p, yyjson_val *v) {
        size_t count = yyjson_obj_size(v);
        struct openai_bias *bias;
        yyjson_obj_iter iter;
        yyjson_val *key;
        uint32_t n = 0;

        if (!yyjson_is_obj(v) || count == 0)
                return;
        if (count > p->defaults->vocab) {
                parser_refuse(
                    p, "logit_bias", "logit_bias has more entries than the vocabulary (parameter=logit_bias)");
                return;
        }
        bias = parser_array(p, count, sizeof(*bias));
        if (!bias)
                return;
        for (yyjson_obj_iter_init(v, &iter); (key = yyjson_obj_iter_next(&iter));) {
                struct slice name = json_slice(key);
                double value = 0;
                int64_t id;

                if (!parser_number(p, "logit_bias", yyjson_obj_iter_get_val(key), &value))
                        return;
                if (!text_integer(name, &id))
                        parser_refuse(p, "logit_bias",
                            "logit_bias contains key(s) that cannot be converted to integer token IDs: ['%.*s'] "
                            "(parameter=logit_bias, value=['%.*s'])",
                            SLICE_ARG(name), SLICE_ARG(name));
                else if (id < 0 || id >= p->defaults->vocab)
                        parser_refuse(p, "logit_bias",
                            "token_id(s) [%lld] in logit_bias contain out-of-vocab token ids. Vocabulary size: %u "
                            "(parameter=logit_bias, value=[%lld])",
                            (long long)id, p->defaults->vocab, (long long)id);
                else if (isnan(value))
                        parser_refuse(p, "logit_bias", "logit_bias values must be numbers (parameter=logit_bias)");
                if (p->failed)
                        return;
                bias[n].id = (uint32_t)id;
                bias[n++].bias = (float)fmax(-100, fmin(100, value));
        }
        p->r->sampling.bias = bias;
        p->r->sampling.bias_count = n;
}

static int truth(yyjson_val *v) {
        if (!v || yyjson_is_null(v))
                return -1;
        if (yyjson_is_bool(v))
                return yyjson_get_bool(v);
        if (yyjson_is_str(v))
                return yyjson_get_len(v) > 0;
        return yyjson_is_num(v) ? yyjson_get_num(v) != 0 : 1;
}

static void read_transfer(struct parser *p, yyjson_val *v) {
        struct buf text = {0};

        if (!yyjson_is_obj(v))
                return;
        json_add_value(&text, v);
        p->r->kv_transfer_params = arena_copy(p->arena, buf_slice(&text));
        if (!buf_ok(&text) || !p->r->kv_transfer_params.ptr)
                parser_no_memory(p);
        buf_free(&text);
}

/* ---- what this server does not do ----------------------------------------------------------------------------------------- */

static void refuse_constraints(struct parser *p, const struct raw *raw) {
        yyjson_val *format = seen(raw, "response_format"), *outputs = seen(raw, "structured_outputs");
        static const char *const kinds[] = {"json", "regex", "choice"};
        struct slice type = json_get_slice(format, "type");
        unsigned count = 0;

        for (size_t i = 0; i < 3; i++)
                count += truth(json_get(outputs, kinds[i])) == 1;
        if (count > 1)
                parser_refuse(p, NULL,
                    "You can only use one kind of constraints for structured outputs ('json', 'regex' or 'choice').");
        if (yyjson_is_obj(format) && !slice_is(type, "text")) {
                static const char *const known[] = {"json_object", "json_schema", "structural_tag"};
                bool is_known = false;

                for (size_t i = 0; i < 3; i++)
                        is_known |= slice_is(type, known[i]);
                if (!is_known)
                        issue_add(&p->issues, "literal_error", "response_format.type",
                            "Input should be 'text', 'json_object' or 'json_schema'", json_get(format, "type"),
                            ", 'ctx': {'expected': \"'text', 'json_object' or 'json_schema'\"}");
                else
                        parser_refuse(p, "response_format",
                            "response_format `%.*s` needs constrained decoding, which this server does not have; "
                            "only `text` is supported (parameter=response_format)",
                            SLICE_ARG(type));
        }
        if (yyjson_obj_size(outputs) > 0)
                parser_refuse(p, "structured_outputs",
                    "structured_outputs needs constrained decoding, which this server does not have "
                    "(parameter=structured_outputs)");
}

static void refuse_unsupported(struct parser *p, const struct raw *raw) {
        if (seen(raw, "suffix") && yyjson_get_len(seen(raw, "suffix")) > 0)
                parser_refuse(p, "suffix", "suffix is only supported for models with FIM completion rendering");
        if (seen(raw, "prompt_embeds"))
                parser_refuse(p, "prompt_embeds", "prompt_embeds are not supported (parameter=prompt_embeds)");
        if (raw->beam)
                parser_refuse(p, "use_beam_search", "Beam search is not supported (parameter=use_beam_search)");
        if (seen(raw, "chat_template"))
                parser_refuse(p, NULL,
                    "Chat template is passed with request, but --trust-request-chat-template is not set. Refused "
                    "request with untrusted chat template.");
        refuse_constraints(p, raw);
}

/* ---- putting it together -------------------------------------------------------------------------------------------------- */

static void read_logprobs(struct parser *p, const struct raw *raw) {
        struct sampling_params *s = &p->r->sampling;
        bool chat = p->r->kind == OPENAI_CHAT;
        int64_t vocab = p->defaults->vocab, most = p->defaults->max_logprobs < 0 ? vocab : p->defaults->max_logprobs;
        int64_t sample = -1, prompt = seen(raw, "prompt_logprobs") ? raw->prompt_logprobs : INT64_MIN;

        if (chat && seen(raw, "top_logprobs")) {
                if (raw->top_logprobs < 0 && raw->top_logprobs != -1)
                        parser_refuse(p, "top_logprobs",
                            "`top_logprobs` must be a positive value or -1. (parameter=top_logprobs, value=%lld)",
                            (long long)raw->top_logprobs);
                if (raw->top_logprobs != 0 && !raw->chat_logprobs)
                        parser_refuse(p, "top_logprobs",
                            "when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs)");
        }
        if (chat && raw->chat_logprobs)
                sample = raw->top_logprobs == -1 ? vocab : raw->top_logprobs;
        else if (!chat && seen(raw, "logprobs")) {
                sample = raw->logprobs == -1 ? vocab : raw->logprobs;
                if (sample < 0)
                        parser_refuse(p, "logprobs",
                            "`logprobs` must be a positive value. (parameter=logprobs, value=%lld)", (long long)sample);
        }
        if (prompt != INT64_MIN && (prompt > 0 || prompt == -1) && p->r->stream)
                parser_refuse(p, "prompt_logprobs",
                    "`prompt_logprobs` are not available when `stream=True`. (parameter=prompt_logprobs)");
        if (prompt != INT64_MIN && prompt < -1)
                parser_refuse(p, "prompt_logprobs",
                    "`prompt_logprobs` must be a positive value or -1. (parameter=prompt_logprobs, value=%lld)",
                    (long long)prompt);
        /* An echoed prompt is told with the log-probabilities that were asked for the answer. */
        if (prompt == INT64_MIN && p->r->echo && !(chat && p->r->stream))
                prompt = chat ? raw->top_logprobs : sample;
        else if (prompt == -1)
                prompt = vocab;
        if (sample > most)
                parser_refuse(p, "logprobs",
                    "Requested sample logprobs of %lld, which is greater than max allowed: %lld (parameter=logprobs, "
                    "value=%lld)",
                    (long long)sample, (long long)most, (long long)sample);
        if (prompt > most)
                parser_refuse(p, "prompt_logprobs",
                    "Requested prompt logprobs of %lld, which is greater than max allowed: %lld "
                    "(parameter=prompt_logprobs, value=%lld)",
                    (long long)prompt, (long long)most, (long long)prompt);
        s->logprobs = sample < 0 ? -1 : (int32_t)sample;
        s->prompt_logprobs = prompt < 0 ? -1 : (int32_t)prompt;
}

static uint32_t clamp_u32(int64_t value) {
        return value < 0 ? 0 : value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
}

static float narrow(double value) {
        return value > 3e38 ? 3e38f : value < -3e38 ? -3e38f : (float)value;
}

/* A number as Python writes a float: 3.5, -1.0, nan. */
static void add_python_float(struct buf *b, double value) {
        if (isfinite(value))
                buf_add_double(b, value);
        else
                buf_add_str(b, isnan(value) ? "nan" : value > 0 ? "inf" : "-inf");
}

static void refuse_float(
    struct parser *p, const char *name, double value, bool bad, bool with_param, const char *must) {
        struct buf text = {0};
        const char *got;

        if (!bad)
                return;
        add_python_float(&text, value);
        got = buf_cstr(&text);
        if (!buf_ok(&text))
                parser_no_memory(p);
        else if (with_param)
                parser_refuse(p, name, "%s must be %s, got %s. (parameter=%s, value=%s)", name, must, got, name, got);
        else
                parser_refuse(p, NULL, "%s must be %s, got %s.", name, must, got);
        buf_free(&text);
}

static void check_ranges(struct parser *p, const struct raw *raw) {
        double t = raw->temperature;

        if (raw->n < 1)
                parser_refuse(p, NULL, "n must be at least 1, got %lld.", (long long)raw->n);
        if (raw->n > OPENAI_N_MAX)
                parser_refuse(p, NULL, "n must be at most %d, got %lld.", OPENAI_N_MAX, (long long)raw->n);
        refuse_float(
            p, "presence_penalty", raw->presence, !(raw->presence >= -2 && raw->presence <= 2), false, "in [-2, 2]");
        refuse_float(p, "frequency_penalty", raw->frequency, !(raw->frequency >= -2 && raw->frequency <= 2), false,
            "in [-2, 2]");
        refuse_float(p, "repetition_penalty", raw->repetition, !(raw->repetition > 0), false, "greater than zero");
        refuse_float(p, "temperature", t, !isfinite(t), true, "a finite number");
        refuse_float(p, "temperature", t, t < 0, true, "non-negative");
        refuse_float(p, "temperature", t, t > 2, true, "in [0, 2]");
        refuse_float(p, "top_p", raw->top_p, !(raw->top_p > 0 && raw->top_p <= 1), true, "in (0, 1]");
        if (raw->top_k < -1)
                parser_refuse(p, NULL, "top_k must be 0 (disable), or at least 1, got %lld.", (long long)raw->top_k);
        refuse_float(p, "min_p", raw->min_p, !(raw->min_p >= 0 && raw->min_p <= 1), false, "in [0, 1]");
        if (raw->max_tokens < 1 && !(raw->max_tokens == 0 && p->r->echo && p->r->kind == OPENAI_COMPLETION))
                parser_refuse(p, "max_tokens",
                    "max_tokens must be at least 1, got %lld. (parameter=max_tokens, value=%lld)",
                    (long long)raw->max_tokens, (long long)raw->max_tokens);
        if (raw->min_tokens < 0)
                parser_refuse(
                    p, NULL, "min_tokens must be greater than or equal to 0, got %lld.", (long long)raw->min_tokens);
        if (t < 1e-5 && raw->n > 1)
                parser_refuse(p, NULL, "n must be 1 when using greedy sampling, got %lld.", (long long)raw->n);
        if (raw->max_tokens > p->defaults->max_model_len && p->r->has_max_tokens)
                parser_refuse(p, "max_tokens",
                    "max_tokens=%lld cannot be greater than max_model_len=%u. Please request fewer output tokens. "
                    "(parameter=max_tokens, value=%lld)",
                    (long long)raw->max_tokens, p->defaults->max_model_len, (long long)raw->max_tokens);
}

static void finish_sampling(struct parser *p, struct raw *raw) {
        struct openai_request *r = p->r;
        struct sampling_params *s = &r->sampling;
        yyjson_val *allowed = seen(raw, "allowed_token_ids");

        r->has_max_tokens = seen(raw, "max_tokens") || seen(raw, "max_completion_tokens");
        if (seen(raw, "max_completion_tokens"))
                raw->max_tokens = raw->max_completion_tokens;
        read_ids(p, seen(raw, "stop_token_ids"), &s->stop_ids, &s->stop_id_count);
        read_words(p, seen(raw, "bad_words"));
        read_bias(p, seen(raw, "logit_bias"));
        read_transfer(p, seen(raw, "kv_transfer_params"));
        read_stream_options(p, seen(raw, "stream_options"));
        read_logprobs(p, raw);
        if (seen(raw, "cache_salt") && r->cache_salt.len == 0)
                parser_refuse(p, "cache_salt",
                    "Parameter 'cache_salt' must be a non-empty string if provided. (parameter=cache_salt)");
        if (r->cache_salt.len > OPENAI_SALT_BYTES)
                parser_refuse(
                    p, "cache_salt", "cache_salt may have at most %d bytes. (parameter=cache_salt)", OPENAI_SALT_BYTES);
        refuse_unsupported(p, raw);
        check_ranges(p, raw);
        if (yyjson_is_arr(allowed)) {
                size_t given = yyjson_arr_size(allowed);

                read_ids(p, allowed, &s->allowed_ids, &s->allowed_count);
                if (given == 0)
                        parser_refuse(p, "allowed_token_ids",
                            "allowed_token_ids is not None and empty! (parameter=allowed_token_ids, value=[])");
                else if (s->allowed_count < given && given <= p->defaults->vocab)
                        parser_refuse(p, "allowed_token_ids",
                            "allowed_token_ids contains out-of-vocab token id! (parameter=allowed_token_ids)");
        }
        r->n = clamp_u32(raw->n);
        s->temperature = narrow(raw->temperature);
        s->top_p = narrow(raw->top_p);
        s->min_p = narrow(raw->min_p);
        s->presence_penalty = narrow(raw->presence);
        s->frequency_penalty = narrow(raw->frequency);
        s->repetition_penalty = narrow(raw->repetition);
        s->top_k = raw->top_k > INT32_MAX ? 0 : (int32_t)raw->top_k;
        s->max_tokens = clamp_u32(raw->max_tokens);
        s->min_tokens = clamp_u32(raw->min_tokens);
        r->priority = raw->priority > INT32_MAX   ? INT32_MAX
                      : raw->priority < INT32_MIN ? INT32_MIN
                                                  : (int32_t)raw->priority;
        if (r->prompt_count * (size_t)r->n > OPENAI_PROMPTS_MAX)
                parser_refuse(p, "n", "At most %d answers can be asked for at once: prompts times n (parameter=n)",
                    OPENAI_PROMPTS_MAX);
}

static void read_body(struct parser *p) {
        const struct openai_defaults *d = p->defaults;
        struct openai_request *r = p->r;
        struct raw raw = {.n = 1,
            .max_tokens = 16,
            .temperature = d->temperature,
            .top_p = d->top_p,
            .min_p = d->min_p,
            .top_k = d->top_k,
            .repetition = d->repetition_penalty};
        yyjson_val *kwargs;

        if (find_members(p, &raw) < 0)
                return;
        for (size_t i = 0; i < ROW_COUNT; i++) {
                if (raw.seen[i])
                        read_member(p, &raw, &rows[i], raw.seen[i]);
                if (raw.seen[i] && !strcmp(rows[i].name, "seed"))
                        read_seed(p, raw.seen[i]);
                if (raw.seen[i] && !strcmp(rows[i].name, "stop"))
                        read_stop(p, raw.seen[i]);
                if (!strcmp(rows[i].name, "messages") && r->kind == OPENAI_CHAT)
                        parse_messages(p, raw.seen[i]);
                if (!strcmp(rows[i].name, "prompt") && r->kind == OPENAI_COMPLETION)
                        parse_prompt(p, raw.seen[i]);
                if (!strcmp(rows[i].name, "tokens") && r->kind == OPENAI_DETOKENIZE)
                        parse_tokens(p, raw.seen[i]);
        }
        if (r->kind == OPENAI_TOKENIZE) {
                if (seen(&raw, "messages"))
                        parse_messages(p, seen(&raw, "messages"));
                else
                        parse_prompt(p, seen(&raw, "prompt"));
        }
        kwargs = seen(&raw, "chat_template_kwargs");
        r->thinking = truth(json_get(kwargs, "thinking"));
        if (r->thinking < 0)
                r->thinking = d->thinking;
        r->enable_thinking = truth(json_get(kwargs, "enable_thinking"));
        r->return_tokens_as_ids |= d->return_tokens_as_ids;
        if (r->continue_final_message && r->add_generation_prompt)
                parser_refuse(p, NULL, "Cannot set both `continue_final_message` and `add_generation_prompt` to True.");
        parse_tools(p, seen(&raw, "tools"), seen(&raw, "tool_choice"));
        if (r->kind == OPENAI_COMPLETION || r->kind == OPENAI_CHAT)
                finish_sampling(p, &raw);
        else
                refuse_unsupported(p, &raw);
}

/* Python's json module takes NaN and Infinity; a stricter parser is tried first because hardly anybody sends them. */
static int read_json(struct slice body, yyjson_doc **ret_document, struct openai_error *err) {
        struct error e;
        int r = json_parse_flags(body, YYJSON_READ_BIGNUM_AS_RAW, ret_document, &e);

        if (r == -EINVAL)
                r = json_parse_flags(body, YYJSON_READ_BIGNUM_AS_RAW | YYJSON_READ_ALLOW_INF_AND_NAN, ret_document, &e);
        if (r == -E2BIG)
                return openai_fail(
                    err, 400, "Bad Request", NULL, "The body is nested deeper than %d levels", JSON_DEPTH_MAX);
        return r == -EINVAL ? issue_bad_json(body, err) : r;
}

int openai_parse(enum openai_kind kind, struct slice body, const struct openai_defaults *defaults, struct arena *arena,
    struct openai_request *ret_request, struct openai_error *ret_err) {
        struct openai_request request = {.kind = kind,
            .n = 1,
            .sampling = {.logprobs = -1, .prompt_logprobs = -1},
            .skip_special = true,
            .add_special = kind == OPENAI_COMPLETION || kind == OPENAI_TOKENIZE,
            .add_generation_prompt = true,
            .include_reasoning = true};
        struct parser p = {.arena = arena, .defaults = defaults, .r = &request, .err = ret_err};
        int r;

        if (body.len == 0)
                return openai_fail(ret_err, 400, "Bad Request", "body",
                    "1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': "
                    "'None'}");
        r = read_json(body, &request.document, ret_err);
        if (r < 0)
                return r;
        p.root = yyjson_doc_get_root(request.document);
        if (yyjson_is_obj(p.root))
                read_body(&p);
        else
                issue_add(&p.issues, "model_attributes_type", "",
                    "Input should be a valid dictionary or object to extract fields from", p.root, NULL);
        r = p.failed;
        /* Errors of type are told before others, as they are found before. */
        if (r != -ENOMEM && p.issues.count)
                r = issues_end(&p.issues, ret_err);
        buf_free(&p.issues.text);
        if (r < 0) {
                openai_request_done(&request);
                return r;
        }
        *ret_request = request;
        return 0;
}

void openai_request_done(struct openai_request *r) {
        yyjson_doc_free(r->document);
        r->document = NULL;
}

static int keep(struct arena *arena, struct slice *text) {
        struct slice copy = arena_copy(arena, *text);

        if (!copy.ptr)
                return -ENOMEM;
        *text = copy;
        return 0;
}

int openai_request_settle(struct openai_request *r, struct arena *arena) {
        struct slice *stops = arena_array(arena, r->sampling.stop_count, sizeof(*stops));
        struct slice *const texts[] = {&r->model, &r->cache_salt, &r->request_id, &r->user};

        if (!stops)
                return -ENOMEM;
        for (uint32_t i = 0; i < r->sampling.stop_count; i++) {
                stops[i] = r->sampling.stop[i];
                if (keep(arena, &stops[i]) < 0)
                        return -ENOMEM;
        }
        for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
                if (keep(arena, texts[i]) < 0)
                        return -ENOMEM;
        r->sampling.stop = stops;
        r->sampling.bad_words = NULL;
        r->prompts = NULL;
        r->messages = NULL;
        r->tools = NULL;
        r->sampling.bad_word_count = 0;
        r->prompt_count = r->message_count = 0;
        openai_request_done(r);
        return 0;
}
