/* request.c - a client's exchange: reading it, running its parts, and the one way out. */
#include "base/clock.h"
#include "base/hash.h"
#include "base/json.h"
#include "gateway/core.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* Parts of one request that run at once: a list of a thousand prompts takes its turn beside other clients. */
#define FANOUT_MAX 16
/* Memory for a body that is only announced. */
#define RESERVE_MAX (1 << 20)

static const struct http_exchange_callbacks callbacks;

/* ---- reading -------------------------------------------------------------------------------------------------------- */

/* Each leg sets these itself, or they concern this hop: the body is sent anew, and read back as plain text. The first
 * TRACE_FIELDS of them pass when the client has sent a trace. */
static const char *const for_us[] = {"traceparent", "tracestate", "host", "content-length", "content-type",
    "x-request-id", "accept-encoding", "expect", "x-baton-notes", NULL};
#define TRACE_FIELDS 2

/* From the kernel, as hex digits: nobody can guess an id. They are fetched in batches. */
static void random_hex(struct gateway *g, size_t bytes, char *ret_text) {
        static const char digits[] = "0123456789abcdef";

        if (g->random_left < bytes) {
                rng_secure(g->random, sizeof(g->random));
                g->random_left = sizeof(g->random);
        }
        for (size_t i = 0; i < bytes; i++) {
                unsigned char byte = g->random[--g->random_left];

                ret_text[2 * i] = digits[byte >> 4];
                ret_text[2 * i + 1] = digits[byte & 15];
        }
}

#define ID_BYTES 16

struct slice request_random_id(struct request *r) {
        char *text = arena_alloc(&r->arena, 2 * ID_BYTES);

        if (!text)
                return SLICE_NONE;
        random_hex(r->g, ID_BYTES, text);
        return slice_of(text, 2 * ID_BYTES);
}

/* Sampled, as an engine would do it that is asked without a trace. */
static struct slice new_trace(struct request *r) {
        static const char form[] = "00-00000000000000000000000000000000-0000000000000000-01";
        struct slice s = arena_copy(&r->arena, SLICE_LIT(form));

        if (s.ptr) {
                random_hex(r->g, 16, (char *)s.ptr + 3);
                random_hex(r->g, 8, (char *)s.ptr + 36);
        }
        return s;
}

/* The end-to-end fields that each leg gets. 0 or -ENOMEM. */
static int take_fields(struct request *r, struct http_fields from) {
        struct slice trace = fields_trace(from);
        struct http_field own = {SLICE_LIT("traceparent"), SLICE_NONE};

        r->trace = trace.ptr ? arena_copy(&r->arena, trace) : new_trace(r);
        if (!r->trace.ptr)
                return -ENOMEM;
        own.value = r->trace;
        return fields_of_client(r->g, from, trace.ptr ? for_us + TRACE_FIELDS : for_us,
            (struct http_fields){&own, trace.ptr ? 0 : 1}, &r->arena, &r->fields);
}

#define ID_MAX 128

/* Ids stand in fields, in JSON strings and in log lines, here and at the engines: these bytes mean themselves in all. */
static bool is_plain_id(struct slice id) {
        for (size_t i = 0; i < id.len; i++)
                if (id.ptr[i] <= ' ' || id.ptr[i] > '~' || id.ptr[i] == '"' || id.ptr[i] == '\\')
                        return false;
        return id.len > 0 && id.len <= ID_MAX;
}

/* Seeded with nothing: every gateway is to send a session to the same instance. */
static uint64_t session_of(const struct gateway *g, struct http_fields fields) {
        struct slice value = http_field_value(fields, g->options.session_header);

        return value.len > 0 ? hash64(value, 0) | 1 : 0;
}

/* A client's id may name its legs when it is one everywhere; else 128 random bits. */
static int choose_id(struct request *r, struct http_fields fields) {
        struct slice id = http_field_value(fields, "x-request-id");

        r->id = is_plain_id(id) ? arena_copy(&r->arena, id) : request_random_id(r);
        return r->id.ptr ? 0 : -ENOMEM;
}

static void on_body(struct http_exchange *x, struct slice data, void *user) {
        struct request *r = user;

        if (r->answer != ANSWER_NONE || gateway_keep_body(r->g, &r->body, data))
                return;
        gateway_drop_body(r->g, &r->body);
        r->answer = ANSWER_ENDED;
        r->status = 503;
        r->end = "full";
        gateway_respond_full(x);
}

void request_new(struct gateway *g, struct http_exchange *x, enum api api) {
        const struct http_request_head *head = http_exchange_request(x);
        struct request *r = calloc(1, sizeof(*r));

        if (!r) {
                gateway_respond_error(x, 500, "InternalServerError", "the gateway is out of memory");
                return;
        }
        r->g = g;
        r->x = x;
        if (g->spare_arena_count > 0)
                r->arena = g->spare_arenas[--g->spare_arena_count];
        r->facts.api = api;
        r->wants_notes = slice_is(http_field_value(head->fields, "x-baton-notes"), "1");
        r->begun = gateway_now(g);
        r->session = session_of(g, head->fields);
        r->peer = arena_copy(&r->arena, slice_str(http_exchange_peer(x))).ptr;
        list_init(&r->settlers);
        list_init(&r->unsent);
        list_init(&r->arrival);
        admission_read(r, head->fields);
        list_push_back(&g->requests, &r->link);
        g->request_count++;
        http_exchange_watch(x, &callbacks, r);
        if (!r->peer || take_fields(r, head->fields) < 0 || choose_id(r, head->fields) < 0) {
                gateway_respond_error(x, 500, "InternalServerError", "the gateway is out of memory");
                return;
        }
        /* In one piece when the client says how long it is, but for so much that only who sends it gets the memory. */
        if (head->content_length > 0)
                buf_reserve(&r->body, head->content_length < RESERVE_MAX ? (size_t)head->content_length : RESERVE_MAX);
}

/* ---- parts ---------------------------------------------------------------------------------------------------------- */

static bool splits(const struct request *r) {
        return r->g->connector->order != ORDER_ONE;
}

/* The prompt as KV events name its blocks, where its tokens can be known. */
static int find_blocks(struct request *r, struct part *p, struct slice prompt) {
        const struct facts *f = &r->facts;
        struct kv_prompt k = {
            .model = f->model, .salt = openai_inside(openai_find(f->members, f->member_count, "cache_salt"))};
        struct token_list tokens;
        bool whole;
        int result = tokens_of_prompt(&r->g->tokens, f, prompt, &r->arena, &tokens, &whole);

        if (result < 0)
                return result == -ENOTSUP ? 0 : result;
        if (whole) /* better than an estimate */
                p->prompt_tokens = p->prompt.tokens = tokens.count;
        k.tokens = tokens.ids;
        k.count = tokens.count;
        return pool_find_blocks(r->g->pool, &k, &r->arena, &p->prompt);
}

/* What each leg of this part has of its own: one prompt of the list, one of n choices (with the seed that vLLM gives to
 * that child). */
static int fill_source(struct request *r, struct part *p) {
        const struct facts *f = &r->facts;
        uint32_t prompt = splits(r) ? p->index / f->n : 0, child = splits(r) ? p->index % f->n : 0;
        const char *seed;

        p->source = (struct source){.facts = f, .text = f->body, .members = f->members, .count = f->member_count};
        p->source.meeting.metaserver = r->g->metaserver;
        p->path = f->api == API_CHAT ? "/v1/chat/completions" : "/v1/completions";
        p->prompt_tokens = f->prompts ? facts_estimate(f->prompts[prompt]) : f->prompt_tokens;
        p->relay.many = r->part_count > 1;
        /* Asked for ids, vLLM echoes a stream's prompt as ids and no more as text. */
        p->relay.track = f->stream && !f->echo && r->g->options.max_continuations > 0;
        if (pool_wants_prompts(r->g->pool) &&
            facts_prompt(f, splits(r) && f->prompts ? f->prompts[prompt] : f->prompt, &r->arena, &p->prompt) < 0)
                return -ENOMEM;
        if (pool_knows_blocks(r->g->pool) &&
            find_blocks(r, p, splits(r) && f->prompts ? f->prompts[prompt] : f->prompt) < 0)
                return -ENOMEM;
        if (!splits(r)) {
                if (f->prompts)
                        p->prompt_tokens = f->prompt_tokens;
                p->relay.track &= f->prompt_count == 1 && f->n == 1;
                return 0;
        }
        if (f->prompts || f->n > 1) {
                p->source.edits = ARENA_NEW(&r->arena, struct edits);
                if (!p->source.edits)
                        return -ENOMEM;
        }
        if (f->prompts)
                edits_set(p->source.edits, "prompt", f->prompts[prompt]);
        if (f->n > 1)
                edits_set(p->source.edits, "n", SLICE_LIT("1"));
        if (f->n > 1 && f->has_seed) {
                seed = arena_printf(&r->arena, "%lld", (long long)f->seed + child);
                if (!seed)
                        return -ENOMEM;
                edits_set(p->source.edits, "seed", slice_str(seed));
        }
        if (r->part_count > 1) {
                const char *id =
                    arena_printf(&r->arena, "\"%s-%.*s\"", f->api == API_CHAT ? "chatcmpl" : "cmpl", SLICE_ARG(r->id));

                if (!id)
                        return -ENOMEM;
                p->relay.id = slice_str(id);
        }
        return 0;
}

static int make_parts(struct request *r) {
        r->parts = arena_array(&r->arena, r->part_count, sizeof(*r->parts));
        if (!r->parts)
                return -ENOMEM;
        for (size_t i = 0; i < r->part_count; i++) {
                int e;

                part_init(&r->parts[i], r, (uint32_t)i);
                e = fill_source(r, &r->parts[i]);
                if (e < 0)
                        return e;
        }
        return 0;
}

/* Begin parts until enough run. */
void request_start(struct request *r) {
        while (!r->failed && !r->gone && r->started < r->part_count && r->started - r->over < FANOUT_MAX)
                part_step(&r->parts[r->started++], PART_TRY);
}

static void stop_parts(struct request *r, const struct part *but);

void request_refuse(struct request *r, const struct openai_error *e, unsigned retry_after) {
        struct http_field fields[2] = {{SLICE_LIT("Content-Type"), SLICE_LIT("application/json")}};
        struct buf body = {0};
        char seconds[16];

        r->failed = true;
        r->answer = ANSWER_ENDED;
        r->status = e->status;
        r->end = "refused";
        openai_write_error(&body, e);
        snprintf(seconds, sizeof(seconds), "%u", retry_after);
        fields[1] = (struct http_field){SLICE_LIT("Retry-After"), slice_str(seconds)};
        http_respond(r->x, e->status, (struct http_fields){fields, retry_after > 0 ? 2 : 1}, buf_slice(&body));
        r->bytes_out += body.len;
        buf_free(&body);
        stop_parts(r, NULL);
}

/* A prompt that is too long for every instance is refused in their words, before one of them reads it. */
static int check_length(const struct request *r, struct openai_error *e) {
        const struct facts *f = &r->facts;
        int64_t longest = pool_longest(r->g->pool, gateway_first_role(r->g));

        for (size_t i = 0; longest > 0 && i < f->prompt_count; i++) {
                uint64_t ids = facts_count_ids(f->prompts ? f->prompts[i] : f->prompt);

                if (ids > (uint64_t)longest)
                        return openai_too_long(ids, false, (uint32_t)longest, e);
        }
        return 0;
}

static int check(struct request *r, struct openai_error *e) {
        const char *refusal = connector_refusal(r->g->connector, &r->facts);
        uint64_t parts = splits(r) ? (uint64_t)r->facts.prompt_count * r->facts.n : 1;

        if (refusal)
                return openai_fail(e, 400, "BadRequestError", NULL, "%s", refusal);
        if (parts > (uint64_t)r->g->options.max_prompts)
                return openai_fail(e, 400, "BadRequestError", "n",
                    "%zu prompts with n=%u make %llu answers; this gateway takes at most %lld in one request",
                    r->facts.prompt_count, r->facts.n, (unsigned long long)parts, (long long)r->g->options.max_prompts);
        r->part_count = (size_t)parts;
        return check_length(r, e);
}

static void on_body_end(struct http_exchange *x, void *user) {
        struct request *r = user;
        struct openai_error e = {
            .status = 500, .type = "InternalServerError", .message = "the gateway is out of memory"};
        int err = buf_ok(&r->body) ? 0 : -ENOMEM;

        if (r->answer != ANSWER_NONE)
                return;
        if (err == 0)
                err = facts_read(r->facts.api, buf_slice(&r->body), &r->arena, &r->facts, &e);
        if (err == 0)
                err = check(r, &e);
        if (err == 0)
                err = make_parts(r);
        if (err < 0) {
                r->part_count = 0;
                request_refuse(r, &e, 0);
                return;
        }
        admission_enter(r);
}

/* ---- answering ------------------------------------------------------------------------------------------------------ */

/* The instance's fields, and who served: what our own framing or the gateway's other fields say is left out. */
static struct http_fields answer_fields(struct request *r, struct part *p, struct http_fields from) {
        struct http_field *items = arena_array(&r->arena, from.count + 3, sizeof(*items));
        size_t n = 0;

        if (!items)
                return (struct http_fields){0};
        for (size_t i = 0; i < from.count; i++)
                if (!slice_is_icase(from.items[i].name, "x-request-id"))
                        items[n++] = from.items[i];
        items[n++] = (struct http_field){SLICE_LIT("X-Request-Id"), r->id};
        if (p->prefill.name)
                items[n++] = (struct http_field){SLICE_LIT("X-Baton-Prefill"), slice_str(p->prefill.name)};
        if (p->decode.name)
                items[n++] = (struct http_field){SLICE_LIT("X-Baton-Decode"), slice_str(p->decode.name)};
        return (struct http_fields){items, n};
}

static void note_first(struct request *r) {
        if (r->first == 0)
                r->first = gateway_now(r->g);
}

static bool begin_stream(struct request *r, struct http_fields fields) {
        if (http_begin(r->x, 200, fields, HTTP_LENGTH_CHUNKED) < 0)
                return false;
        r->answer = ANSWER_BEGUN;
        r->status = 200;
        r->stream = true;
        r->g->stream_count++;
        return true;
}

bool request_begin_stream(struct request *r, struct part *p) {
        if (!r->x || r->answer == ANSWER_ENDED)
                return false;
        if (r->answer == ANSWER_NONE && !begin_stream(r, answer_fields(r, p, p->decode.fields)))
                return false;
        note_first(r);
        return true;
}

void request_keep_alive(struct request *r, uint64_t now) {
        uint64_t silence = (uint64_t)(r->g->options.keepalive * (double)NS_PER_S);
        struct http_field fields[] = {
            {SLICE_LIT("Content-Type"), SLICE_LIT("text/event-stream; charset=utf-8")},
            {SLICE_LIT("X-Request-Id"), r->id},
        };

        if (silence == 0 || !r->x || !r->facts.stream || r->part_count == 0 || r->answer == ANSWER_ENDED)
                return;
        if (now - (r->last_sent ? r->last_sent : r->begun) < silence)
                return;
        for (size_t i = 0; i < r->part_count; i++)
                if (r->parts[i].client_is_slow) /* it has bytes that it does not take */
                        return;
        if (r->answer == ANSWER_NONE && !begin_stream(r, (struct http_fields){fields, 2}))
                return;
        buf_add_str(&r->pending, ": keep-alive\n\n");
        request_send_pending(r);
}

void request_send_pending(struct request *r) {
        if (r->pending.len > 0 && list_empty(&r->unsent))
                list_push_back(&r->g->unsent, &r->unsent);
}

/* Larger ones are given back to the heap. */
#define SPARE_BYTES 16384

static void put_buffer(struct gateway *g, struct buf *b) {
        if (b->cap == 0 || b->cap > SPARE_BYTES || b->failed ||
            g->spare_count == sizeof(g->spare) / sizeof(*g->spare)) {
                buf_free(b);
                return;
        }
        b->len = 0;
        g->spare[g->spare_count++] = *b;
        *b = (struct buf){0};
}

void request_take_buffer(struct request *r) {
        if (r->pending.cap == 0 && r->g->spare_count > 0)
                r->pending = r->g->spare[--r->g->spare_count];
}

void request_flush(struct request *r) {
        struct slice bytes = buf_slice(&r->pending);

        list_remove(&r->unsent);
        if (bytes.len > 0 && r->x && r->answer == ANSWER_BEGUN) {
                r->bytes_out += bytes.len;
                if (r->g->options.keepalive > 0)
                        r->last_sent = gateway_now(r->g);
                if (http_send(r->x, &bytes, 1) == 1)
                        for (size_t i = 0; i < r->part_count; i++)
                                part_pause(&r->parts[i]);
        }
        /* Tens of thousands of streams wait most of the time: none keeps a buffer meanwhile. */
        put_buffer(r->g, &r->pending);
}

static void end_stream(struct request *r) {
        buf_add(&r->pending, OPENAI_DONE);
        request_flush(r);
        r->answer = ANSWER_ENDED;
        if (r->x)
                http_finish(r->x);
}

static void respond(struct request *r, struct part *p, int status, struct slice body) {
        r->answer = ANSWER_ENDED;
        r->status = status;
        note_first(r);
        if (!r->x)
                return;
        r->bytes_out += body.len;
        http_respond(r->x, status, answer_fields(r, p, p->answer_fields), body);
}

/* The sum of what the parts' usage chunks said, when the client asked for it or the engines say it unasked. */
static void send_usage(struct request *r) {
        int64_t prompt = 0, completion = 0;
        bool any = r->facts.include_usage;

        for (size_t i = 0; i < r->part_count; i++) {
                const struct relay *l = &r->parts[i].relay;

                if (l->usage_completion < 0)
                        continue;
                any = true;
                completion += l->usage_completion;
                if (r->parts[i].index % r->facts.n == 0)
                        prompt += l->usage_prompt;
        }
        if (any && r->parts[0].relay.model.ptr)
                relay_write_usage(&r->parts[0].relay, prompt, completion, &r->pending);
}

static void respond_joined(struct request *r) {
        struct join_part *parts = arena_array(&r->arena, r->part_count, sizeof(*parts));
        struct buf out = {0};

        for (size_t i = 0; parts && i < r->part_count; i++)
                parts[i] = (struct join_part){.answer = &r->parts[i].whole,
                    .index = r->parts[i].index,
                    .counts_prompt = r->parts[i].index % r->facts.n == 0,
                    .cached_tokens = r->parts[i].relay.cached_tokens};
        if (parts && join_many(parts, r->part_count, r->parts[0].relay.id, &out) == 0 && buf_ok(&out))
                respond(r, &r->parts[0], 200, buf_slice(&out));
        else
                request_part_failed(r, &r->parts[0], 502, "BadGateway", "an engine's answer makes no sense");
        buf_free(&out);
}

static void respond_one(struct request *r, struct part *p) {
        struct buf out = {0};

        join_one(&p->whole, p->relay.cached_tokens, &out);
        respond(r, p, p->answer_status, buf_ok(&out) ? buf_slice(&out) : buf_slice(&p->answer));
        buf_free(&out);
}

static void count_tokens(struct request *r, struct part *p) {
        struct join_usage u = {.prompt = p->relay.usage_prompt, .completion = p->relay.usage_completion};

        if (!r->stream)
                u = join_read_usage(&p->whole);
        else if (u.completion < 0)
                u.completion = p->relay.ids_sent;
        if (u.prompt < 0)
                u.prompt = p->handoff_tokens;
        p->prompt_counted = u.prompt;
        p->completion_tokens = u.completion;
}

void request_part_done(struct request *r, struct part *p) {
        if (r->answer == ANSWER_BEGUN && !p->relay.any_sent) {
                request_part_failed(
                    r, p, 502, "BadGateway", "an engine answered a stream's request with a whole answer");
                return;
        }
        count_tokens(r, p);
        r->done++;
        if (r->done < r->part_count || r->failed)
                return;
        r->end = "done";
        if (r->answer == ANSWER_BEGUN) {
                if (r->part_count > 1)
                        send_usage(r);
                end_stream(r);
        } else if (r->part_count > 1) {
                respond_joined(r);
        } else {
                respond_one(r, p);
        }
}

void request_part_over(struct request *r, struct part *p) {
        if (p->settler)
                return;
        r->over++;
        request_start(r);
}

static void stop_parts(struct request *r, const struct part *but) {
        for (size_t i = 0; i < r->part_count; i++)
                if (&r->parts[i] != but)
                        part_step(&r->parts[i], PART_STOP);
}

static void respond_failure(struct request *r, struct part *p, const struct openai_error *e) {
        struct http_field json = {SLICE_LIT("Content-Type"), SLICE_LIT("application/json")};
        struct buf body = {0};

        /* The instance's own words, when it had some. */
        if (p->answer_status >= 400) {
                respond(r, p, p->answer_status, buf_slice(&p->answer));
                return;
        }
        openai_write_error(&body, e);
        p->answer_fields = (struct http_fields){&json, 1};
        respond(r, p, e->status, buf_slice(&body));
        p->answer_fields = (struct http_fields){0};
        buf_free(&body);
}

/* In a stream: the instance's own words, when it had some in the API's shape. */
static void write_failure_event(struct request *r, const struct part *p, const struct openai_error *e) {
        struct openai_member m[16];
        struct slice words = slice_trim(buf_slice(&p->answer));
        size_t n, at, begin = r->pending.len;

        if (p->answer_status < 400 || openai_scan(words, m, 16, &n, &at) < 0 || !openai_find(m, n, "error").ptr) {
                openai_write_error_event(&r->pending, e);
                return;
        }
        buf_add_str(&r->pending, "data: ");
        buf_add(&r->pending, words);
        for (size_t i = begin; i < r->pending.len;
             i++) /* between JSON's tokens only; inside strings they are escaped */
                if (r->pending.ptr[i] == '\n' || r->pending.ptr[i] == '\r')
                        r->pending.ptr[i] = ' ';
        buf_add_str(&r->pending, "\n\n");
}

void request_part_failed(struct request *r, struct part *p, int status, const char *type, const char *message) {
        struct openai_error e;

        if (r->failed || r->answer == ANSWER_ENDED)
                return;
        r->failed = true;
        r->end = "failed";
        if (message)
                log_warn(r->g->log, "request %.*s: %s", SLICE_ARG(r->id), message);
        openai_fail(&e, status, type ? type : "BadGateway", NULL, "%s", message ? message : "the request failed");
        if (r->answer == ANSWER_NONE) {
                respond_failure(r, p, &e);
        } else {
                stats_count(&r->g->stats, COUNT_CUT, 1);
                r->end = "cut";
                write_failure_event(r, p, &e);
                end_stream(r);
        }
        stop_parts(r, p);
}

/* ---- the end -------------------------------------------------------------------------------------------------------- */

static void on_writable(struct http_exchange *x, void *user) {
        struct request *r = user;

        for (size_t i = 0; i < r->part_count; i++)
                part_resume(&r->parts[i]);
}

static void on_end(struct http_exchange *x, enum http_end end, void *user) {
        static const char *const words[] = {[HTTP_END_DONE] = NULL,
            [HTTP_END_CLIENT_GONE] = "client_gone",
            [HTTP_END_STALLED] = "client_stalled",
            [HTTP_END_BAD_BODY] = "bad_body",
            [HTTP_END_ABORTED] = "aborted"};
        struct request *r = user;

        r->x = NULL;
        r->ended = gateway_now(r->g);
        if (end != HTTP_END_DONE) {
                r->gone = true;
                r->end = words[end];
                if (end == HTTP_END_CLIENT_GONE)
                        stats_count(&r->g->stats, COUNT_CLIENTS_GONE, 1);
                stop_parts(r, NULL);
        }
        request_settle(r);
}

static const struct http_exchange_callbacks callbacks = {
    .on_body = on_body,
    .on_body_end = on_body_end,
    .on_writable = on_writable,
    .on_end = on_end,
};

void request_stop(struct request *r) {
        r->gone = true; /* no more parts are begun */
        if (r->x)
                http_exchange_abort(r->x);
        for (size_t i = 0; i < r->part_count; i++) {
                part_step(&r->parts[i], PART_STOP);
                part_step(&r->parts[i], PART_GRACE_OVER);
                part_step(&r->parts[i], PART_WAITED_TOO_LONG);
                leg_stop(&r->parts[i].prefill, LEG_ABORTED);
                leg_stop(&r->parts[i].decode, LEG_ABORTED);
        }
        list_for_each (at, &r->settlers) {
                struct part *p = list_item(at, struct part, link);

                part_step(p, PART_WAITED_TOO_LONG);
                leg_stop(&p->decode, LEG_ABORTED);
        }
        /* A client that has left and parts that only waited: nothing else is to come that would end it. */
        request_settle(r);
}

/* Adds what is known (not negative); a sum of nothing known stays -1. */
static void add_known(int64_t *sum, int64_t value) {
        if (value >= 0)
                *sum = (*sum < 0 ? 0 : *sum) + value;
}

/* Of all parts, as usage tells the client: each prompt once, whatever the number of its choices. */
static struct join_usage sum_tokens(const struct request *r) {
        struct join_usage sum = {-1, -1, -1};

        for (size_t i = 0; i < r->part_count; i++) {
                const struct part *p = &r->parts[i];

                add_known(&sum.completion, p->completion_tokens);
                if (p->index % r->facts.n != 0)
                        continue;
                add_known(&sum.prompt, p->prompt_counted);
                add_known(&sum.cached, p->relay.cached_tokens);
        }
        return sum;
}

/* To be let in, and for instances. Parts wait side by side: the longest. */
static uint64_t waited(const struct request *r) {
        uint64_t longest = 0;

        for (size_t i = 0; i < r->part_count; i++)
                if (r->parts[i].waited > longest)
                        longest = r->parts[i].waited;
        return r->queued + longest;
}

static void log_ms(struct json_writer *w, const char *name, uint64_t ns) {
        char text[32];
        int n = snprintf(
            text, sizeof(text), "%llu.%03u", (unsigned long long)(ns / NS_PER_MS), (unsigned)(ns / NS_PER_US % 1000));

        json_key(w, name);
        json_raw(w, slice_of(text, (size_t)n));
}

static void log_leg(struct json_writer *w, const char *name, const struct leg *l) {
        if (!l->name)
                return;
        json_key(w, name);
        json_open(w, '{');
        json_key(w, "instance");
        json_str(w, l->name);
        json_key(w, "status");
        json_i64(w, l->status);
        if (l->times.first)
                log_ms(w, "first_ms", l->times.first - l->times.begun);
        if (l->times.ended)
                log_ms(w, "ms", l->times.ended - l->times.begun);
        json_close(w, '}');
}

static void log_count(struct json_writer *w, const char *name, int64_t value) {
        if (value < 0)
                return;
        json_key(w, name);
        json_i64(w, value);
}

static void log_times(struct json_writer *w, const struct request *r) {
        log_ms(w, "ms", (r->ended ? r->ended : gateway_now(r->g)) - r->begun);
        if (r->first)
                log_ms(w, "ttft_ms", r->first - r->begun);
        if (r->part_count > 0)
                log_ms(w, "queue_ms", waited(r));
}

static void log_access(struct request *r) {
        struct buf *out = access_begin(&r->g->access);
        struct json_writer w = {.out = out};
        struct join_usage tokens = sum_tokens(r);
        char now[CLOCK_TEXT_MAX];

        if (!out)
                return;
        clock_text(clock_wall_ns(), now);
        json_open(&w, '{');
        json_key(&w, "time");
        json_str(&w, now);
        json_key(&w, "id");
        json_string(&w, r->id);
        json_key(&w, "trace");
        json_string(&w, slice_sub(r->trace, 3, 35));
        json_key(&w, "peer");
        json_str(&w, r->peer);
        json_key(&w, "path");
        json_str(&w, r->facts.api == API_CHAT ? "/v1/chat/completions" : "/v1/completions");
        json_key(&w, "model");
        json_string(&w, slice_sub(r->facts.model, 0, 200));
        json_key(&w, "status");
        json_i64(&w, r->status);
        json_key(&w, "end");
        json_str(&w, r->end ? r->end : "unknown");
        json_key(&w, "stream");
        json_bool(&w, r->stream);
        log_count(&w, "bytes_in", (int64_t)r->body.len);
        log_count(&w, "bytes_out", (int64_t)r->bytes_out);
        log_times(&w, r);
        if (r->part_count > 1)
                log_count(&w, "parts", (int64_t)r->part_count);
        if (r->part_count > 0) {
                log_leg(&w, "prefill", &r->parts[0].prefill);
                log_leg(&w, "decode", &r->parts[0].decode);
        }
        log_count(&w, "prompt_tokens", tokens.prompt);
        log_count(&w, "cached_tokens", tokens.cached);
        log_count(&w, "completion_tokens", tokens.completion);
        if (r->retries)
                log_count(&w, "retries", r->retries);
        if (r->continued)
                log_count(&w, "continued", r->continued);
        json_close(&w, '}');
        access_end(&r->g->access);
}

static void count_known(struct stats *s, enum counter c, int64_t value) {
        if (value > 0)
                stats_count(s, c, (uint64_t)value);
}

static void count(struct request *r) {
        struct stats *s = &r->g->stats;
        struct join_usage tokens = sum_tokens(r);

        s->codes[r->status > 0 && r->status < 600 ? r->status : 499]++;
        if (r->part_count == 0)
                return;
        stats_time(s, TIME_REQUEST, r->ended - r->begun);
        stats_time(s, TIME_QUEUE, waited(r));
        if (r->first)
                stats_time(s, TIME_TTFT, r->first - r->begun);
        count_known(s, COUNT_PROMPT_TOKENS, tokens.prompt);
        count_known(s, COUNT_CACHED_TOKENS, tokens.cached);
        count_known(s, COUNT_COMPLETION_TOKENS, tokens.completion);
        if (r->stream && r->part_count == 1 && tokens.completion > 1 && r->first && r->ended > r->first)
                stats_time(s, TIME_TPOT, (r->ended - r->first) / (uint64_t)(tokens.completion - 1));
}

static bool is_over(const struct request *r) {
        if (r->x)
                return false;
        for (size_t i = 0; i < r->part_count; i++)
                if (!part_is_over(&r->parts[i]))
                        return false;
        list_for_each (at, &r->settlers) {
                if (!part_is_over(list_item(at, struct part, link)))
                        return false;
        }
        return true;
}

/* Those of ordinary requests are kept for the next ones. */
#define SPARE_ARENA_BYTES (64u << 10)

static void put_arena(struct gateway *g, struct arena *a) {
        if (a->used > SPARE_ARENA_BYTES || g->spare_arena_count == sizeof(g->spare_arenas) / sizeof(*g->spare_arenas)) {
                arena_free(a);
                return;
        }
        arena_reset(a);
        g->spare_arenas[g->spare_arena_count++] = *a;
}

static void finish(struct request *r) {
        struct gateway *g = r->g;

        admission_leave(r);
        count(r);
        log_access(r);
        for (size_t i = 0; i < r->part_count; i++)
                part_free(&r->parts[i]);
        list_for_each (at, &r->settlers) {
                part_free(list_item(at, struct part, link));
        }
        if (r->stream)
                g->stream_count--;
        list_remove(&r->link);
        list_remove(&r->unsent);
        buf_free(&r->pending);
        gateway_drop_body(g, &r->body);
        put_arena(g, &r->arena);
        free(r);
        g->request_count--;
        gateway_request_gone(g);
}

void request_settle(struct request *r) {
        if (is_over(r))
                finish(r);
}
