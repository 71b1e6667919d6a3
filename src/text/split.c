/* split.c - see split.h. */
#include "text/split.h"
#include <assert.h>
#include <errno.h>

/* ---- the list of steps ---------------------------------------------------------------------------------------------- */

static int add_step(struct splitter *s, struct split_step step, struct error *e) {
        if (s->count == SPLIT_STEPS_MAX) {
                pcre2_code_free(step.code);
                return error_set(e, -E2BIG, "more than %u steps", SPLIT_STEPS_MAX);
        }
        s->steps[s->count++] = step;
        return 0;
}

int splitter_add_regex(
    struct splitter *s, struct slice pattern, enum split_behavior behavior, bool invert, struct error *e) {
        struct split_step step = {.behavior = behavior, .invert = invert};
        int r = split_compile(pattern, &step.code, e);

        return r < 0 ? r : add_step(s, step, e);
}

int splitter_add_string(
    struct splitter *s, struct slice text, enum split_behavior behavior, bool invert, struct error *e) {
        struct split_step step = {.behavior = behavior, .invert = invert};
        int r = split_compile_string(text, &step.code, e);

        return r < 0 ? r : add_step(s, step, e);
}

int splitter_add_prefix_space(struct splitter *s, struct error *e) {
        for (unsigned i = 0; i < s->count; i++)
                if (!s->steps[i].code)
                        return error_set(e, -EINVAL, "add_prefix_space twice");
        return add_step(s, (struct split_step){0}, e);
}

void splitter_free(struct splitter *s) {
        for (unsigned i = 0; i < s->count; i++)
                pcre2_code_free(s->steps[i].code);
        *s = (struct splitter){0};
}

/* ---- searching ------------------------------------------------------------------------------------------------------ */

int split_run_init(struct split_run *run) {
        *run =
            (struct split_run){.match = pcre2_match_data_create(1, NULL), .context = pcre2_match_context_create(NULL)};
        if (!run->match || !run->context) {
                split_run_free(run);
                return -ENOMEM;
        }
        return 0;
}

void split_run_free(struct split_run *run) {
        pcre2_match_data_free(run->match);
        pcre2_match_context_free(run->context);
        pcre2_jit_stack_free(run->stack);
        buf_free(&run->prefixed);
        *run = (struct split_run){0};
}

static void set_limit(struct split_run *run, struct slice text) {
        uint64_t limit = SPLIT_MATCH_LIMIT + (uint64_t)SPLIT_MATCH_LIMIT_PER_BYTE * text.len;

        pcre2_set_match_limit(run->context, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit);
}

int split_search(
    struct split_run *run, const pcre2_code *code, struct slice text, size_t from, size_t *ret_start, size_t *ret_end) {
        const PCRE2_SIZE *found;
        int n;

        for (;;) {
                n = pcre2_match(code, (PCRE2_SPTR)(text.len ? text.ptr : ""), text.len, from, PCRE2_NO_UTF_CHECK,
                    run->match, run->context);
                if (n != PCRE2_ERROR_JIT_STACKLIMIT || run->stack)
                        break;
                run->stack = pcre2_jit_stack_create(1 << 16, SPLIT_JIT_STACK_MAX, NULL);
                if (!run->stack)
                        return -ENOMEM;
                pcre2_jit_stack_assign(run->context, NULL, run->stack);
        }
        if (n == PCRE2_ERROR_NOMATCH)
                return 0;
        if (n == PCRE2_ERROR_NOMEMORY)
                return -ENOMEM;
        if (n < 0)
                return -E2BIG;
        found = pcre2_get_ovector_pointer(run->match);
        *ret_start = found[0];
        *ret_end = found[1];
        return 1;
}

/* ---- cutting -------------------------------------------------------------------------------------------------------- */

struct cutting {
        const struct splitter *splitter;
        struct split_run *run;
        split_piece_fn *piece;
        void *context;
};

/* One step at work on one piece: matches and what is between them come from left to right, and are joined as the behavior
 * says before they go on to the next step. */
struct cut {
        struct cutting *all;
        unsigned level;
        struct slice text;
        size_t held_from, held_to; /* not yet given on */
        bool holds, held_matched;
};

static int descend(struct cutting *c, unsigned level, struct slice text);

static int give(struct cut *cut, size_t from, size_t to) {
        return from == to ? 0 : descend(cut->all, cut->level + 1, slice_sub(cut->text, from, to));
}

static bool joins(enum split_behavior behavior, bool before, bool now) {
        switch (behavior) {
        case SPLIT_MERGED_WITH_PREVIOUS:
                return !before && now;
        case SPLIT_MERGED_WITH_NEXT:
                return before && !now;
        case SPLIT_CONTIGUOUS:
                return before == now;
        default:
                return false;
        }
}

static int part(struct cut *cut, size_t from, size_t to, bool matched) {
        const struct split_step *step = &cut->all->splitter->steps[cut->level];
        size_t held_from = cut->held_from, held_to = cut->held_to;

        matched ^= step->invert;
        if (step->behavior == SPLIT_ISOLATED)
                return give(cut, from, to);
        if (step->behavior == SPLIT_REMOVED)
                return matched ? 0 : give(cut, from, to);
        if (cut->holds && joins(step->behavior, cut->held_matched, matched)) {
                cut->held_to = to;
                cut->held_matched = matched;
                return 0;
        }
        cut->held_from = from;
        cut->held_to = to;
        cut->held_matched = matched;
        if (!cut->holds) {
                cut->holds = true;
                return 0;
        }
        return give(cut, held_from, held_to);
}

static size_t character_after(struct slice text, size_t at) {
        at++;
        while (at < text.len && ((unsigned char)text.ptr[at] & 0xc0) == 0x80)
                at++;
        return at;
}

static int cut_by_pattern(struct cut *cut, const pcre2_code *code) {
        struct slice text = cut->text;
        size_t done = 0, search = 0, start, end;
        bool any = false;
        int r;

        while (search <= text.len) {
                set_limit(cut->all->run, text);
                r = split_search(cut->all->run, code, text, search, &start, &end);
                if (r < 0)
                        return r;
                if (r == 0)
                        break;
                if (start == end && any && end == done) {
                        /* An empty match right behind the last one is none. */
                        search = character_after(text, search);
                        continue;
                }
                if (start < done || end < start)
                        return -E2BIG;
                r = start > done ? part(cut, done, start, false) : 0;
                if (r == 0)
                        r = part(cut, start, end, true);
                if (r)
                        return r;
                any = true;
                done = search = end;
        }
        r = done < text.len ? part(cut, done, text.len, false) : 0;
        return r == 0 && cut->holds ? give(cut, cut->held_from, cut->held_to) : r;
}

static int descend(struct cutting *c, unsigned level, struct slice text) {
        struct cut cut = {.all = c, .level = level, .text = text};

        if (level == c->splitter->count)
                return c->piece(c->context, text);
        if (c->splitter->steps[level].code)
                return cut_by_pattern(&cut, c->splitter->steps[level].code);
        if (slice_starts(text, SLICE_LIT(" ")))
                return descend(c, level + 1, text);
        buf_reset(&c->run->prefixed);
        buf_add_char(&c->run->prefixed, ' ');
        buf_add(&c->run->prefixed, text);
        if (!buf_ok(&c->run->prefixed))
                return -ENOMEM;
        return descend(c, level + 1, buf_slice(&c->run->prefixed));
}

int splitter_split(
    const struct splitter *s, struct split_run *run, struct slice text, split_piece_fn *piece, void *context) {
        struct cutting c = {s, run, piece, context};

        assert(run->match);
        return text.len ? descend(&c, 0, text) : 0;
}
