/* output.c - finding reasoning and tool calls in generated text, fed in pieces of any cut.
 *
 * A machine over markers: in each state a few markers matter; text before the first one belongs to the state, and text that
 * may be the start of one is held back. Results do not depend on how the text was cut. */
#include "base/buf.h"
#include "text/text.h"
#include <errno.h>
#include <stdlib.h>

enum state {
        STATE_START,
        STATE_REASONING,
        STATE_CONTENT,
        STATE_CALLS,
        STATE_TYPE,
        STATE_NAME,
        STATE_ARGUMENTS,
        STATE_DONE
};

#define THINK       "<think>"
#define THINK_END   "</think>"
#define CALLS_BEGIN "<｜tool▁calls▁begin｜>"
#define CALLS_END   "<｜tool▁calls▁end｜>"
#define CALL_BEGIN  "<｜tool▁call▁begin｜>"
#define CALL_END    "<｜tool▁call▁end｜>"
#define CALL_SEP    "<｜tool▁sep｜>"
#define FENCE       "\n```json\n"
#define FENCE_END   "\n```" CALL_END

struct queued {
        enum output_part part;
        unsigned tool_index;
        size_t from, to; /* in texts */
};

struct output_parser {
        struct output_parser_options options;
        enum state state;
        struct buf held;  /* not yet decided */
        struct buf call;  /* the current call as it came, for giving it back as content when it breaks */
        struct buf texts; /* of the queued pieces */
        struct queued *queue;
        size_t queue_count, queue_capacity, queue_at;
        unsigned tools; /* calls begun */
        bool name_told;
        bool failed;
};

struct output_parser *output_parser_new(const struct output_parser_options *options) {
        struct output_parser *p = calloc(1, sizeof(*p));
        bool reasoning =
            options->reasoning == REASONING_DEEPSEEK_R1 ||
            (options->reasoning == REASONING_DEEPSEEK_V3 && (options->thinking || options->starts_in_reasoning));

        if (!p)
                return NULL;
        p->options = *options;
        p->state = reasoning ? STATE_START : STATE_CONTENT;
        return p;
}

void output_parser_free(struct output_parser *p) {
        if (!p)
                return;
        buf_free(&p->held);
        buf_free(&p->call);
        buf_free(&p->texts);
        free(p->queue);
        free(p);
}

bool output_parser_saw_tools(const struct output_parser *p) {
        return p->tools > 0;
}

/* ---- pieces out ----------------------------------------------------------------------------------------------------------------- */

static void emit(struct output_parser *p, enum output_part part, struct slice text) {
        struct queued *last = p->queue_count ? &p->queue[p->queue_count - 1] : NULL;
        unsigned tool = part == OUTPUT_TOOL_NAME || part == OUTPUT_TOOL_ARGUMENTS ? p->tools - 1 : 0;

        if (text.len == 0 && part != OUTPUT_TOOL_NAME)
                return;
        if (last && last->part == part && last->tool_index == tool && part != OUTPUT_TOOL_NAME) {
                buf_add(&p->texts, text);
                last->to = p->texts.len;
                return;
        }
        if (p->queue_count == p->queue_capacity) {
                size_t capacity = p->queue_capacity ? p->queue_capacity * 2 : 8;
                struct queued *grown = realloc(p->queue, capacity * sizeof(*grown));

                if (!grown) {
                        p->failed = true;
                        return;
                }
                p->queue = grown;
                p->queue_capacity = capacity;
        }
        p->queue[p->queue_count++] = (struct queued){part, tool, p->texts.len, p->texts.len + text.len};
        buf_add(&p->texts, text);
}

int output_parser_next(struct output_parser *p, struct output_piece *ret_piece) {
        const struct queued *q;

        if (p->failed || !buf_ok(&p->texts) || !buf_ok(&p->held) || !buf_ok(&p->call))
                return -ENOMEM;
        if (p->queue_at == p->queue_count)
                return 0;
        q = &p->queue[p->queue_at++];
        *ret_piece = (struct output_piece){q->part, q->tool_index, slice_sub(buf_slice(&p->texts), q->from, q->to)};
        return 1;
}

/* ---- markers -------------------------------------------------------------------------------------------------------------------- */

/* Length of the longest end of `text` that begins `marker` without being all of it. */
static size_t partial(struct slice text, struct slice marker) {
        size_t n = marker.len - 1 < text.len ? marker.len - 1 : text.len;

        for (; n > 0; n--)
                if (memcmp(text.ptr + text.len - n, marker.ptr, n) == 0)
                        return n;
        return 0;
}

/* Look for the first of the markers. Returns its index and *ret_before (the text in front of it is taken, the marker too), or
 * -1 with *ret_before being what can be decided; the rest stays held. With `last` everything can be decided. */
static int take_until(struct output_parser *p, const char *const *markers, int count, bool last,
    struct slice *ret_before, size_t *ret_used) {
        struct slice held = buf_slice(&p->held);
        size_t first = held.len, keep = 0;
        int found = -1;

        for (int i = 0; i < count; i++) {
                struct slice marker = slice_str(markers[i]);
                size_t at = slice_find_slice(held, marker, 0), end = partial(held, marker);

                if (at < first) {
                        first = at;
                        found = i;
                }
                keep = end > keep ? end : keep;
        }
        if (found >= 0) {
                *ret_before = slice_sub(held, 0, first);
                *ret_used = first + strlen(markers[found]);
                return found;
        }
        *ret_used = last ? held.len : held.len - keep;
        *ret_before = slice_sub(held, 0, *ret_used);
        return -1;
}

/* ---- states --------------------------------------------------------------------------------------------------------------------- */

static void use(struct output_parser *p, size_t n, bool in_call) {
        if (in_call)
                buf_append(&p->call, p->held.ptr, n);
        buf_consume(&p->held, n);
}

/* A call that never became one is content after all. */
static void give_back_call(struct output_parser *p) {
        emit(p, OUTPUT_CONTENT, buf_slice(&p->call));
        emit(p, OUTPUT_CONTENT, buf_slice(&p->held));
        buf_reset(&p->call);
        buf_reset(&p->held);
        p->state = STATE_CONTENT;
}

/* An optional <think> in front of the reasoning. */
static bool step_start(struct output_parser *p, bool last) {
        struct slice think = SLICE_LIT(THINK), held = buf_slice(&p->held);

        if (slice_starts(held, think))
                use(p, think.len, false);
        else if (!last && held.len < think.len && slice_starts(think, held))
                return false;
        p->state = STATE_REASONING;
        return true;
}

static bool step_reasoning(struct output_parser *p, bool last) {
        static const char *const markers[] = {THINK_END};
        struct slice before;
        size_t used;
        int found = take_until(p, markers, 1, last, &before, &used);

        emit(p, OUTPUT_REASONING, before);
        use(p, used, false);
        if (found == 0)
                p->state = STATE_CONTENT;
        return found == 0;
}

static bool step_content(struct output_parser *p, bool last) {
        static const char *const markers[] = {CALLS_BEGIN};
        struct slice before;
        size_t used;
        int found = take_until(p, markers, p->options.tools == TOOLS_NONE ? 0 : 1, last, &before, &used);

        emit(p, OUTPUT_CONTENT, before);
        if (found == 0) {
                use(p, before.len, false);
                use(p, used - before.len, true);
                p->state = STATE_CALLS;
        } else
                use(p, used, false);
        return found == 0;
}

static bool step_calls(struct output_parser *p, bool last) {
        static const char *const markers[] = {CALL_BEGIN, CALLS_END};
        struct slice before;
        size_t used;
        int found = take_until(p, markers, 2, false, &before, &used);

        if (found < 0) {
                if (last && p->tools == 0)
                        give_back_call(p);
                else if (last)
                        buf_reset(&p->held);
                return false;
        }
        use(p, used, true);
        p->name_told = false;
        p->state = found == 1 ? STATE_DONE : p->options.tools == TOOLS_DEEPSEEK_V3 ? STATE_TYPE : STATE_NAME;
        return true;
}

/* V3: the call's type, before its name. */
static bool step_type(struct output_parser *p, bool last) {
        static const char *const markers[] = {CALL_SEP};
        struct slice before;
        size_t used;

        if (take_until(p, markers, 1, false, &before, &used) < 0) {
                if (last)
                        give_back_call(p);
                return false;
        }
        use(p, used, true);
        p->state = STATE_NAME;
        return true;
}

static bool step_name(struct output_parser *p, bool last) {
        const char *marker = p->options.tools == TOOLS_DEEPSEEK_V3 ? FENCE : CALL_SEP;
        struct slice before;
        size_t used;

        if (take_until(p, &marker, 1, false, &before, &used) < 0) {
                if (last)
                        give_back_call(p);
                return false;
        }
        p->tools++;
        emit(p, OUTPUT_TOOL_NAME, slice_trim(before));
        use(p, used, true);
        buf_reset(&p->call);
        p->state = STATE_ARGUMENTS;
        return true;
}

static bool step_arguments(struct output_parser *p, bool last) {
        const char *marker = p->options.tools == TOOLS_DEEPSEEK_V3 ? FENCE_END : CALL_END;
        struct slice before;
        size_t used;
        int found = take_until(p, &marker, 1, last, &before, &used);

        emit(p, OUTPUT_TOOL_ARGUMENTS, before);
        use(p, used, false);
        if (found == 0)
                p->state = STATE_CALLS;
        return found == 0;
}

int output_parser_feed(struct output_parser *p, struct slice text, bool last) {
        static bool (*const steps[])(struct output_parser *, bool) = {[STATE_START] = step_start,
            [STATE_REASONING] = step_reasoning,
            [STATE_CONTENT] = step_content,
            [STATE_CALLS] = step_calls,
            [STATE_TYPE] = step_type,
            [STATE_NAME] = step_name,
            [STATE_ARGUMENTS] = step_arguments};

        p->queue_count = p->queue_at = 0;
        buf_reset(&p->texts);
        buf_add(&p->held, text);
        while (buf_ok(&p->held) && p->state != STATE_DONE && steps[p->state](p, last))
                ;
        if (p->state == STATE_DONE)
                buf_reset(&p->held); /* nothing after the calls is meant for anybody */
        return p->failed || !buf_ok(&p->held) || !buf_ok(&p->texts) ? -ENOMEM : 0;
}

/* ---- names ------------------------------------------------------------------------------------------------------------------------ */

int reasoning_parser_parse(struct slice name, enum reasoning_parser *ret_parser, struct error *e) {
        if (slice_is(name, "deepseek_r1"))
                *ret_parser = REASONING_DEEPSEEK_R1;
        else if (slice_is(name, "deepseek_v3"))
                *ret_parser = REASONING_DEEPSEEK_V3;
        else
                return error_set(e, -EINVAL, "reasoning parser `%.*s` is not known: deepseek_r1 or deepseek_v3",
                    SLICE_ARG(slice_sub(name, 0, 60)));
        return 0;
}

int tool_parser_parse(struct slice name, enum tool_parser *ret_parser, struct error *e) {
        if (slice_is(name, "deepseek_v3"))
                *ret_parser = TOOLS_DEEPSEEK_V3;
        else if (slice_is(name, "deepseek_v31"))
                *ret_parser = TOOLS_DEEPSEEK_V31;
        else
                return error_set(e, -EINVAL, "tool-call parser `%.*s` is not known: deepseek_v3 or deepseek_v31",
                    SLICE_ARG(slice_sub(name, 0, 60)));
        return 0;
}
