/* join.c - see join.h. */
#include "gateway/join.h"
#include <errno.h>
#include <stdio.h>

#define CHOICE_MEMBERS 48

static int64_t number(const struct openai_member *m, size_t n, const char *name) {
        int64_t value;

        return facts_integer(openai_find(m, n, name), &value) < 0 ? -1 : value;
}

int whole_read(struct slice text, struct whole *ret_whole) {
        struct openai_member m[OPENAI_MEMBERS_MAX];
        size_t n, at;

        if (openai_scan(text, m, OPENAI_MEMBERS_MAX, &n, &at) < 0)
                return -EINVAL;
        *ret_whole = (struct whole){.text = text,
            .id = openai_find(m, n, "id"),
            .choices = openai_find(m, n, "choices"),
            .usage = openai_find(m, n, "usage")};
        return 0;
}

bool whole_is_recomputed(const struct whole *w) {
        struct slice rest = w->choices, choice;
        struct openai_member m[CHOICE_MEMBERS];
        size_t n, at;

        while (openai_next_item(&rest, &choice))
                if (openai_scan(choice, m, CHOICE_MEMBERS, &n, &at) == 0 &&
                    slice_is(openai_find(m, n, "stop_reason"), "\"recomputed\""))
                        return true;
        return false;
}

struct join_usage join_read_usage(const struct whole *answer) {
        struct join_usage u = {-1, -1, -1};
        struct openai_member m[32];
        struct slice details;
        size_t n, at;

        if (openai_is_null(answer->usage) || openai_scan(answer->usage, m, 32, &n, &at) < 0)
                return u;
        u.prompt = number(m, n, "prompt_tokens");
        u.completion = number(m, n, "completion_tokens");
        details = openai_find(m, n, "prompt_tokens_details");
        if (!openai_is_null(details) && openai_scan(details, m, 32, &n, &at) == 0)
                u.cached = number(m, n, "cached_tokens");
        return u;
}

void join_one(const struct whole *answer, int64_t cached_tokens, struct buf *out) {
        struct cuts cuts = {0};
        char text[24];

        relay_fix_cached(answer->usage, cached_tokens, text, &cuts);
        cuts_write(&cuts, answer->text, out);
}

/* The one choice of a part's answer with its index in the whole. */
static int add_choice(const struct join_part *p, bool first, struct buf *out) {
        struct slice choices = p->answer->choices, choice;
        struct openai_member m[CHOICE_MEMBERS];
        struct cuts cuts = {0};
        size_t n, at;
        char text[24];

        if (choices.len == 0 || choices.ptr[0] != '[' || !openai_next_item(&choices, &choice) ||
            openai_scan(choice, m, CHOICE_MEMBERS, &n, &at) < 0)
                return -EINVAL;
        if (!first)
                buf_add_char(out, ',');
        cuts_add(
            &cuts, openai_find(m, n, "index"), slice_of(text, (size_t)snprintf(text, sizeof(text), "%u", p->index)));
        cuts_write(&cuts, choice, out);
        return 0;
}

static void add_usage(const struct join_usage *sum, struct buf *out) {
        buf_printf(out,
            "{\"prompt_tokens\":%lld,\"total_tokens\":%lld,\"completion_tokens\":%lld,\"prompt_tokens_details\":",
            (long long)sum->prompt, (long long)(sum->prompt + sum->completion), (long long)sum->completion);
        if (sum->cached >= 0)
                buf_printf(out, "{\"cached_tokens\":%lld}}", (long long)sum->cached);
        else
                buf_add_str(out, "null}");
}

/* Cached tokens are shown when the engines show them. */
static struct join_usage sum_usage(const struct join_part *parts, size_t count) {
        struct join_usage sum = {0, 0, -1};

        for (size_t i = 0; i < count; i++) {
                struct join_usage u = join_read_usage(parts[i].answer);
                int64_t cached = parts[i].cached_tokens >= 0 ? parts[i].cached_tokens : u.cached;

                if (u.completion > 0)
                        sum.completion += u.completion;
                if (!parts[i].counts_prompt)
                        continue;
                if (u.prompt > 0)
                        sum.prompt += u.prompt;
                if (u.cached >= 0 && cached >= 0)
                        sum.cached = (sum.cached < 0 ? 0 : sum.cached) + cached;
        }
        return sum;
}

int join_many(const struct join_part *parts, size_t count, struct slice id, struct buf *out) {
        const struct whole *frame = parts[0].answer;
        struct join_usage sum = sum_usage(parts, count);
        struct buf all = {0}, usage_text = {0};
        struct cuts cuts = {0};
        int r = 0;

        buf_add_char(&all, '[');
        for (size_t i = 0; r == 0 && i < count; i++)
                r = add_choice(&parts[i], i == 0, &all);
        buf_add_char(&all, ']');
        if (r == 0) {
                add_usage(&sum, &usage_text);
                cuts_add(&cuts, frame->id, id);
                cuts_add(&cuts, frame->choices, buf_slice(&all));
                if (!openai_is_null(frame->usage))
                        cuts_add(&cuts, frame->usage, buf_slice(&usage_text));
                cuts_write(&cuts, frame->text, out);
        }
        buf_free(&all);
        buf_free(&usage_text);
        return r;
}
