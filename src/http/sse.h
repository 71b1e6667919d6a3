/* sse.h - split a byte stream into server-sent events (WHATWG HTML, 9.2.6).
 *
 * Sans-I/O: the caller feeds bytes as they arrive, in any cut, and takes whole events out. Nothing is copied while an
 * event lies within one feed; an event that spans feeds is gathered in a buffer bounded by SSE_EVENT_MAX.
 * Not thread-safe; one splitter per stream. */
#pragma once
#include "base/slice.h"

/* One event may carry a whole chat chunk with logprobs; vLLM's largest seen is 190 KB. Beyond this the stream is broken
 * or hostile, and the relay ends it with an error event rather than grow. */
#define SSE_EVENT_MAX (1u << 20)

struct sse;

/* Returns NULL only when memory is out. Free with sse_free(). */
struct sse *sse_new(void);
void sse_free(struct sse *s); /* NULL is fine */

/* Take the next event out of `in`, which is advanced past what was used. The event is its raw bytes including the blank
 * line that ends it; CR, LF and CRLF end lines.
 *
 * Returns 1 with *ret_event set (valid until the next call), 0 when `in` is used up and more bytes are needed, and
 *   -EMSGSIZE  the event exceeds SSE_EVENT_MAX; the splitter is spent
 *   -ENOMEM
 * On 0 and on errors *ret_event is untouched. */
int sse_next(struct sse *s, struct slice *in, struct slice *ret_event);
/* Bytes of an event that has begun but not ended. At the end of a stream anything here was cut off. */
size_t sse_held(const struct sse *s);

/* The event's data: the value of its one data line (the common case, a view into `event`), or the values of several
 * joined by LF (gathered in *scratch, which must hold event.len bytes). SLICE_NONE when there is no data line. */
struct slice sse_data(struct slice event, char *scratch);
