/* facts.c - see facts.h. */
#include "gateway/facts.h"
#include "base/hash.h"
#include <errno.h>
#include <stdio.h>

/* A token is four bytes of prose, on average, in the languages that most prompts are in; code and Chinese have more
 * tokens per byte, so this errs by a factor of two at most, for all instances alike. */
#define BYTES_PER_TOKEN 4
/* Where the client gives no limit, or a huge one: what an answer comes to on average. Longer answers make an error that
 * is corrected when they end. */
#define USUAL_OUTPUT 512

int facts_integer(struct slice value, int64_t *ret_value) {
        double number;

        if (openai_is_string(value))
                value = slice_trim(openai_inside(value));
        if (slice_to_i64(value, ret_value) == 0)
                return 0;
        if (slice_to_double(value, &number) < 0 || number < -0x1p52 || number > 0x1p52 ||
            number != (double)(int64_t)number)
                return -EINVAL;
        *ret_value = (int64_t)number;
        return 0;
}

bool facts_true(struct slice value) {
        static const char *const words[] = {"true", "1", "yes", "on", "y", "t", "1.0"};

        if (openai_is_string(value))
                value = openai_inside(value);
        for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
                if (slice_is_icase(value, words[i]))
                        return true;
        return false;
}

/* Whether a member is there and says more than nothing. */
static bool says(struct slice v) {
        return !openai_is_null(v) && !slice_is(v, "[]") && !slice_is(v, "{}") && !slice_is(v, "\"\"");
}

static bool is_nonzero(struct slice v) {
        double number;

        return !openai_is_null(v) && (slice_to_double(v, &number) < 0 || number != 0);
}

/* ---- prompts -------------------------------------------------------------------------------------------------------- */

/* By their commas. */
uint64_t facts_count_ids(struct slice prompt) {
        struct slice rest = prompt, first;
        uint64_t n = 1;

        if (prompt.len == 0 || prompt.ptr[0] != '[' || !openai_next_item(&rest, &first) || first.len == 0 ||
            strchr("\"{[", first.ptr[0]))
                return 0;
        for (size_t at = slice_find(prompt, ',', 0); at < prompt.len; at = slice_find(prompt, ',', at + 1))
                n++;
        return n;
}

/* Text by its bytes. */
uint64_t facts_estimate(struct slice prompt) {
        uint64_t ids = facts_count_ids(prompt);

        return ids > 0 ? ids : prompt.len / BYTES_PER_TOKEN + 1;
}

int facts_prompt(const struct facts *f, struct slice prompt, struct arena *arena, struct prompt *ret_prompt) {
        static const char *const before[] = {"model", "tools", "cache_salt"};
        uint64_t *keys = arena_array(arena, PREFIX_KEYS_MAX, sizeof(*keys)), seed = f->api;

        if (!keys)
                return -ENOMEM;
        for (size_t i = 0; i < sizeof(before) / sizeof(*before); i++)
                seed = hash64(openai_find(f->members, f->member_count, before[i]), seed);
        *ret_prompt = (struct prompt){.keys = keys,
            .key_count = prefix_keys(prompt, seed, keys),
            .bytes = prompt.len,
            .tokens = facts_estimate(prompt)};
        return 0;
}

/* Split a list of prompts. A list of numbers is one prompt; anything mixed is left to the engine as it is. */
static int read_prompts(struct slice prompt, struct arena *arena, struct facts *f) {
        struct slice rest = prompt, item, *prompts;
        size_t count = 0, i = 0;

        f->prompt_count = 1;
        if (prompt.len == 0 || prompt.ptr[0] != '[')
                return 0;
        if (!openai_next_item(&rest, &item) || (item.ptr[0] != '"' && item.ptr[0] != '['))
                return 0;
        for (rest = prompt; openai_next_item(&rest, &item); count++)
                if (item.ptr[0] != '"' && item.ptr[0] != '[')
                        return 0;
        prompts = arena_array(arena, count, sizeof(*prompts));
        if (!prompts)
                return -ENOMEM;
        for (rest = prompt; openai_next_item(&rest, &item);)
                prompts[i++] = item;
        f->prompts = prompts;
        f->prompt_count = count;
        return 0;
}

/* ---- the rest ------------------------------------------------------------------------------------------------------- */

static void read_limits(
    struct facts *f, struct slice max_tokens, struct slice max_completion, struct slice min_tokens) {
        int64_t value;

        f->max_tokens = -1;
        f->max_understood = f->min_understood = true;
        /* In chat the newer name wins, as in vLLM; completions do not know it. */
        if (f->api == API_CHAT && !openai_is_null(max_completion))
                max_tokens = max_completion;
        if (!openai_is_null(max_tokens)) {
                f->max_understood = facts_integer(max_tokens, &value) == 0 && value > 0;
                if (f->max_understood)
                        f->max_tokens = value;
        }
        if (!openai_is_null(min_tokens)) {
                f->min_understood = facts_integer(min_tokens, &value) == 0 && value >= 0;
                if (f->min_understood)
                        f->min_tokens = value;
        }
        f->output_tokens = f->max_tokens >= 0 && f->max_tokens < USUAL_OUTPUT ? (uint64_t)f->max_tokens : USUAL_OUTPUT;
}

static bool is_text_format(struct slice format) {
        struct openai_member m[8];
        size_t n, at;

        return openai_scan(format, m, 8, &n, &at) == 0 && slice_is(openai_find(m, n, "type"), "\"text\"");
}

static const char *find_bound(const struct facts *f) {
        static const char *const structured[] = {
            "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"};
        struct slice format = openai_find(f->members, f->member_count, "response_format");

        if (f->api == API_CHAT && says(openai_find(f->members, f->member_count, "tools")) &&
            !slice_is(openai_find(f->members, f->member_count, "tool_choice"), "\"none\""))
                return "tools";
        if (says(format) && !is_text_format(format))
                return "response_format";
        for (size_t i = 0; i < sizeof(structured) / sizeof(*structured); i++)
                if (says(openai_find(f->members, f->member_count, structured[i])))
                        return structured[i];
        if (is_nonzero(openai_find(f->members, f->member_count, "presence_penalty")))
                return "presence_penalty";
        if (is_nonzero(openai_find(f->members, f->member_count, "frequency_penalty")))
                return "frequency_penalty";
        if (f->api == API_CHAT && facts_true(openai_find(f->members, f->member_count, "logprobs")))
                return "logprobs";
        return NULL;
}

static void read_stream(struct facts *f) {
        struct slice options = openai_find(f->members, f->member_count, "stream_options");
        struct openai_member m[16];
        size_t n, at;

        f->stream = facts_true(openai_find(f->members, f->member_count, "stream"));
        if (f->stream && openai_scan(options, m, 16, &n, &at) == 0)
                f->include_usage = facts_true(openai_find(m, n, "include_usage"));
}

static int fail(struct openai_error *err, const char *where, const char *message) {
        return openai_fail(err, 400, "Bad Request", where, "%s", message);
}

int facts_read(
    enum api api, struct slice body, struct arena *arena, struct facts *ret_facts, struct openai_error *ret_err) {
        struct openai_member scanned[OPENAI_MEMBERS_MAX], *members;
        struct facts f = {.api = api, .n = 1};
        struct slice seed, n;
        size_t at = 0;
        int64_t number;
        char where[64];
        int r;

        if (slice_starts(body, SLICE_LIT("\xef\xbb\xbf")))
                body = slice_sub(body, 3, body.len);
        f.body = body;
        if (slice_trim(body).len == 0)
                return fail(ret_err, "body", "the request has no body; a JSON object is wanted");
        r = openai_scan(body, scanned, OPENAI_MEMBERS_MAX, &f.member_count, &at);
        if (r == -E2BIG)
                return fail(ret_err, "body", "the JSON object has too many members or is nested too deep");
        if (r < 0) {
                snprintf(where, sizeof(where), "body.%zu", at);
                return fail(ret_err, where, "the body is not a valid JSON object");
        }
        members = arena_array(arena, f.member_count, sizeof(*members));
        if (!members)
                return -ENOMEM;
        if (f.member_count > 0)
                memcpy(members, scanned, f.member_count * sizeof(*members));
        f.members = members;
        f.model = openai_inside(openai_find(members, f.member_count, "model"));
        read_stream(&f);
        f.return_token_ids = facts_true(openai_find(members, f.member_count, "return_token_ids"));
        f.echo = facts_true(openai_find(members, f.member_count, "echo"));
        f.beam_search = facts_true(openai_find(members, f.member_count, "use_beam_search"));
        n = openai_find(members, f.member_count, "n");
        if (!openai_is_null(n) && facts_integer(n, &number) == 0 && number > 0 && number <= UINT32_MAX)
                f.n = (uint32_t)number;
        seed = openai_find(members, f.member_count, "seed");
        f.has_seed = !openai_is_null(seed) && facts_integer(seed, &f.seed) == 0;
        read_limits(&f, openai_find(members, f.member_count, "max_tokens"),
            openai_find(members, f.member_count, "max_completion_tokens"),
            openai_find(members, f.member_count, "min_tokens"));
        f.stop = openai_find(members, f.member_count, "stop");
        if (!says(f.stop))
                f.stop = SLICE_NONE;
        f.bound = find_bound(&f);
        f.prompt = openai_find(members, f.member_count, api == API_CHAT ? "messages" : "prompt");
        f.prompt_tokens = facts_estimate(f.prompt);
        if (api == API_CHAT)
                f.prompt_count = 1;
        else
                r = read_prompts(f.prompt, arena, &f);
        if (r == 0)
                *ret_facts = f;
        return r;
}
