/* api_request.c - a completion or chat from its body to its last byte: prepare, submit, take outputs, tell, end.
 *
 *     api_start ── long body ── worker ──┐
 *         └─────── short body ───────────┴─ proceed ── refused or answered at once
 *                                              └─ submit_all ── outputs … flush ── over
 *
 * The exchange's end (api_abandon) may come at any of these points; sequences in the engine are aborted then, and the call
 * stays until they have told their ends. */
#include "base/clock.h"
#include "base/rng.h"
#include "engine/api_call.h"
#include <assert.h>
#include <errno.h>

/* Reading a body costs up to a millisecond for each 8 KiB (most of it is finding tokens); above this it would hold up the
 * streams of others, and goes to a worker, which costs 50 us. */
#define PREPARE_INLINE_BYTES 8192

/* Naming a token costs about a microsecond; what a prompt's report has beyond this many tokens and alternatives goes to a worker
 * too. */
#define REPORT_INLINE 1024

/* ---- submission ----------------------------------------------------------------------------------------------------------- */

/* Log-probabilities of the prompt are much work: not where nobody is told them. A chat tells them once for all its choices, a
 * stream only as the log-probabilities of what is echoed. */
static bool tells_prompt(const struct api_call *call, uint32_t sibling) {
        const struct openai_request *r = &call->prepared.request;

        if (call->kind == OPENAI_CHAT)
                return !r->stream && sibling == 0;
        return !r->stream || (r->echo && r->sampling.logprobs >= 0);
}

static int submit(struct api_call *call, struct api_choice *c) {
        const struct api_options *o = &call->api->options;
        const struct openai_request *r = &call->prepared.request;
        uint32_t sibling = c->index % r->n;
        struct engine_request q = {.prompt = c->prompt->ids,
            .prompt_count = c->prompt->count,
            .sampling = r->sampling,
            .bad_sequences = call->prepared.bad_sequences,
            .eos = o->eos,
            .eos_count = o->eos_count,
            .cache_salt = r->cache_salt,
            .remote = call->prepared.fetches && c->index == 0 ? &call->prepared.remote : NULL,
            .keep = call->prepared.keeps && c->index == 0,
            .expect = call->prepared.expects && c->index == 0,
            .push = call->prepared.pushes && c->index == 0 ? &call->prepared.remote : NULL,
            .priority = r->priority,
            .arrival_ns = call->begun_ns,
            .params_n = sibling == 0 ? r->n : 0,
            .user = c};
        int result;

        q.sampling.max_tokens = c->prompt->max_tokens;
        if (!tells_prompt(call, sibling))
                q.sampling.prompt_logprobs = -1;
        q.sampling.seed = (int64_t)((uint64_t)r->sampling.seed + sibling);
        result = engine_submit(call->api->engine, &q, &c->id);
        if (result < 0)
                return result;
        c->in_engine = true;
        call->running++;
        api_call_hold(call);
        return 0;
}

static void refuse_submission(struct api_call *call, int result) {
        switch (result) {
        case -EAGAIN:
                api_refuse_text(
                    call, 503, "ServiceUnavailableError", "The queue of waiting requests is full: try again later");
                break;
        case -ENOTCONN:
                api_refuse_text(call, 503, "ServiceUnavailableError",
                    "Ranks of this engine's expert-parallel group are missing: try again later, or elsewhere");
                break;
        case -ESHUTDOWN:
                api_refuse_text(call, 503, "ServiceUnavailableError", "The server is shutting down");
                break;
        default:
                api_refuse_text(call, 500, "InternalServerError", "Internal server error");
        }
}

/* The body's name for the request, as much of it as is told. */
static struct slice body_id(const struct api_call *call) {
        struct slice id = call->prepared.request.request_id;

        if (id.len > REQUEST_ID_MAX) {
                id.len = REQUEST_ID_MAX;
                while (id.len && ((unsigned char)id.ptr[id.len] & 0xc0) == 0x80) /* no half characters */
                        id.len--;
        }
        return id;
}

static void name_answer(struct api_call *call) {
        const struct api_options *o = &call->api->options;
        struct slice id = call->header_id.len ? call->header_id : body_id(call);
        struct buf text = {0};
        char fresh[17];

        if (o->request_id_headers && !http_field_find(http_exchange_request(call->exchange)->fields, "X-Request-Id"))
                id = body_id(call); /* the header's id was made up here */
        if (!id.len) {
                rng_hex(fresh, 8);
                id = slice_of(fresh, 16);
        }
        buf_add_str(&text, call->kind == OPENAI_CHAT ? "chatcmpl-" : "cmpl-");
        /* Header bytes beyond ASCII are Latin-1, as ASGI servers read them. */
        for (size_t i = 0; i < id.len; i++) {
                unsigned char c = (unsigned char)id.ptr[i];

                if (c >= 0x80 && id.ptr == call->header_id.ptr) {
                        buf_add_char(&text, (char)(0xc0 | c >> 6));
                        c = 0x80 | (c & 0x3f);
                }
                buf_add_char(&text, (char)c);
        }
        call->answer = (struct openai_answer){.kind = call->kind,
            .id = buf_ok(&text) ? arena_copy(&call->arena, buf_slice(&text)) : SLICE_NONE,
            .model = slice_str(o->served_names[0]),
            .fingerprint = slice_str(o->fingerprint),
            .created = (int64_t)(clock_wall_ns() / NS_PER_S)};
        buf_free(&text);
}

static void submit_all(struct api_call *call) {
        const struct api_prepared *p = &call->prepared;
        size_t count = p->prompt_count * p->request.n;
        int r = 0;

        name_answer(call);
        call->choices = arena_array(&call->arena, count, sizeof(*call->choices));
        if (!call->choices || !call->answer.id.ptr)
                r = -ENOMEM;
        for (size_t i = 0; r == 0 && i < count; i++) {
                struct api_choice *c = &call->choices[call->choice_count++];

                r = api_choice_init(c, call, (uint32_t)i, &p->prompts[i / p->request.n]);
                if (r == 0)
                        r = submit(call, c);
        }
        if (r < 0) {
                refuse_submission(call, r);
                api_abandon(call);
        }
}

/* ---- preparation ---------------------------------------------------------------------------------------------------------- */

static void proceed(struct api_call *call, int result) {
        if (result < 0)
                api_refuse_text(call, 500, "InternalServerError", "Internal server error");
        else if (call->prepared.error.status)
                api_refuse(call, &call->prepared.error);
        else if (call->kind == OPENAI_TOKENIZE || call->kind == OPENAI_DETOKENIZE)
                api_respond_buf(call, &call->prepared.tokens);
        else
                submit_all(call);
}

static void on_work(uv_work_t *work) {
        struct api_call *call = work->data;

        if (api_prepare(call, buf_slice(&call->body)) < 0)
                openai_fail(&call->prepared.error, 500, "InternalServerError", NULL, "Internal server error");
}

static void on_worked(uv_work_t *work, int status) {
        struct api_call *call = work->data;

        (void)status; /* cancelled: its exchange has ended */
        work->data = NULL;
        buf_free(&call->body);
        if (call->exchange)
                proceed(call, 0);
        api_call_drop(call);
}

void api_start(struct api_call *call, enum openai_kind kind, struct slice body) {
        call->kind = kind;
        if (kind == OPENAI_COMPLETION || kind == OPENAI_CHAT) {
                if (!api_is_ready(call->api)) {
                        api_refuse_text(call, 503, "ServiceUnavailableError",
                            call->api->draining
                                ? "The server is shutting down"
                                : "The engine has stopped, or ranks of its group are missing: try elsewhere");
                        return;
                }
                call->counted = true;
                call->api->in_flight++;
        }
        if (body.len <= PREPARE_INLINE_BYTES) {
                proceed(call, api_prepare(call, body));
                return;
        }
        /* The exchange's memory goes with the client; the worker needs its own. */
        call->body = http_exchange_take_body(call->exchange);
        call->work.data = call;
        if (uv_queue_work(call->api->loop, &call->work, on_work, on_worked) < 0) {
                call->work.data = NULL;
                proceed(call, -ENOMEM);
                return;
        }
        api_call_hold(call);
}

/* ---- the end -------------------------------------------------------------------------------------------------------------- */

void api_abandon(struct api_call *call) {
        if (call->work.data) /* nobody waits for what no worker has begun; one that has goes on to its end */
                uv_cancel((uv_req_t *)&call->work);
        if (call->counted)
                call->api->in_flight--;
        call->counted = false;
        api_forget_prefill(call);
        for (size_t i = 0; i < call->choice_count; i++) {
                struct api_choice *c = &call->choices[i];

                if (c->in_engine && !c->done)
                        engine_abort(call->api->engine, c->id, FINISH_ABORT);
                if (c->held)
                        uv_cancel((uv_req_t *)&c->work);
                c->done = true;
        }
        call->running = 0;
        list_remove(&call->dirty_link);
}

void api_choices_free(struct api_call *call) {
        for (size_t i = 0; i < call->choice_count; i++)
                api_choice_free(&call->choices[i]);
}

/* Hand over what is in call->out. */
static void send_out(struct api_call *call) {
        struct slice part = buf_slice(&call->out);

        if (part.len == 0)
                return;
        call->response_bytes += part.len;
        call->blocked = http_send(call->exchange, &part, 1) == 1;
        buf_reset(&call->out);
}

/* Something failed that is not the client's fault. */
static void fail(struct api_call *call) {
        struct openai_error error;

        openai_fail(&error, 500, "InternalServerError", NULL, "Internal server error");
        if (call->streaming) {
                buf_reset(&call->out);
                openai_write_error_event(&call->out, &error);
                buf_add(&call->out, OPENAI_DONE);
                if (buf_ok(&call->out)) {
                        send_out(call);
                        http_finish(call->exchange);
                } else
                        http_exchange_abort(call->exchange);
                call->over = true;
        } else
                api_refuse(call, &error);
        api_abandon(call);
}

static void finish_stream(struct api_call *call) {
        api_tell_usage(call);
        buf_add(&call->out, OPENAI_DONE);
        send_out(call);
        http_finish(call->exchange);
        call->over = true;
        api_abandon(call);
}

/* Put what is new of a stream into events: for each step of the engine its own, but while the client does not read, what
 * comes gathers and makes one event later. */
static void tell(struct api_call *call) {
        if (!call->prepared.request.stream || call->blocked)
                return;
        if (!call->streaming) {
                api_begin_stream(call);
                call->streaming = true;
        }
        api_tell_events(call);
}

/* Send what was told, and end what is complete. */
static void flush(struct api_call *call) {
        if (!call->exchange || call->over || call->blocked)
                return;
        if (!call->prepared.request.stream) {
                if (call->running > 0)
                        return;
                api_tell_answer(call);
                api_abandon(call);
        } else if (!buf_ok(&call->out))
                fail(call);
        else if (call->running == 0)
                finish_stream(call);
        else
                send_out(call);
}

void api_on_writable(struct api_call *call) {
        call->blocked = false;
        if (!call->streaming || call->over)
                return;
        tell(call);
        flush(call);
}

/* ---- outputs -------------------------------------------------------------------------------------------------------------- */

/* `result`: of writing what it tells about the prompt. */
static void take_output(struct api_choice *c, const struct engine_output *o, int result) {
        struct api_call *call = c->call;
        bool last = o->finish != FINISH_NONE;

        if (!c->done && o->finish == FINISH_ERROR) {
                log_error(call->api->options.log, "request %.*s: %s", SLICE_ARG(call->answer.id),
                    o->error ? o->error : "the engine failed");
                c->in_engine = false;
                fail(call);
        } else if (!c->done && o->expected) {
                api_ask_prefill(call, o->expected);
        } else if (!c->done) {
                if (result < 0 || api_choice_take(c, o) < 0 ||
                    (o->kept && api_write_transfer(call, o, &call->transfer) < 0)) {
                        c->in_engine = !last;
                        fail(call);
                } else {
                        if (c->done) {
                                call->running--;
                                if (!last) /* a stop string, which the engine knows nothing of */
                                        engine_abort(call->api->engine, c->id, c->finish);
                        }
                        tell(call);
                        list_remove(&call->dirty_link);
                        list_push_back(&call->api->dirty, &call->dirty_link);
                }
        } else if (o->kept) { /* its client has left */
                engine_release(call->api->engine, o->kept->id);
        }
        if (last) {
                c->in_engine = false;
                api_call_drop(call);
        }
}

static void flush_dirty(struct api *a) {
        struct list *first;

        while ((first = list_pop_front(&a->dirty)))
                flush(list_item(first, struct api_call, dirty_link));
}

/* ---- long reports ----------------------------------------------------------------------------------------------------------- */

static void on_report(uv_work_t *work) {
        struct api_choice *c = work->data;

        c->held_result = api_logprobs_prompt(c, c->held);
}

static void on_reported(uv_work_t *work, int status) {
        struct api_choice *c = work->data;
        struct api *a = c->call->api;
        struct engine_output *list = c->held;
        int result = c->held_result;

        (void)status; /* cancelled: the choice is done */
        c->held = c->held_last = NULL;
        for (const struct engine_output *o = list; o; o = o->next, result = 0)
                take_output(o->user, o, result); /* the last one may free the choice */
        engine_outputs_free(a->engine, list);
        flush_dirty(a);
}

static bool is_long_report(const struct engine_output *o) {
        return o->prompt_token_count > 1 &&
               o->prompt_token_count * (1 + (uint64_t)o->prompt_tokens[1].top_count) > REPORT_INLINE;
}

/* Keep an output whose report a worker writes, or that comes behind such a one. False: it can be taken now. */
static bool hold_output(struct engine_output *o) {
        struct api_choice *c = o->user;

        if (c->held) {
                c->held_last->next = o;
                c->held_last = o;
                return true;
        }
        if (c->done || !is_long_report(o))
                return false;
        c->work.data = c;
        c->held = c->held_last = o;
        if (uv_queue_work(c->call->api->loop, &c->work, on_report, on_reported) == 0)
                return true;
        c->held = c->held_last = NULL;
        return false;
}

void api_take_outputs(struct api *a) {
        struct engine_output *next;

        for (struct engine_output *o = engine_take(a->engine); o; o = next) {
                next = o->next;
                o->next = NULL;
                if (hold_output(o))
                        continue;
                take_output(o->user, o, ((struct api_choice *)o->user)->done ? 0 : api_logprobs_prompt(o->user, o));
                engine_outputs_free(a->engine, o);
        }
        flush_dirty(a);
}
