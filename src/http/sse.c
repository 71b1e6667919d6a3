/* sse.c - the splitter: a small state machine over line ends that skips from one to the next with memchr.
 *
 * Where an event ends must not depend on how the stream was cut. LF and CRLF are plain. A blank line that ends in a bare CR
 * ends the event at once, unless the line before ended in CRLF: then the LF that is due is waited for. Line ends before an
 * event's first line belong to that event, so that the bytes of all events together are the bytes of the stream. */
#include "http/sse.h"
#include "base/buf.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

enum state {
        LINE_START, /* no byte of the line yet */
        IN_LINE,    /* within a line */
        AFTER_CR,   /* a CR has ended a line; a LF now belongs to it */
        BLANK_CR,   /* the blank line has ended in CR, and its LF is due */
};

struct sse {
        struct buf held; /* the event so far, when it came in pieces */
        enum state state;
        bool has_content; /* a line that is not blank was seen */
        bool crlf;        /* the last line ended in CRLF */
        bool handed_out;  /* `held` is an event that the caller was given */
        bool spent;
};

struct sse *sse_new(void) {
        return calloc(1, sizeof(struct sse));
}

void sse_free(struct sse *s) {
        if (!s)
                return;
        buf_free(&s->held);
        free(s);
}

size_t sse_held(const struct sse *s) {
        return s->has_content && !s->handed_out ? s->held.len : 0;
}

/* The next CR or LF in [at, end), or end. *cr remembers where the next CR is, so that a stream of LF looks for it once. */
static const char *find_line_end(const char *at, const char *end, const char **cr) {
        const char *lf;

        if (*cr < at) {
                *cr = memchr(at, '\r', (size_t)(end - at));
                if (!*cr)
                        *cr = end;
        }
        lf = memchr(at, '\n', (size_t)(*cr - at));
        return lf ? lf : *cr;
}

/* Run over `in` up to the end of the event. Returns true and the length of what belongs to the event, or false when all of
 * `in` does and the event goes on. */
static bool find_event_end(struct sse *s, struct slice in, size_t *ret_len) {
        const char *at = in.ptr, *end = in.ptr + in.len, *cr = NULL;

        while (at < end) {
                switch (s->state) {
                case AFTER_CR:
                        s->crlf = *at == '\n';
                        at += s->crlf;
                        s->state = LINE_START;
                        break;
                case LINE_START:
                        if (*at == '\n') {
                                at++;
                                s->crlf = false;
                                if (s->has_content)
                                        goto found;
                        } else if (*at == '\r') {
                                at++;
                                if (s->has_content && !s->crlf)
                                        goto found;
                                s->state = s->has_content ? BLANK_CR : AFTER_CR;
                        } else {
                                s->has_content = true;
                                s->state = IN_LINE;
                        }
                        break;
                case IN_LINE:
                        at = find_line_end(at, end, &cr);
                        if (at == end)
                                break;
                        s->crlf = false;
                        s->state = *at++ == '\n' ? LINE_START : AFTER_CR;
                        break;
                case BLANK_CR:
                        at += *at == '\n';
                        goto found;
                }
        }
        return false;
found:
        *ret_len = (size_t)(at - in.ptr);
        return true;
}

int sse_next(struct sse *s, struct slice *in, struct slice *ret_event) {
        bool found;
        size_t len;

        assert(s && in && ret_event);
        if (s->spent)
                return -EMSGSIZE;
        if (s->handed_out) {
                /* Splits within an event are rare: give the memory back rather than keep it with every stream. */
                buf_free(&s->held);
                s->handed_out = false;
        }
        len = in->len;
        found = find_event_end(s, *in, &len);
        if (s->held.len + len > SSE_EVENT_MAX) {
                s->spent = true;
                return -EMSGSIZE;
        }
        /* The common case: the event begins and ends in these bytes. Hand out a view, copy nothing. */
        if (found && s->held.len == 0) {
                *ret_event = slice_take(in, len);
        } else {
                buf_add(&s->held, slice_take(in, len));
                if (!buf_ok(&s->held)) {
                        s->spent = true;
                        return -ENOMEM;
                }
                if (!found)
                        return 0;
                *ret_event = buf_slice(&s->held);
                s->handed_out = true;
        }
        s->state = LINE_START;
        s->has_content = s->crlf = false;
        return 1;
}

/* Take a line off *event, without its end. Returns false at the end of the event. */
static bool take_line(struct slice *event, struct slice *ret_line) {
        const char *cr = NULL, *line_end;

        if (event->len == 0)
                return false;
        line_end = find_line_end(event->ptr, event->ptr + event->len, &cr);
        *ret_line = slice_take(event, (size_t)(line_end - event->ptr));
        if (event->len > 1 && event->ptr[0] == '\r' && event->ptr[1] == '\n')
                slice_take(event, 2);
        else
                slice_take(event, 1);
        return true;
}

/* "data: value", "data:value" or "data" alone. */
static bool data_value(struct slice line, struct slice *ret_value) {
        if (!slice_starts(line, SLICE_LIT("data")))
                return false;
        slice_take(&line, 4);
        if (line.len && line.ptr[0] != ':')
                return false;
        slice_take(&line, 1);
        if (line.len && line.ptr[0] == ' ')
                slice_take(&line, 1);
        *ret_value = line;
        return true;
}

struct slice sse_data(struct slice event, char *scratch) {
        struct slice line, value, result = SLICE_NONE;

        if (slice_starts(event, SLICE_LIT("\xef\xbb\xbf")))
                slice_take(&event, 3);
        while (take_line(&event, &line)) {
                if (!data_value(line, &value))
                        continue;
                if (!result.ptr) {
                        result = value;
                        continue;
                }
                if (result.ptr != scratch) {
                        memcpy(scratch, result.ptr, result.len);
                        result.ptr = scratch;
                }
                scratch[result.len] = '\n';
                memcpy(scratch + result.len + 1, value.ptr, value.len);
                result.len += 1 + value.len;
        }
        return result;
}
