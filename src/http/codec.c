/* codec.c - the parsers: llhttp's callbacks turned into events that are pulled, and the rules that llhttp leaves open.
 *
 * A head is parsed where it lies in the input. Only when it comes in pieces are the pieces gathered in the message's
 * arena; spans are kept relative to the head's first byte, so that they survive the move. When the head is complete its
 * bytes are copied once into the arena and the spans become slices.
 *
 * llhttp is paused at the end of a head that has a body, at every piece of body, and at the end of the message; a head
 * without body runs through to the end in one go. */
#include "http/codec.h"
#include <assert.h>
#include <errno.h>

enum { PHASE_HEAD, PHASE_BODY, PHASE_DONE, PHASE_SPENT };

/* Fields of a first allocation; typical requests have fewer. */
#define FIELDS_FIRST 16
/* The first allocation for a head that comes in pieces. */
#define KEPT_FIRST 1024

static int on_target(llhttp_t *ll, const char *at, size_t len);
static int on_target_complete(llhttp_t *ll);
static int on_field_name(llhttp_t *ll, const char *at, size_t len);
static int on_field_name_complete(llhttp_t *ll);
static int on_field_value(llhttp_t *ll, const char *at, size_t len);
static int on_field_complete(llhttp_t *ll);
static int on_head_complete(llhttp_t *ll);
static int on_chunk_extension(llhttp_t *ll, const char *at, size_t len);
static int on_chunk_extension_complete(llhttp_t *ll);
static int on_chunk_line(llhttp_t *ll);
static int on_body(llhttp_t *ll, const char *at, size_t len);
static int on_message_complete(llhttp_t *ll);

static const llhttp_settings_t settings = {
    .on_url = on_target,
    .on_url_complete = on_target_complete,
    .on_header_field = on_field_name,
    .on_header_field_complete = on_field_name_complete,
    .on_header_value = on_field_value,
    .on_header_value_complete = on_field_complete,
    .on_headers_complete = on_head_complete,
    .on_chunk_extension_name = on_chunk_extension,
    .on_chunk_extension_value = on_chunk_extension,
    .on_chunk_extension_name_complete = on_chunk_extension_complete,
    .on_chunk_extension_value_complete = on_chunk_extension_complete,
    .on_chunk_header = on_chunk_line,
    .on_body = on_body,
    .on_message_complete = on_message_complete,
};

/* ---- small helpers -------------------------------------------------------------------------------------------- */

/* Refuse the message from inside a callback: llhttp stops at any value but 0. */
static int refuse(struct http_parser *p, int status, const char *reason) {
        if (p->status == 0) {
                p->status = status;
                p->reason = reason;
        }
        return -1;
}

static int fail(struct http_parser *p, int status, const char *reason) {
        refuse(p, status, reason);
        p->phase = PHASE_SPENT;
        return -EPROTO;
}

static bool is_request(const struct http_parser *p) {
        return p->ll.type == HTTP_REQUEST;
}

static struct slice span_slice(const struct http_parser *p, struct http_span s) {
        return slice_of(p->origin + s.at, s.len);
}

static bool in_trailers(const struct http_parser *p) {
        return p->phase == PHASE_BODY;
}

static void extend(const struct http_parser *p, struct http_span *s, const char *at, size_t len) {
        uint32_t from = (uint32_t)(at - p->origin);

        if (s->len == 0)
                s->at = from;
        s->len = from + (uint32_t)len - s->at;
}

/* ---- llhttp callbacks ----------------------------------------------------------------------------------------- */

static int on_target(llhttp_t *ll, const char *at, size_t len) {
        struct http_parser *p = ll->data;

        extend(p, &p->target, at, len);
        return 0;
}

static int on_target_complete(llhttp_t *ll) {
        struct http_parser *p = ll->data;

        p->target_done = true;
        return 0;
}

static int grow_spans(struct http_parser *p) {
        uint32_t size = p->size_spans ? p->size_spans * 2 : FIELDS_FIRST;
        struct http_field_span *spans = arena_array(p->arena, size, sizeof(*spans));

        if (!spans)
                return -ENOMEM;
        if (p->count_spans)
                memcpy(spans, p->spans, p->count_spans * sizeof(*spans));
        p->spans = spans;
        p->size_spans = size;
        return 0;
}

static int on_field_name(llhttp_t *ll, const char *at, size_t len) {
        struct http_parser *p = ll->data;

        /* Trailer fields are read and dropped (RFC 9112 7.1.2 allows it); p->gap bounds them. */
        if (in_trailers(p))
                return 0;
        if (!p->name_open) {
                p->name_open = true;
                p->over_fields = p->count_spans >= p->limits.head_fields;
                if (p->over_fields)
                        return 0;
                if (p->count_spans == p->size_spans && grow_spans(p) < 0) {
                        p->out_of_memory = true;
                        return -1;
                }
                p->spans[p->count_spans] = (struct http_field_span){0};
                p->count_spans++;
        }
        if (!p->over_fields)
                extend(p, &p->spans[p->count_spans - 1].name, at, len);
        return 0;
}

/* Limits are judged where a piece is complete: a piece itself comes in as many parts as the input does. */
static int on_field_name_complete(llhttp_t *ll) {
        struct http_parser *p = ll->data;

        return p->over_fields && !in_trailers(p) ? refuse(p, 431, "too many header fields") : 0;
}

static int on_field_value(llhttp_t *ll, const char *at, size_t len) {
        struct http_parser *p = ll->data;

        if (!in_trailers(p))
                extend(p, &p->spans[p->count_spans - 1].value, at, len);
        return 0;
}

static int on_field_complete(llhttp_t *ll) {
        struct http_parser *p = ll->data;

        p->name_open = false;
        return 0;
}

static int on_chunk_extension(llhttp_t *ll, const char *at, size_t len) {
        struct http_parser *p = ll->data;

        p->extension_bytes += len;
        return 0;
}

static int on_chunk_extension_complete(llhttp_t *ll) {
        struct http_parser *p = ll->data;

        return p->extension_bytes > HTTP_CHUNK_EXTENSION_MAX ? refuse(p, 400, "chunk extensions too long") : 0;
}

static int on_chunk_line(llhttp_t *ll) {
        struct http_parser *p = ll->data;

        /* The line before a chunk gives its length: a body that will break the limit is refused before it is read. */
        if (ll->content_length > p->limits.body_bytes - p->body_seen)
                return refuse(p, 413, "body too large");
        return 0;
}

static int on_body(llhttp_t *ll, const char *at, size_t len) {
        struct http_parser *p = ll->data;

        if (len == 0)
                return 0;
        p->body = slice_of(at, len);
        return HPE_PAUSED;
}

static int on_message_complete(llhttp_t *ll) {
        struct http_parser *p = ll->data;

        p->message_done = true;
        return HPE_PAUSED;
}

/* ---- rules for heads ------------------------------------------------------------------------------------------ */

/* What the framing fields of a head say. */
struct framing {
        unsigned hosts, codings, expects;
        bool host_valid, chunked, expect_continue;
};

/* uri-host [":" port] of RFC 9110 7.2, by its characters; empty is allowed. */
static bool host_is_valid(struct slice s) {
        static const char allowed[] =
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+;=:[]%";

        for (size_t i = 0; i < s.len; i++)
                if (!s.ptr[i] || !strchr(allowed, s.ptr[i]))
                        return false;
        return true;
}

static struct framing read_framing(const struct http_parser *p) {
        struct framing f = {.host_valid = true, .chunked = true, .expect_continue = true};

        for (uint32_t i = 0; i < p->count_spans; i++) {
                struct slice name = span_slice(p, p->spans[i].name), value;

                /* The length picks out the few candidates. */
                if (name.len != 4 && name.len != 6 && name.len != 17)
                        continue;
                value = slice_trim(span_slice(p, p->spans[i].value));
                if (slice_is_icase(name, "Host")) {
                        f.hosts++;
                        f.host_valid &= host_is_valid(value);
                } else if (slice_is_icase(name, "Expect")) {
                        f.expects++;
                        f.expect_continue &= slice_is_icase(value, "100-continue");
                } else if (slice_is_icase(name, "Transfer-Encoding")) {
                        f.codings++;
                        f.chunked &= slice_is_icase(value, "chunked");
                }
        }
        return f;
}

static enum http_method method_of(uint8_t method) {
        switch (method) {
        case HTTP_GET:
                return HTTP_METHOD_GET;
        case HTTP_HEAD:
                return HTTP_METHOD_HEAD;
        case HTTP_POST:
                return HTTP_METHOD_POST;
        case HTTP_PUT:
                return HTTP_METHOD_PUT;
        case HTTP_DELETE:
                return HTTP_METHOD_DELETE;
        case HTTP_OPTIONS:
                return HTTP_METHOD_OPTIONS;
        case HTTP_PATCH:
                return HTTP_METHOD_PATCH;
        default:
                return HTTP_METHOD_OTHER;
        }
}

static size_t scheme_length(struct slice target) {
        if (target.len >= 7 && slice_is_icase(slice_sub(target, 0, 7), "http://"))
                return 7;
        if (target.len >= 8 && slice_is_icase(slice_sub(target, 0, 8), "https://"))
                return 8;
        return 0;
}

static size_t authority_end(struct slice target, size_t from) {
        while (from < target.len && target.ptr[from] != '/' && target.ptr[from] != '?')
                from++;
        return from;
}

/* RFC 9112 3.2: origin form; absolute form; "*" for OPTIONS. Authority form belongs to CONNECT, which is refused. */
static bool target_form_is_valid(struct slice target, uint8_t method) {
        size_t scheme, end;

        if (!http_target_is_valid(target))
                return false;
        if (target.ptr[0] == '/')
                return true;
        if (slice_is(target, "*"))
                return method == HTTP_OPTIONS;
        scheme = scheme_length(target);
        end = authority_end(target, scheme);
        return scheme > 0 && end > scheme && host_is_valid(slice_sub(target, scheme, end));
}

/* RFC 9112 3: single spaces part the request line, and what may stand before it are empty lines (2.2). llhttp skips any run
 * of spaces after the method, and CR and LF in any order before it. */
static bool request_line_is_strict(const struct http_parser *p) {
        size_t method = strlen(llhttp_method_name(p->ll.method)), start, end = p->target.at + p->target.len;

        if (p->target.at < method + 1)
                return false;
        start = p->target.at - method - 1;
        if (p->origin[p->target.at - 1] != ' ' || p->origin[p->target.at - 2] == ' ' || start % 2)
                return false;
        for (size_t i = 0; i < start; i += 2)
                if (p->origin[i] != '\r' || p->origin[i + 1] != '\n')
                        return false;
        return p->origin[end] == ' ' && p->origin[end + 1] == 'H';
}

static int check_request(struct http_parser *p) {
        struct framing f = read_framing(p);
        bool http10 = p->ll.http_minor == 0, sized = p->ll.flags & F_CONTENT_LENGTH;

        if (p->ll.method == HTTP_CONNECT)
                return refuse(p, 501, "CONNECT is not served");
        if (!request_line_is_strict(p))
                return refuse(p, 400, "malformed request line");
        if (!target_form_is_valid(span_slice(p, p->target), p->ll.method))
                return refuse(p, 400, "invalid request target");
        if (f.hosts > 1 || (f.hosts == 0 && !http10))
                return refuse(p, 400, "exactly one Host is required");
        if (!f.host_valid)
                return refuse(p, 400, "invalid Host");
        /* RFC 9112 6.1: Transfer-Encoding with HTTP/1.0, or beside Content-Length, has been handled differently by
         * somebody on the way: it is refused, never repaired. */
        if (f.codings && http10)
                return refuse(p, 400, "Transfer-Encoding in HTTP/1.0");
        if (f.codings && sized)
                return refuse(p, 400, "Transfer-Encoding beside Content-Length");
        if (f.codings > 1)
                return refuse(p, 400, "more than one Transfer-Encoding");
        if (f.codings && !f.chunked)
                return refuse(p, 501, "a transfer coding other than chunked");
        if (sized && p->ll.content_length > p->limits.body_bytes)
                return refuse(p, 413, "body too large");
        if (f.expects && !http10 && !f.expect_continue)
                return refuse(p, 417, "an expectation other than 100-continue");
        p->expect_continue = f.expects && !http10 && (f.codings || (sized && p->ll.content_length > 0));
        p->head.request = (struct http_request_head){
            .method = method_of(p->ll.method),
            .http10 = http10,
            .content_length = f.codings ? HTTP_LENGTH_CHUNKED
                              : sized   ? (int64_t)p->ll.content_length
                                        : HTTP_LENGTH_NONE,
        };
        return 0;
}

static int check_response(struct http_parser *p) {
        struct framing f = read_framing(p);
        bool sized = p->ll.flags & F_CONTENT_LENGTH;
        int64_t length;

        if (p->ll.status_code < 100)
                return refuse(p, 502, "invalid status code");
        if (p->ll.status_code == 101)
                return refuse(p, 502, "switches to a protocol that nobody asked for");
        if (f.codings && (p->ll.http_minor == 0 || sized || f.codings > 1 || !f.chunked))
                return refuse(p, 502, "unusable Transfer-Encoding");
        if (sized && p->ll.content_length > INT64_MAX)
                return refuse(p, 502, "unusable Content-Length");
        p->until_close = false;
        if (p->to_head || http_status_has_no_body(p->ll.status_code)) {
                length = HTTP_LENGTH_NONE;
        } else if (f.codings) {
                length = HTTP_LENGTH_CHUNKED;
        } else if (sized) {
                length = (int64_t)p->ll.content_length;
        } else {
                length = HTTP_LENGTH_CHUNKED;
                p->until_close = true;
                p->keep_alive = false;
        }
        p->head.response = (struct http_response_head){.status = p->ll.status_code, .content_length = length};
        return length == HTTP_LENGTH_NONE ? 1 : 0;
}

static int on_head_complete(llhttp_t *ll) {
        struct http_parser *p = ll->data;
        int64_t length;
        int r;

        /* HTTP/0.9 and 2.0 pass llhttp (its issue 877). */
        if (ll->http_major != 1 || ll->http_minor > 1)
                return refuse(p, 505, "only HTTP/1.0 and HTTP/1.1 are spoken");
        /* Nobody here switches protocols: "Upgrade" is ignored (RFC 9110 7.8), what follows is HTTP. */
        ll->upgrade = 0;
        p->keep_alive =
            !(ll->flags & F_CONNECTION_CLOSE) && (ll->http_minor == 1 || (ll->flags & F_CONNECTION_KEEP_ALIVE));
        r = is_request(p) ? check_request(p) : check_response(p);
        if (r != 0)
                return r;
        length = is_request(p) ? p->head.request.content_length : p->head.response.content_length;
        return length > 0 || length == HTTP_LENGTH_CHUNKED ? HPE_PAUSED : 0;
}

/* ---- the complete head ---------------------------------------------------------------------------------------- */

/* The slices of a target, reduced to origin form. Returns 0 or -ENOMEM. */
static int split_target(struct http_parser *p, struct http_request_head *head) {
        struct slice target = span_slice(p, p->target);
        size_t scheme = scheme_length(target), mark;

        if (scheme) {
                target = slice_sub(target, authority_end(target, scheme), target.len);
                if (target.len == 0)
                        target = SLICE_LIT("/");
                if (target.ptr[0] == '?') {
                        char *text = arena_alloc(p->arena, target.len + 1);

                        if (!text)
                                return -ENOMEM;
                        text[0] = '/';
                        memcpy(text + 1, target.ptr, target.len);
                        target = slice_of(text, target.len + 1);
                }
        }
        mark = slice_find(target, '?', 0);
        head->target = target;
        head->path = slice_sub(target, 0, mark);
        head->query = slice_sub(target, mark + 1, target.len);
        return 0;
}

/* The head ends after `len` bytes: move it into the arena and make its slices. */
static int finish_head(struct http_parser *p, size_t len) {
        struct http_field *items = NULL;
        struct http_fields fields = {.count = p->count_spans};

        if (!p->kept) {
                p->kept = (char *)arena_copy(p->arena, slice_of(p->origin, len)).ptr;
                if (!p->kept)
                        return -ENOMEM;
        }
        p->origin = p->kept;
        if (fields.count) {
                items = arena_array(p->arena, fields.count, sizeof(*items));
                if (!items)
                        return -ENOMEM;
        }
        for (size_t i = 0; i < fields.count; i++)
                items[i] = (struct http_field){
                    .name = span_slice(p, p->spans[i].name), .value = slice_trim(span_slice(p, p->spans[i].value))};
        fields.items = items;
        if (!is_request(p)) {
                p->head.response.fields = fields;
                return 0;
        }
        p->head.request.fields = fields;
        p->head.request.method_text = slice_str(llhttp_method_name(p->ll.method));
        return split_target(p, &p->head.request);
}

/* Append input to the head that is gathered. */
static int keep(struct http_parser *p, const char *bytes, size_t len) {
        size_t size = p->kept_size ? p->kept_size : KEPT_FIRST, need = p->head_seen + len;

        while (size < need)
                size *= 2;
        if (size > p->kept_size) {
                char *grown = arena_alloc(p->arena, size);

                if (!grown)
                        return -ENOMEM;
                if (p->head_seen)
                        memcpy(grown, p->kept, p->head_seen);
                p->kept = grown;
                p->kept_size = size;
        }
        memcpy(p->kept + p->head_seen, bytes, len);
        return 0;
}

/* ---- pulling events ------------------------------------------------------------------------------------------- */

/* llhttp stopped for good. A refusal of ours has said why; otherwise its own words are used. */
static int parse_failed(struct http_parser *p, llhttp_errno_t error) {
        const char *reason = llhttp_get_error_reason(&p->ll);

        if (p->out_of_memory)
                return -ENOMEM;
        if (error == HPE_PAUSED_H2_UPGRADE)
                return fail(p, 505, "only HTTP/1.0 and HTTP/1.1 are spoken");
        return fail(p, reason && strcmp(reason, "Invalid HTTP version") == 0 ? 505 : 400,
            reason && *reason ? reason : "malformed message");
}

static void reset_message(struct http_parser *p) {
        uint8_t type = p->ll.type;

        llhttp_init(&p->ll, type, &settings);
        p->ll.data = p;
        p->phase = PHASE_HEAD;
        p->kept = NULL;
        p->spans = NULL;
        p->target = (struct http_span){0};
        p->kept_size = p->head_seen = p->gap = p->extension_bytes = 0;
        p->count_spans = p->size_spans = 0;
        p->name_open = p->over_fields = p->target_done = p->message_done = p->out_of_memory = false;
}

static int next_in_head(struct http_parser *p, struct slice *in, struct http_event *ret_event) {
        size_t room = p->limits.head_bytes - p->head_seen, len = in->len < room ? in->len : room, used;
        const char *data = in->ptr;
        llhttp_errno_t error;
        int r;

        if (len == 0) {
                *ret_event = (struct http_event){HTTP_EVENT_MORE, SLICE_NONE};
                return 0;
        }
        p->started = true;
        p->origin = data;
        if (p->head_seen) {
                r = keep(p, data, len);
                if (r < 0)
                        return r;
                p->origin = p->kept;
                data = p->kept + p->head_seen;
        }
        error = llhttp_execute(&p->ll, data, len);
        if (error == HPE_OK) {
                if (!p->head_seen) {
                        r = keep(p, data, len);
                        if (r < 0)
                                return r;
                }
                p->head_seen += len;
                slice_take(in, len);
                if (p->head_seen < p->limits.head_bytes) {
                        *ret_event = (struct http_event){HTTP_EVENT_MORE, SLICE_NONE};
                        return 0;
                }
                if (is_request(p) && p->target.len && !p->target_done)
                        return fail(p, 414, "request target too long");
                return fail(p, 431, "head too large");
        }
        if (error != HPE_PAUSED)
                return parse_failed(p, error);
        used = llhttp_get_error_pos(&p->ll) - data;
        llhttp_resume(&p->ll);
        slice_take(in, used);
        if (!is_request(p) && p->ll.status_code < 200) {
                if (++p->informational > HTTP_INFORMATIONAL_MAX)
                        return fail(p, 502, "too many informational answers");
                reset_message(p);
                return next_in_head(p, in, ret_event);
        }
        r = finish_head(p, p->head_seen + used);
        if (r < 0)
                return r;
        p->phase = PHASE_BODY;
        *ret_event = (struct http_event){HTTP_EVENT_HEAD, SLICE_NONE};
        return 0;
}

static int next_in_body(struct http_parser *p, struct slice *in, struct http_event *ret_event) {
        bool chunked = p->ll.flags & F_CHUNKED;
        size_t len = in->len, used;
        llhttp_errno_t error;

        if (p->message_done)
                goto end;
        /* Chunk lines and trailers between two pieces of body may not exceed what a head may. */
        if (chunked && len > p->limits.head_bytes - p->gap)
                len = p->limits.head_bytes - p->gap;
        p->body = SLICE_NONE;
        error = llhttp_execute(&p->ll, len ? in->ptr : "", len);
        if (error == HPE_OK) {
                slice_take(in, len);
                p->gap += len;
                if (chunked && p->gap >= p->limits.head_bytes)
                        return fail(p, 431, "chunk line or trailers too large");
                *ret_event = (struct http_event){HTTP_EVENT_MORE, SLICE_NONE};
                return 0;
        }
        if (error != HPE_PAUSED)
                return parse_failed(p, error);
        used = len ? llhttp_get_error_pos(&p->ll) - in->ptr : 0;
        llhttp_resume(&p->ll);
        slice_take(in, used);
        if (p->body.len) {
                p->gap = 0;
                p->body_seen += p->body.len;
                *ret_event = (struct http_event){HTTP_EVENT_BODY, p->body};
                return 0;
        }
end:
        p->phase = PHASE_DONE;
        *ret_event = (struct http_event){HTTP_EVENT_END, SLICE_NONE};
        return 0;
}

int http_parser_next(struct http_parser *p, struct slice *in, struct http_event *ret_event) {
        assert(p->phase == PHASE_HEAD || p->phase == PHASE_BODY);
        return p->phase == PHASE_HEAD ? next_in_head(p, in, ret_event) : next_in_body(p, in, ret_event);
}

int http_parser_eof(struct http_parser *p) {
        if (p->phase == PHASE_BODY && p->until_close) {
                p->phase = PHASE_DONE;
                return 0;
        }
        return fail(p, 400, p->started ? "the connection ended within a message" : "the connection ended");
}

bool http_parser_started(const struct http_parser *p) {
        return p->started;
}

/* ---- setting up ----------------------------------------------------------------------------------------------- */

static void parser_init(struct http_parser *p, const struct http_parser_limits *limits, uint8_t type) {
        *p = (struct http_parser){.limits = *limits, .phase = PHASE_DONE};
        if (type == HTTP_REQUEST && p->limits.body_bytes > INT64_MAX)
                p->limits.body_bytes = INT64_MAX;
        p->ll.type = type;
}

void http_parser_init_request(struct http_parser *p, const struct http_parser_limits *limits) {
        parser_init(p, limits, HTTP_REQUEST);
}

void http_parser_init_response(struct http_parser *p, const struct http_parser_limits *limits) {
        parser_init(p, limits, HTTP_RESPONSE);
}

void http_parser_begin(struct http_parser *p, struct arena *arena) {
        p->arena = arena;
        p->keep_alive = p->expect_continue = p->until_close = p->started = p->to_head = false;
        p->body_seen = 0;
        p->status = 0;
        p->reason = NULL;
        p->informational = 0;
        reset_message(p);
}

void http_parser_begin_response(struct http_parser *p, struct arena *arena, bool to_head) {
        http_parser_begin(p, arena);
        p->to_head = to_head;
}
