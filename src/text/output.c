/* output.c - find reasoning and tool calls in generated text that comes in pieces of any cut.
 *
 * Text waits in `held` from the first byte that is not yet given out. Each step looks at what waits and either gives out a
 * piece of it, or says that more must come. It may say so only where the bytes that wait could still become a marker or
 * the beginning of a call, so what waits is bounded, and nothing depends on where the text was cut. */
#include "base/buf.h"
#include "text/marks.h"
#include "text/text.h"
#include <errno.h>
#include <stdlib.h>

/* From the mark that begins a call (or the list of calls) to the end of its name: names have at most 64 bytes in the
 * OpenAI API; beyond this it is no call. */
#define CALL_HEAD_MAX 1024u

enum output_state {
        STATE_BEFORE, /* nothing yet: a <think> here is dropped */
        STATE_REASONING,
        STATE_CONTENT,
        STATE_BETWEEN, /* behind a call: another one, or the end of the list */
        STATE_ARGUMENTS,
        STATE_BEHIND, /* behind the list: white space is dropped */
};

struct output_parser {
        enum output_state state;
        enum tool_parser tools;
        unsigned calls; /* begun so far */
        bool last;
        struct buf held;
        size_t at; /* of held: given out before here */
};

struct output_parser *output_parser_new(const struct output_parser_options *options) {
        struct output_parser *p = calloc(1, sizeof(*p));
        bool reasons = options->reasoning == REASONING_DEEPSEEK_R1 ||
                       (options->reasoning == REASONING_DEEPSEEK_V3 &&
                           (options->thinking || options->prompt == CHAT_REASONING_OPEN));

        if (!p)
                return NULL;
        p->tools = options->tools;
        p->state = reasons && options->prompt != CHAT_REASONING_CLOSED ? STATE_BEFORE : STATE_CONTENT;
        return p;
}

void output_parser_free(struct output_parser *p) {
        if (!p)
                return;
        buf_free(&p->held);
        free(p);
}

/* ---- markers -------------------------------------------------------------------------------------------------------- */

static struct slice waiting(const struct output_parser *p) {
        return slice_sub(buf_slice(&p->held), p->at, p->held.len);
}

/* How many bytes at the end of text are the beginning of marker, all of it excluded. */
static size_t begun(struct slice text, const char *marker) {
        size_t n = strlen(marker) - 1;

        if (n > text.len)
                n = text.len;
        while (n > 0 && memcmp(text.ptr + text.len - n, marker, n) != 0)
                n--;
        return n;
}

enum match { MATCH_NO, MATCH_YES, MATCH_SHORT /* right so far */ };

/* Take marker off the front. */
static enum match take_marker(struct slice *text, const char *marker) {
        size_t n = strlen(marker);

        if (text->len >= n && memcmp(text->ptr, marker, n) == 0) {
                slice_take(text, n);
                return MATCH_YES;
        }
        return text->len < n && (text->len == 0 || memcmp(text->ptr, marker, text->len) == 0) ? MATCH_SHORT : MATCH_NO;
}

static void skip_space(struct slice *text) {
        while (text->len > 0 && strchr(" \t\r\n", text->ptr[0]) && text->ptr[0] != 0)
                slice_take(text, 1);
}

/* ---- steps: 1 with a piece, 0 more must come, -1 go on in another state ----------------------------------------------- */

enum { STEP_AGAIN = -1, STEP_WAIT, STEP_PIECE };

static int give(struct output_parser *p, enum output_part part, size_t bytes, struct output_piece *ret_piece) {
        if (bytes == 0)
                return STEP_WAIT;
        *ret_piece = (struct output_piece){part, 0, slice_sub(waiting(p), 0, bytes)};
        p->at += bytes;
        return STEP_PIECE;
}

static int step_before(struct output_parser *p) {
        struct slice text = waiting(p);
        enum match m = take_marker(&text, MARK_THINK_BEGIN);

        if (m == MATCH_SHORT && !p->last)
                return STEP_WAIT;
        if (m == MATCH_YES)
                p->at += strlen(MARK_THINK_BEGIN);
        p->state = STATE_REASONING;
        return STEP_AGAIN;
}

static int step_reasoning(struct output_parser *p, struct output_piece *ret_piece) {
        struct slice text = waiting(p);
        size_t end = slice_find_slice(text, SLICE_LIT(MARK_THINK_END), 0);

        if (end == text.len)
                return give(p, OUTPUT_REASONING, text.len - (p->last ? 0 : begun(text, MARK_THINK_END)), ret_piece);
        if (end > 0)
                return give(p, OUTPUT_REASONING, end, ret_piece);
        p->at += strlen(MARK_THINK_END);
        p->state = STATE_CONTENT;
        return STEP_AGAIN;
}

/* The name in a call's head, which `text` begins with after MARK_CALL_BEGIN; *text is what stands behind the head. */
static enum match take_head(const struct output_parser *p, struct slice *text, struct slice *ret_name) {
        struct slice rest = *text, line;
        size_t separator = slice_find_slice(rest, SLICE_LIT(MARK_SEPARATOR), 0);
        size_t angle = slice_find(rest, '<', 0), end;
        enum match m;

        if (separator == rest.len) {
                /* A name has no '<': there may only be a separator that has begun. */
                line = slice_sub(rest, 0, rest.len - begun(rest, MARK_SEPARATOR));
                return angle < line.len || slice_find(line, '\n', 0) < line.len ? MATCH_NO : MATCH_SHORT;
        }
        line = slice_sub(rest, 0, separator);
        if (angle < separator || slice_find(line, '\n', 0) < line.len)
                return MATCH_NO;
        slice_take(&rest, separator + strlen(MARK_SEPARATOR));
        if (p->tools == TOOLS_DEEPSEEK_V3) { /* that was the type */
                end = slice_find(rest, '\n', 0);
                line = slice_take(&rest, end);
                if (slice_find(line, '<', 0) < line.len)
                        return MATCH_NO;
                m = take_marker(&rest, MARK_FENCE_BEGIN);
                if (m != MATCH_YES)
                        return m;
        }
        line = slice_trim(line);
        if (line.len == 0)
                return MATCH_NO;
        *ret_name = line;
        *text = rest;
        return MATCH_YES;
}

/* White space, MARK_CALL_BEGIN and the head of a call. */
static enum match take_call(const struct output_parser *p, struct slice *text, struct slice *ret_name) {
        enum match m;

        skip_space(text);
        m = take_marker(text, MARK_CALL_BEGIN);
        return m == MATCH_YES ? take_head(p, text, ret_name) : m;
}

/* The limit, without regard to how much came at once: what is complete within it counts, what is not is refused when it
 * has grown beyond. At the end, nothing is still to come. */
static enum match within_limit(const struct output_parser *p, enum match m, struct slice rest) {
        size_t taken = m == MATCH_YES ? waiting(p).len - rest.len : waiting(p).len;

        return taken > CALL_HEAD_MAX || (m == MATCH_SHORT && p->last) ? MATCH_NO : m;
}

static int begin_call(struct output_parser *p, struct slice rest, struct slice name, struct output_piece *ret_piece) {
        p->at = p->held.len - rest.len;
        p->state = STATE_ARGUMENTS;
        *ret_piece = (struct output_piece){OUTPUT_TOOL_NAME, p->calls++, name};
        return STEP_PIECE;
}

static int step_content(struct output_parser *p, struct output_piece *ret_piece) {
        struct slice text = waiting(p), rest, name;
        size_t calls = p->tools == TOOLS_NONE ? text.len : slice_find_slice(text, SLICE_LIT(MARK_CALLS_BEGIN), 0);
        enum match m;

        if (calls == text.len)
                return give(p, OUTPUT_CONTENT,
                    text.len - (p->last || p->tools == TOOLS_NONE ? 0 : begun(text, MARK_CALLS_BEGIN)), ret_piece);
        if (calls > 0)
                return give(p, OUTPUT_CONTENT, calls, ret_piece);
        rest = slice_sub(text, strlen(MARK_CALLS_BEGIN), text.len);
        m = take_call(p, &rest, &name);
        m = within_limit(p, m, rest);
        if (m == MATCH_YES)
                return begin_call(p, rest, name, ret_piece);
        if (m == MATCH_SHORT)
                return STEP_WAIT;
        /* Not a call: the mark is content, and what follows is looked at anew. */
        return give(p, OUTPUT_CONTENT, strlen(MARK_CALLS_BEGIN), ret_piece);
}

static int step_between(struct output_parser *p, struct output_piece *ret_piece) {
        struct slice call = waiting(p), end = call, name;
        enum match calls = take_call(p, &call, &name), ends;

        calls = within_limit(p, calls, call);
        if (calls == MATCH_YES)
                return begin_call(p, call, name, ret_piece);
        skip_space(&end);
        ends = take_marker(&end, MARK_CALLS_END);
        ends = within_limit(p, ends, end);
        if (calls == MATCH_SHORT || ends == MATCH_SHORT)
                return STEP_WAIT;
        if (ends == MATCH_YES || (p->last && end.len == 0 && waiting(p).len <= CALL_HEAD_MAX)) {
                p->at = p->held.len - end.len;
                p->state = STATE_BEHIND;
        } else
                p->state = STATE_CONTENT;
        return STEP_AGAIN;
}

/* How many of the arguments' bytes may go out: not what may be the beginning of their end. */
static size_t arguments_so_far(const struct output_parser *p, struct slice text) {
        size_t keep = begun(text, MARK_CALL_END), list = begun(text, MARK_CALLS_END);

        keep = p->last ? 0 : list > keep ? list : keep;
        if (p->tools == TOOLS_DEEPSEEK_V3) {
                struct slice before = slice_sub(text, 0, text.len - keep);

                /* The fence, or a part of it when no mark has begun yet. */
                if (slice_ends(before, SLICE_LIT(MARK_FENCE_END)))
                        keep += strlen(MARK_FENCE_END);
                else if (keep == 0 && !p->last)
                        keep = begun(text, MARK_FENCE_END);
        }
        return text.len - keep;
}

static int step_arguments(struct output_parser *p, struct output_piece *ret_piece) {
        struct slice text = waiting(p), arguments;
        size_t end = slice_find_slice(text, SLICE_LIT(MARK_CALL_END), 0),
               list = slice_find_slice(text, SLICE_LIT(MARK_CALLS_END), 0);
        int r;

        /* A list that ends ends its last call too. */
        arguments = slice_sub(text, 0, end < list ? end : list);
        if (arguments.len < text.len) {
                if (p->tools == TOOLS_DEEPSEEK_V3 && slice_ends(arguments, SLICE_LIT(MARK_FENCE_END)))
                        arguments.len -= strlen(MARK_FENCE_END);
        } else
                arguments.len = arguments_so_far(p, text);
        r = give(p, OUTPUT_TOOL_ARGUMENTS, arguments.len, ret_piece);
        if (r == STEP_PIECE) {
                ret_piece->tool_index = p->calls - 1;
                return r;
        }
        if (end == text.len && list == text.len)
                return STEP_WAIT;
        p->at += end < list ? end + strlen(MARK_CALL_END) : list;
        p->state = STATE_BETWEEN;
        return STEP_AGAIN;
}

static int step_behind(struct output_parser *p) {
        struct slice text = waiting(p);

        skip_space(&text);
        p->at = p->held.len - text.len;
        if (text.len == 0)
                return STEP_WAIT;
        p->state = STATE_CONTENT;
        return STEP_AGAIN;
}

/* ---- in and out ----------------------------------------------------------------------------------------------------- */

int output_parser_feed(struct output_parser *p, struct slice text, bool last) {
        buf_consume(&p->held, p->at);
        p->at = 0;
        buf_add(&p->held, text);
        p->last = last;
        return buf_ok(&p->held) ? 0 : -ENOMEM;
}

int output_parser_next(struct output_parser *p, struct output_piece *ret_piece) {
        int r = STEP_AGAIN;

        while (r == STEP_AGAIN && p->at < p->held.len) {
                switch (p->state) {
                case STATE_BEFORE:
                        r = step_before(p);
                        break;
                case STATE_REASONING:
                        r = step_reasoning(p, ret_piece);
                        break;
                case STATE_CONTENT:
                        r = step_content(p, ret_piece);
                        break;
                case STATE_BETWEEN:
                        r = step_between(p, ret_piece);
                        break;
                case STATE_ARGUMENTS:
                        r = step_arguments(p, ret_piece);
                        break;
                case STATE_BEHIND:
                        r = step_behind(p);
                        break;
                }
        }
        return r == STEP_PIECE;
}

/* ---- names ---------------------------------------------------------------------------------------------------------- */

int reasoning_parser_parse(struct slice name, enum reasoning_parser *ret_parser, struct error *e) {
        if (slice_is(name, "deepseek_r1"))
                *ret_parser = REASONING_DEEPSEEK_R1;
        else if (slice_is(name, "deepseek_v3"))
                *ret_parser = REASONING_DEEPSEEK_V3;
        else
                return error_set(e, -EINVAL, "unknown reasoning parser '%.*s' (deepseek_r1 and deepseek_v3 are known)",
                    SLICE_ARG(slice_sub(name, 0, 64)));
        return 0;
}

int tool_parser_parse(struct slice name, enum tool_parser *ret_parser, struct error *e) {
        if (slice_is(name, "deepseek_v3"))
                *ret_parser = TOOLS_DEEPSEEK_V3;
        else if (slice_is(name, "deepseek_v31"))
                *ret_parser = TOOLS_DEEPSEEK_V31;
        else
                return error_set(e, -EINVAL, "unknown tool-call parser '%.*s' (deepseek_v3 and deepseek_v31 are known)",
                    SLICE_ARG(slice_sub(name, 0, 64)));
        return 0;
}
