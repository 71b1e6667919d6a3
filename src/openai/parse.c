/* parse.c - requests as vLLM reads them: lenient where pydantic is, with its words where it refuses. */
#include "openai/openai.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Bounds of lists in one request; beyond them a request is a mistake or an attack. vLLM bounds `n` the same way. */
#define PROMPTS_MAX   4096u
#define MESSAGES_MAX  65536u
#define STOPS_MAX     1024u
#define N_MAX         16384
#define BIAS_MAX      65536u
#define BAD_WORDS_MAX 1024u

struct parsing {
        yyjson_val *body;
        const struct openai_defaults *defaults;
        struct arena *arena;
        struct openai_request *r;
        struct openai_error *err;
        int result; /* the first failure */
};

/* ---- failures ---------------------------------------------------------------------------------------------------------- */

static void out_of_memory(struct parsing *p) {
        if (p->result == 0)
                p->result = -ENOMEM;
}

/* "(parameter=x, value=y)" errors: vLLM's own checks. */
static void refuse(struct parsing *p, const char *param, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void refuse(struct parsing *p, const char *param, const char *format, ...) {
        char text[900];
        va_list args;

        if (p->result < 0)
                return;
        va_start(args, format);
        vsnprintf(text, sizeof(text), format, args);
        va_end(args);
        p->result = openai_fail(p->err, 400, "BadRequestError", param, "%s", text);
}

/* A value as pydantic shows it in its errors. */
static void show_input(yyjson_val *v, char *to, size_t size) {
        if (yyjson_is_str(v))
                snprintf(to, size, "%.*s", SLICE_ARG(slice_sub(json_slice(v), 0, 200)));
        else if (yyjson_is_obj(v))
                snprintf(to, size, "<dict of %zu items>", yyjson_obj_size(v));
        else if (yyjson_is_arr(v))
                snprintf(to, size, "<list of %zu items>", yyjson_arr_size(v));
        else if (yyjson_is_bool(v))
                snprintf(to, size, "%s", yyjson_get_bool(v) ? "True" : "False");
        else if (yyjson_is_null(v) || !v)
                snprintf(to, size, "None");
        else if (yyjson_is_real(v))
                snprintf(to, size, "%.17g", yyjson_get_real(v));
        else if (yyjson_is_uint(v))
                snprintf(to, size, "%llu", (unsigned long long)yyjson_get_uint(v));
        else
                snprintf(to, size, "%lld", (long long)yyjson_get_sint(v));
}

/* Errors of form, as pydantic words them: type "Bad Request", param "body.NAME". */
static void invalid(struct parsing *p, const char *type, const char *name, const char *message, yyjson_val *input) {
        char location[64], shown[256];

        if (p->result < 0)
                return;
        snprintf(location, sizeof(location), "body%s%s", *name ? "." : "", name);
        show_input(input, shown, sizeof(shown));
        p->result = openai_fail(p->err, 400, "Bad Request", location,
            "1 validation error:\n  {'type': '%s', 'loc': '%s', 'msg': '%s', 'input': '%s'}", type, location, message,
            shown);
}

/* ---- single values ------------------------------------------------------------------------------------------------------ */

static yyjson_val *member(struct parsing *p, const char *name) {
        yyjson_val *v = p->result == 0 ? json_get(p->body, name) : NULL;

        return v && !yyjson_is_null(v) ? v : NULL;
}

/* An integer as pydantic's lax mode takes it: 2, 2.0, "2", true. Returns whether it is there and good. */
static bool get_integer(struct parsing *p, const char *name, int64_t *ret) {
        yyjson_val *v = member(p, name);
        int r;

        if (!v)
                return false;
        if (yyjson_is_bool(v)) {
                *ret = yyjson_get_bool(v);
                return true;
        }
        if (yyjson_is_str(v)) {
                if (slice_to_i64(slice_trim(json_slice(v)), ret) == 0)
                        return true;
                invalid(
                    p, "int_parsing", name, "Input should be a valid integer, unable to parse string as an integer", v);
                return false;
        }
        r = json_to_i64(v, ret);
        if (r == -ERANGE)
                invalid(p, "less_than_equal", name, "Input should be less than or equal to 9223372036854775807", v);
        else if (r < 0 && yyjson_is_real(v))
                invalid(p, "int_from_float", name,
                    "Input should be a valid integer, got a number with a fractional part", v);
        else if (r < 0)
                invalid(p, "int_type", name, "Input should be a valid integer", v);
        return r == 0;
}

static bool get_float(struct parsing *p, const char *name, double *ret) {
        yyjson_val *v = member(p, name);

        if (!v)
                return false;
        if (yyjson_is_bool(v)) {
                *ret = yyjson_get_bool(v);
                return true;
        }
        if (yyjson_is_str(v)) {
                if (slice_to_double(slice_trim(json_slice(v)), ret) == 0)
                        return true;
                invalid(
                    p, "float_parsing", name, "Input should be a valid number, unable to parse string as a number", v);
                return false;
        }
        if (json_to_double(v, ret) == 0)
                return true;
        invalid(p, "float_type", name, "Input should be a valid number", v);
        return false;
}

static bool get_bool(struct parsing *p, const char *name, bool otherwise) {
        static const char *const yes[] = {"true", "1", "yes", "y", "on", "t"}, *const no[] = {
                                                                                   "false", "0", "no", "n", "off", "f"};
        yyjson_val *v = member(p, name);
        int64_t number;

        if (!v)
                return otherwise;
        if (yyjson_is_bool(v))
                return yyjson_get_bool(v);
        if (json_to_i64(v, &number) == 0 && (number == 0 || number == 1))
                return number;
        for (size_t i = 0; yyjson_is_str(v) && i < 6; i++) {
                if (slice_is_icase(json_slice(v), yes[i]))
                        return true;
                if (slice_is_icase(json_slice(v), no[i]))
                        return false;
        }
        invalid(p, "bool_parsing", name, "Input should be a valid boolean, unable to interpret input", v);
        return otherwise;
}

static struct slice get_text(struct parsing *p, const char *name) {
        yyjson_val *v = member(p, name);

        if (!v)
                return SLICE_NONE;
        if (!yyjson_is_str(v))
                invalid(p, "string_type", name, "Input should be a valid string", v);
        return json_slice(v);
}

static void *allocate(struct parsing *p, size_t count, size_t size) {
        void *memory = arena_array(p->arena, count ? count : 1, size);

        if (!memory)
                out_of_memory(p);
        return memory;
}

/* A list of token ids. */
static const uint32_t *get_ids(struct parsing *p, const char *name, uint32_t *ret_count) {
        yyjson_val *v = member(p, name), *item;
        uint32_t *ids;
        size_t i, n;

        *ret_count = 0;
        if (!v)
                return NULL;
        if (!yyjson_is_arr(v)) {
                invalid(p, "list_type", name, "Input should be a valid list", v);
                return NULL;
        }
        ids = allocate(p, yyjson_arr_size(v), sizeof(*ids));
        yyjson_arr_foreach(v, i, n, item) {
                int64_t id;

                if (!ids)
                        return NULL;
                if (json_to_i64(item, &id) < 0) {
                        invalid(p, "int_type", name, "Input should be a valid integer", item);
                        return NULL;
                }
                ids[i] = id < 0 || id > UINT32_MAX ? UINT32_MAX : (uint32_t)id;
        }
        *ret_count = (uint32_t)yyjson_arr_size(v);
        return ids;
}

/* A string or a list of strings. */
static const struct slice *get_texts(struct parsing *p, const char *name, size_t max, uint32_t *ret_count) {
        yyjson_val *v = member(p, name), *item;
        struct slice *texts;
        size_t i, n, count = yyjson_is_arr(v) ? yyjson_arr_size(v) : 1;

        *ret_count = 0;
        if (!v)
                return NULL;
        if (count > max) {
                refuse(p, name, "%s has %zu entries, at most %zu are allowed. (parameter=%s)", name, count, max, name);
                return NULL;
        }
        texts = allocate(p, count, sizeof(*texts));
        if (!texts)
                return NULL;
        if (yyjson_is_str(v)) {
                texts[0] = json_slice(v);
                *ret_count = 1;
                return texts;
        }
        if (!yyjson_is_arr(v)) {
                invalid(p, "list_type", name, "Input should be a valid list", v);
                return NULL;
        }
        yyjson_arr_foreach(v, i, n, item) {
                if (!yyjson_is_str(item)) {
                        invalid(p, "string_type", name, "Input should be a valid string", item);
                        return NULL;
                }
                texts[i] = json_slice(item);
        }
        *ret_count = (uint32_t)count;
        return texts;
}

/* ---- sampling ------------------------------------------------------------------------------------------------------------- */

static float python_float(double v, char *to, size_t size) {
        struct buf b = {0};

        buf_add_double(&b, v);
        snprintf(to, size, "%s", buf_cstr(&b));
        buf_free(&b);
        return (float)v;
}

static void parse_temperature(struct parsing *p, struct sampling_params *s) {
        double v = p->defaults->temperature;
        char shown[40];

        get_float(p, "temperature", &v);
        s->temperature = python_float(v, shown, sizeof(shown));
        if (v < 0)
                refuse(p, "temperature", "temperature must be non-negative, got %s. (parameter=temperature, value=%s)",
                    shown, shown);
        else if (v > 2)
                refuse(p, "temperature", "temperature must be in [0, 2], got %s. (parameter=temperature, value=%s)",
                    shown, shown);
}

static float parse_penalty(struct parsing *p, const char *name) {
        double v = 0;
        char shown[40];

        get_float(p, name, &v);
        python_float(v, shown, sizeof(shown));
        if (v < -2 || v > 2)
                refuse(p, NULL, "%s must be in [-2, 2], got %s.", name, shown);
        return (float)v;
}

static void parse_filters(struct parsing *p, struct sampling_params *s) {
        double top_p = p->defaults->top_p, min_p = p->defaults->min_p, repetition = p->defaults->repetition_penalty;
        int64_t top_k = p->defaults->top_k;
        char shown[40];

        get_float(p, "top_p", &top_p);
        s->top_p = python_float(top_p, shown, sizeof(shown));
        if (top_p <= 0 || top_p > 1)
                refuse(p, "top_p", "top_p must be in (0, 1], got %s. (parameter=top_p, value=%s)", shown, shown);
        get_float(p, "min_p", &min_p);
        s->min_p = python_float(min_p, shown, sizeof(shown));
        if (min_p < 0 || min_p > 1)
                refuse(p, NULL, "min_p must be in [0, 1], got %s.", shown);
        get_float(p, "repetition_penalty", &repetition);
        s->repetition_penalty = python_float(repetition, shown, sizeof(shown));
        if (repetition <= 0)
                refuse(p, NULL, "repetition_penalty must be greater than zero, got %s.", shown);
        get_integer(p, "top_k", &top_k);
        if (top_k < -1)
                refuse(p, NULL, "top_k must be 0 (disable), or at least 1, got %lld.", (long long)top_k);
        s->top_k = top_k > INT32_MAX ? INT32_MAX : (int32_t)top_k;
}

static void parse_bias(struct parsing *p, struct sampling_params *s) {
        yyjson_val *v = member(p, "logit_bias"), *key;
        yyjson_obj_iter iter;
        struct openai_bias *list;

        if (!v)
                return;
        if (!yyjson_is_obj(v) || yyjson_obj_size(v) > BIAS_MAX) {
                invalid(p, "dict_type", "logit_bias", "Input should be a valid dictionary", v);
                return;
        }
        list = allocate(p, yyjson_obj_size(v), sizeof(*list));
        yyjson_obj_iter_init(v, &iter);
        while (list && p->result == 0 && (key = yyjson_obj_iter_next(&iter))) {
                double bias;
                int64_t id;

                if (slice_to_i64(json_slice(key), &id) < 0)
                        refuse(p, "logit_bias",
                            "logit_bias contains key(s) that cannot be converted to integer token IDs: ['%.*s'] "
                            "(parameter=logit_bias, value=['%.*s'])",
                            SLICE_ARG(json_slice(key)), SLICE_ARG(json_slice(key)));
                else if (json_to_double(yyjson_obj_iter_get_val(key), &bias) < 0)
                        invalid(p, "float_type", "logit_bias", "Input should be a valid number",
                            yyjson_obj_iter_get_val(key));
                else if (id < 0 || id >= p->defaults->vocab)
                        refuse(p, "logit_bias",
                            "token_id(s) [%lld] in logit_bias contain out-of-vocab token ids. Vocabulary size: %u "
                            "(parameter=logit_bias, value=[%lld])",
                            (long long)id, p->defaults->vocab, (long long)id);
                else /* vLLM clamps to [-100, 100] */
                        list[s->bias_count++] = (struct openai_bias){(uint32_t)id, (float)fmin(fmax(bias, -100), 100)};
        }
        s->bias = list;
}

static void parse_tokens_limits(struct parsing *p, struct sampling_params *s) {
        int64_t max = 16, min = 0, chat_max;
        bool echo = p->r->kind == OPENAI_COMPLETION && p->r->echo;

        p->r->has_max_tokens = get_integer(p, "max_tokens", &max);
        if (p->r->kind == OPENAI_CHAT && get_integer(p, "max_completion_tokens", &chat_max)) {
                max = chat_max;
                p->r->has_max_tokens = true;
        }
        if (max < (echo ? 0 : 1))
                refuse(p, "max_tokens", "max_tokens must be at least 1, got %lld. (parameter=max_tokens, value=%lld)",
                    (long long)max, (long long)max);
        else if (p->r->has_max_tokens && max > p->defaults->max_model_len)
                refuse(p, "max_tokens",
                    "max_tokens=%lld cannot be greater than max_model_len=%u. Please request fewer output tokens. "
                    "(parameter=max_tokens, value=%lld)",
                    (long long)max, p->defaults->max_model_len, (long long)max);
        if (get_integer(p, "min_tokens", &min) && min < 0)
                refuse(p, NULL, "min_tokens must be greater than or equal to 0, got %lld.", (long long)min);
        else if (p->r->has_max_tokens && min > max)
                refuse(p, NULL, "min_tokens must be less than or equal to max_tokens=%lld, got %lld.", (long long)max,
                    (long long)min);
        s->max_tokens = max < 0 ? 0 : (uint32_t)max;
        s->min_tokens = min < 0 ? 0 : min > UINT32_MAX ? UINT32_MAX : (uint32_t)min;
}

static void check_logprobs(struct parsing *p, const char *what, const char *name, int64_t value, int32_t *ret) {
        int64_t most = p->defaults->max_logprobs < 0 ? p->defaults->vocab : p->defaults->max_logprobs;

        if (value < -1)
                refuse(p, name, "%s must be a non-negative value or -1, got %lld. (parameter=%s, value=%lld)", name,
                    (long long)value, name, (long long)value);
        if (value == -1)
                value = p->defaults->vocab;
        if (value > most)
                refuse(p, name,
                    "Requested %s logprobs of %lld, which is greater than max allowed: %lld (parameter=%s, value=%lld)",
                    what, (long long)value, (long long)most, name, (long long)value);
        *ret = (int32_t)value;
}

static void parse_logprobs(struct parsing *p, struct sampling_params *s) {
        int64_t value = 0;

        s->logprobs = s->prompt_logprobs = -1;
        if (p->r->kind == OPENAI_COMPLETION) {
                if (get_integer(p, "logprobs", &value))
                        check_logprobs(p, "sample", "logprobs", value, &s->logprobs);
        } else {
                bool wanted = get_bool(p, "logprobs", false), top = get_integer(p, "top_logprobs", &value);

                if (top && !wanted)
                        refuse(p, "top_logprobs",
                            "when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs)");
                if (wanted)
                        check_logprobs(p, "sample", "logprobs", top ? value : 0, &s->logprobs);
        }
        if (get_integer(p, "prompt_logprobs", &value)) {
                if (p->r->stream)
                        refuse(p, "prompt_logprobs",
                            "`prompt_logprobs` are not available when `stream=True`. (parameter=prompt_logprobs)");
                check_logprobs(p, "prompt", "prompt_logprobs", value, &s->prompt_logprobs);
        }
        if (p->r->kind == OPENAI_COMPLETION && p->r->echo && s->logprobs >= 0 && s->prompt_logprobs < 0)
                s->prompt_logprobs = s->logprobs; /* echoed tokens carry theirs */
}

static void parse_sampling(struct parsing *p) {
        struct sampling_params *s = &p->r->sampling;
        int64_t number = 1;

        if (get_integer(p, "n", &number) && (number < 1 || number > N_MAX))
                refuse(p, NULL, number < 1 ? "n must be at least 1, got %lld." : "n must be at most 16384, got %lld.",
                    (long long)number);
        p->r->n = (uint32_t)number;
        parse_tokens_limits(p, s);
        parse_temperature(p, s);
        parse_filters(p, s);
        s->presence_penalty = parse_penalty(p, "presence_penalty");
        s->frequency_penalty = parse_penalty(p, "frequency_penalty");
        s->has_seed = get_integer(p, "seed", &s->seed);
        s->ignore_eos = get_bool(p, "ignore_eos", false);
        parse_logprobs(p, s);
        s->stop_ids = get_ids(p, "stop_token_ids", &s->stop_id_count);
        s->stop = get_texts(p, "stop", STOPS_MAX, &s->stop_count);
        for (uint32_t i = 0; i < s->stop_count; i++)
                if (s->stop[i].len == 0)
                        refuse(p, NULL, "stop cannot contain an empty string.");
        s->include_stop = get_bool(p, "include_stop_str_in_output", false);
        parse_bias(p, s);
        s->allowed_ids = get_ids(p, "allowed_token_ids", &s->allowed_count);
        if (s->allowed_ids && s->allowed_count == 0)
                refuse(p, "allowed_token_ids",
                    "allowed_token_ids is not None and empty! (parameter=allowed_token_ids, value=[])");
        for (uint32_t i = 0; i < s->allowed_count; i++)
                if (s->allowed_ids[i] >= p->defaults->vocab)
                        refuse(p, "allowed_token_ids", "allowed_token_ids contains out-of-vocab token id!");
        s->bad_words = get_texts(p, "bad_words", BAD_WORDS_MAX, &s->bad_word_count);
        if (p->r->n > 1 && s->temperature < 1e-5f)
                refuse(p, NULL, "n must be 1 when using greedy sampling, got %u.", p->r->n);
}

/* ---- completion ------------------------------------------------------------------------------------------------------------ */

static bool parse_id_list(struct parsing *p, yyjson_val *list, struct openai_prompt *ret) {
        uint32_t *ids = allocate(p, yyjson_arr_size(list), sizeof(*ids));
        yyjson_val *item;
        size_t i, n;

        if (!ids)
                return false;
        yyjson_arr_foreach(list, i, n, item) {
                int64_t id;

                if (json_to_i64(item, &id) < 0 || !yyjson_is_num(item)) {
                        invalid(p, yyjson_is_real(item) ? "int_from_float" : "int_parsing", "prompt",
                            yyjson_is_real(item)
                                ? "Input should be a valid integer, got a number with a fractional part"
                                : "Input should be a valid integer, unable to parse string as an integer",
                            item);
                        return false;
                }
                if (id < 0) {
                        invalid(p, "greater_than_equal", "prompt", "Input should be greater than or equal to 0", item);
                        return false;
                }
                if (id >= p->defaults->vocab) {
                        refuse(p, NULL, "Token id %lld is out of vocabulary", (long long)id);
                        return false;
                }
                ids[i] = (uint32_t)id;
        }
        *ret = (struct openai_prompt){.is_ids = true, .ids = ids, .count = yyjson_arr_size(list)};
        return true;
}

static void parse_prompts(struct parsing *p) {
        yyjson_val *v = member(p, "prompt"), *first = yyjson_arr_get_first(v), *item;
        struct openai_prompt *list;
        size_t i, n, count = yyjson_is_arr(v) && !yyjson_is_num(first) ? yyjson_arr_size(v) : 1;

        if (p->result < 0)
                return;
        if (!v || (yyjson_is_str(v) && yyjson_get_len(v) == 0)) {
                refuse(
                    p, "prompt", "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)");
                return;
        }
        if (yyjson_is_arr(v) && yyjson_arr_size(v) == 0) {
                refuse(p, NULL, "You must pass at least one prompt");
                return;
        }
        if (!yyjson_is_arr(v) && !yyjson_is_str(v)) {
                invalid(p, "list_type", "prompt", "Input should be a valid list", v);
                return;
        }
        if (count > PROMPTS_MAX) {
                refuse(p, "prompt", "%zu prompts in one request, at most %u are allowed. (parameter=prompt)", count,
                    PROMPTS_MAX);
                return;
        }
        list = allocate(p, count, sizeof(*list));
        if (!list)
                return;
        if (yyjson_is_str(v))
                list[0] = (struct openai_prompt){.text = json_slice(v)};
        else if (yyjson_is_num(first)) {
                if (!parse_id_list(p, v, &list[0]))
                        return;
        } else
                yyjson_arr_foreach(v, i, n, item) {
                        if (yyjson_is_str(item) && yyjson_is_str(first))
                                list[i] = (struct openai_prompt){.text = json_slice(item)};
                        else if (!yyjson_is_arr(item) || !yyjson_is_arr(first)) {
                                invalid(p, "list_type", "prompt", "Input should be a valid list", item);
                                return;
                        } else if (!parse_id_list(p, item, &list[i]))
                                return;
                }
        p->r->prompts = list;
        p->r->prompt_count = count;
}

/* ---- chat ------------------------------------------------------------------------------------------------------------------ */

/* Text parts of a list, joined by newlines as vLLM joins them for templates that take strings. */
static bool parse_parts(struct parsing *p, yyjson_val *parts, struct slice *ret_text) {
        struct buf text = {0};
        yyjson_val *part;
        size_t i, n;

        yyjson_arr_foreach(parts, i, n, part) {
                struct slice type = json_get_slice(part, "type");
                yyjson_val *value = yyjson_is_str(part) ? part : json_get(part, "text");

                if (type.len && !slice_is(type, "text") && !slice_is(type, "input_text") &&
                    !slice_is(type, "output_text")) {
                        refuse(p, NULL, "%.*s is not a multimodal model",
                            SLICE_ARG(p->r->model.len ? slice_sub(p->r->model, 0, 200) : SLICE_LIT("this model")));
                        buf_free(&text);
                        return false;
                }
                if (text.len)
                        buf_add_char(&text, '\n');
                buf_add(&text, json_slice(value));
        }
        *ret_text = arena_copy(p->arena, buf_slice(&text));
        if (!buf_ok(&text) || !ret_text->ptr)
                out_of_memory(p);
        buf_free(&text);
        return p->result == 0;
}

static void parse_tool_calls(struct parsing *p, yyjson_val *calls, struct openai_message *m) {
        struct openai_tool_call *list;
        yyjson_val *call;
        size_t i, n;

        if (!yyjson_is_arr(calls) || yyjson_arr_size(calls) == 0)
                return;
        list = allocate(p, yyjson_arr_size(calls), sizeof(*list));
        if (!list)
                return;
        yyjson_arr_foreach(calls, i, n, call) {
                yyjson_val *function = json_get(call, "function"), *arguments = json_get(function, "arguments");

                list[i] = (struct openai_tool_call){
                    json_get_slice(call, "id"), json_get_slice(function, "name"), json_slice(arguments)};
                if (yyjson_is_obj(arguments)) { /* some clients send the object itself */
                        struct buf json = {0};

                        json_add_value(&json, arguments);
                        list[i].arguments = arena_copy(p->arena, buf_slice(&json));
                        buf_free(&json);
                }
        }
        m->tool_calls = list;
        m->tool_call_count = yyjson_arr_size(calls);
}

static void parse_message(struct parsing *p, yyjson_val *v, struct openai_message *m) {
        yyjson_val *content = json_get(v, "content");

        if (!yyjson_is_str(json_get(v, "role"))) {
                invalid(p, "missing", "messages", "Field required", v);
                return;
        }
        m->role = json_get_slice(v, "role");
        m->name = json_get_slice(v, "name");
        m->tool_call_id = json_get_slice(v, "tool_call_id");
        m->reasoning = json_get_slice(v, "reasoning");
        if (!m->reasoning.len)
                m->reasoning = json_get_slice(v, "reasoning_content");
        m->prefix = json_get_bool(v, "prefix", false);
        if (yyjson_is_str(content)) {
                m->has_content = true;
                m->content = json_slice(content);
        } else if (yyjson_is_arr(content))
                m->has_content = parse_parts(p, content, &m->content);
        else if (content && (!yyjson_is_null(content) || !slice_is(m->role, "assistant")))
                invalid(p, "string_type", "messages", "Input should be a valid string", content);
        parse_tool_calls(p, json_get(v, "tool_calls"), m);
}

static void parse_messages(struct parsing *p) {
        yyjson_val *v = p->result == 0 ? json_get(p->body, "messages") : NULL, *item;
        struct openai_message *list;
        size_t i, n;

        if (p->result < 0)
                return;
        if (!v) {
                invalid(p, "missing", "messages", "Field required", p->body);
                return;
        }
        if (!yyjson_is_arr(v) || yyjson_arr_size(v) > MESSAGES_MAX) {
                invalid(p, "list_type", "messages", "Input should be a valid list", v);
                return;
        }
        if (yyjson_arr_size(v) == 0) {
                refuse(p, NULL, "Cannot apply chat template to an empty conversation. Provide at least one message.");
                return;
        }
        list = allocate(p, yyjson_arr_size(v), sizeof(*list));
        if (!list)
                return;
        yyjson_arr_foreach(v, i, n, item) {
                parse_message(p, item, &list[i]);
                if (p->result < 0)
                        return;
        }
        p->r->messages = list;
        p->r->message_count = yyjson_arr_size(v);
}

static bool has_tool(yyjson_val *tools, struct slice name) {
        yyjson_val *tool;
        size_t i, n;

        yyjson_arr_foreach(
            tools, i, n, tool) if (slice_eq(json_get_slice(json_get(tool, "function"), "name"), name)) return true;
        return false;
}

static void parse_tools(struct parsing *p) {
        yyjson_val *tools = member(p, "tools"), *choice = member(p, "tool_choice");
        struct slice text = json_slice(choice);

        if (tools && !yyjson_is_arr(tools))
                invalid(p, "list_type", "tools", "Input should be a valid list", tools);
        else if (tools && yyjson_arr_size(tools) == 0)
                refuse(p, "tools",
                    "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely. "
                    "(parameter=tools)");
        p->r->tools = tools;
        p->r->tool_choice = tools ? TOOL_CHOICE_AUTO : TOOL_CHOICE_NONE;
        if (!choice || slice_is(text, "none")) {
                if (choice)
                        p->r->tool_choice = TOOL_CHOICE_NONE;
                return;
        }
        if (!tools) {
                refuse(p, "tool_choice", "When using `tool_choice`, `tools` must be set. (parameter=tool_choice)");
                return;
        }
        if (slice_is(text, "auto"))
                return;
        if (slice_is(text, "required")) {
                p->r->tool_choice = TOOL_CHOICE_REQUIRED;
                return;
        }
        p->r->tool_choice = TOOL_CHOICE_NAMED;
        p->r->tool_choice_name = json_get_slice(json_get(choice, "function"), "name");
        if (!has_tool(tools, p->r->tool_choice_name))
                refuse(p, "tool_choice",
                    "The tool specified in `tool_choice` does not match any of the specified `tools` "
                    "(parameter=tool_choice)");
}

static int get_switch(yyjson_val *object, const char *name) {
        yyjson_val *v = json_get(object, name);

        return yyjson_is_bool(v) ? yyjson_get_bool(v) : -1;
}

static void parse_chat(struct parsing *p) {
        yyjson_val *kwargs = member(p, "chat_template_kwargs");

        parse_messages(p);
        parse_tools(p);
        p->r->add_generation_prompt = get_bool(p, "add_generation_prompt", true);
        p->r->continue_final_message = get_bool(p, "continue_final_message", false);
        if (p->r->continue_final_message && p->r->add_generation_prompt)
                refuse(p, NULL, "Cannot set both `continue_final_message` and `add_generation_prompt` to True.");
        if (member(p, "chat_template"))
                refuse(p, NULL,
                    "Chat template is passed with request, but --trust-request-chat-template is not set. Refused "
                    "request with untrusted chat template.");
        p->r->thinking = get_switch(kwargs, "thinking");
        p->r->enable_thinking = get_switch(kwargs, "enable_thinking");
        p->r->include_reasoning = get_bool(p, "include_reasoning", true);
        p->r->add_special = get_bool(p, "add_special_tokens", false);
}

/* ---- the whole -------------------------------------------------------------------------------------------------------------- */

static void parse_stream(struct parsing *p) {
        yyjson_val *options = member(p, "stream_options");

        p->r->stream = get_bool(p, "stream", false);
        if (options && !p->r->stream)
                refuse(p, "stream_options",
                    "Stream options can only be defined when `stream=True`. (parameter=stream_options)");
        p->r->include_usage = json_get_bool(options, "include_usage", false);
        p->r->continuous_usage = p->r->include_usage && json_get_bool(options, "continuous_usage_stats", false);
}

/* Output that is bound to a grammar is refused rather than silently not done. */
static void refuse_constraints(struct parsing *p) {
        struct slice type = json_get_slice(member(p, "response_format"), "type");

        if (member(p, "response_format") && type.len && !slice_is(type, "text"))
                refuse(p, "response_format",
                    "response_format `%.*s` is not supported by this engine (parameter=response_format)",
                    SLICE_ARG(slice_sub(type, 0, 60)));
        if (member(p, "structured_outputs"))
                refuse(p, "structured_outputs",
                    "structured_outputs are not supported by this engine (parameter=structured_outputs)");
        if (p->r->kind == OPENAI_COMPLETION && member(p, "suffix"))
                refuse(p, "suffix", "suffix is not currently supported (parameter=suffix)");
}

static void parse_all(struct parsing *p) {
        struct openai_request *r = p->r;
        yyjson_val *salt = member(p, "cache_salt");
        int64_t number = 0;

        r->model = get_text(p, "model");
        r->echo = get_bool(p, "echo", false);
        parse_stream(p);
        if (r->kind == OPENAI_COMPLETION) {
                parse_prompts(p);
                r->add_special = get_bool(p, "add_special_tokens", true);
        } else
                parse_chat(p);
        parse_sampling(p);
        refuse_constraints(p);
        r->skip_special = get_bool(p, "skip_special_tokens", true);
        r->spaces_between_special = get_bool(p, "spaces_between_special_tokens", true);
        r->return_token_ids = get_bool(p, "return_token_ids", false);
        r->return_tokens_as_ids = get_bool(p, "return_tokens_as_token_ids", false);
        r->request_id = get_text(p, "request_id");
        r->user = get_text(p, "user");
        r->cache_salt = get_text(p, "cache_salt");
        if (salt && r->cache_salt.len == 0)
                refuse(p, "cache_salt",
                    "Parameter 'cache_salt' must be a non-empty string if provided. (parameter=cache_salt)");
        if (get_integer(p, "priority", &number))
                r->priority = number > INT32_MAX ? INT32_MAX : number < INT32_MIN ? INT32_MIN : (int32_t)number;
        if (get_integer(p, "truncate_prompt_tokens", &r->truncate_prompt_tokens) && r->truncate_prompt_tokens < -1)
                invalid(p, "greater_than_equal", "truncate_prompt_tokens",
                    "Input should be greater than or equal to -1", member(p, "truncate_prompt_tokens"));
        if (member(p, "kv_transfer_params")) {
                struct buf json = {0};

                json_add_value(&json, member(p, "kv_transfer_params"));
                r->kv_transfer_params = arena_copy(p->arena, buf_slice(&json));
                buf_free(&json);
                if (!r->kv_transfer_params.ptr)
                        out_of_memory(p);
        }
}

int openai_parse(enum openai_kind kind, struct slice body, const struct openai_defaults *defaults, struct arena *arena,
    struct openai_request *ret_request, struct openai_error *ret_err) {
        struct openai_request r = {.kind = kind, .thinking = -1, .enable_thinking = -1};
        struct parsing p = {.defaults = defaults, .arena = arena, .r = &r, .err = ret_err};
        struct error e = {0};
        int result;

        if (slice_trim(body).len == 0)
                return openai_fail(ret_err, 400, "Bad Request", "body",
                    "1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': "
                    "'None'}");
        result = json_parse(body, &r.document, &e);
        if (result == -ENOMEM)
                return result;
        if (result < 0)
                return openai_fail(ret_err, 400, "Bad Request", "body",
                    "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body', 'msg': 'JSON decode error', 'ctx': "
                    "{'error': '%.300s'}}",
                    e.text);
        p.body = yyjson_doc_get_root(r.document);
        if (!yyjson_is_obj(p.body))
                invalid(&p, "model_attributes_type", "",
                    "Input should be a valid dictionary or object to extract fields from", p.body);
        parse_all(&p);
        if (p.result < 0) {
                yyjson_doc_free(r.document);
                return p.result;
        }
        *ret_request = r;
        return 0;
}

void openai_request_done(struct openai_request *r) {
        yyjson_doc_free(r->document);
        r->document = NULL;
}
