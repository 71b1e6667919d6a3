/* leg.c - an instance, its load, and the call to it, taken and given back as one. */
#include "base/clock.h"
#include "gateway/core.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>

/* A prefill answer with its parameters is some KB, a whole decode answer with logprobs of a long output tens of MB. */
#define LEG_BODY_MAX (128u << 20)

static const struct http_call_callbacks callbacks;

static struct gateway *gateway_of(const struct leg *l) {
        return l->part->request->g;
}

void leg_init(struct leg *l, struct part *part, enum role role) {
        *l = (struct leg){.part = part, .role = role};
}

void leg_say(struct leg *l, const char *format, ...) {
        va_list args;

        va_start(args, format);
        vsnprintf(l->why, sizeof(l->why), format, args);
        va_end(args);
}

void leg_free(struct leg *l) {
        assert(!l->call && !l->load.at);
        buf_free(&l->body);
}

int leg_start(struct leg *l, struct instance *i, const struct leg_request *request) {
        struct gateway *g = gateway_of(l);
        const struct http_request http = {
            .method = HTTP_METHOD_POST,
            .target = slice_str(request->path),
            .fields = request->fields,
            .body = request->body.parts,
            .body_parts = request->body.count,
            .deadlines = request->deadlines,
            .retry_stale = !request->only_once,
        };
        int r;

        assert(!l->call && !l->load.at);
        buf_reset(&l->body);
        l->status = 0;
        l->fields = (struct http_fields){0};
        l->event_stream = false;
        l->stopped_as = LEG_DONE;
        l->why[0] = 0;
        l->times = (struct leg_times){.begun = gateway_now(g)};
        l->last_byte = l->times.begun;
        l->name = arena_copy(&l->part->request->arena, slice_str(i->name)).ptr;
        l->instance_id = i->id;
        if (!l->name)
                return -ENOMEM;
        r = http_call_start(g->client, i->endpoint, &http, &callbacks, l, &l->call);
        if (r < 0) {
                l->call = NULL;
                return r;
        }
        pool_take(i, LOAD_LEG, request->tokens, &l->load);
        l->at = i;
        g->leg_count++;
        return 0;
}

void leg_stop(struct leg *l, enum leg_end as) {
        if (!l->call || l->stopped_as != LEG_DONE)
                return;
        l->stopped_as = as;
        http_call_abort(l->call);
}

/* ---- the answer ----------------------------------------------------------------------------------------------------- */

static void on_head(struct http_call *call, const struct http_response_head *head, void *user) {
        struct leg *l = user;
        struct slice type = http_field_value(head->fields, "content-type");

        l->status = head->status;
        l->times.head = l->last_byte = gateway_now(gateway_of(l));
        l->event_stream = head->status == 200 &&
                          slice_is_icase(slice_sub(type, 0, sizeof("text/event-stream") - 1), "text/event-stream");
        if (fields_of_answer(head->fields, &l->part->request->arena, &l->fields) < 0) {
                leg_say(l, "out of memory");
                leg_stop(l, LEG_ABORTED);
        }
}

static void on_body(struct http_call *call, struct slice data, void *user) {
        struct leg *l = user;
        uint64_t before = l->last_byte;

        l->last_byte = gateway_now(gateway_of(l));
        if (l->times.first == 0)
                l->times.first = l->last_byte;
        else if (l->part->state == PART_RELAY && !l->part->client_is_slow)
                stats_time(&gateway_of(l)->stats, TIME_ITL, l->last_byte - before);
        if (l->event_stream) {
                part_leg_data(l, data);
                return;
        }
        if (l->body.len + data.len > LEG_BODY_MAX) {
                leg_say(l, "the answer is longer than %u bytes", LEG_BODY_MAX);
                leg_stop(l, LEG_ERROR);
                return;
        }
        buf_add(&l->body, data);
}

/* ---- the end -------------------------------------------------------------------------------------------------------- */

static enum leg_end end_of_status(int status) {
        if (status >= 200 && status < 300)
                return LEG_DONE;
        if (status == 429 || status == 503)
                return LEG_OVERLOADED;
        return status >= 400 && status < 500 ? LEG_REFUSED : LEG_ERROR;
}

static enum leg_end end_of(const struct leg *l, enum http_failure failure) {
        switch (failure) {
        case HTTP_OK:
                return buf_ok(&l->body) ? end_of_status(l->status) : LEG_ERROR;
        case HTTP_FAIL_RESOLVE:
        case HTTP_FAIL_CONNECT:
                return LEG_UNSENT;
        case HTTP_FAIL_TIMEOUT:
                return LEG_TIMEOUT;
        case HTTP_FAIL_ABORTED:
                return l->stopped_as != LEG_DONE ? l->stopped_as : LEG_ABORTED;
        default:
                return LEG_BROKEN;
        }
}

/* Seconds of Retry-After, at least 1 and at most 30: what an engine asks for beyond that is for clients. */
static uint64_t stand_back_ns(const struct leg *l) {
        uint64_t seconds;

        if (slice_to_u64(http_field_value(l->fields, "retry-after"), &seconds) < 0 || seconds == 0)
                seconds = 1;
        return (seconds > 30 ? 30 : seconds) * NS_PER_S;
}

static void count_end(const struct leg *l, enum leg_end end) {
        struct instance *i = l->at;

        gateway_of(l)->stats.legs[l->role][end]++;
        i->ended[end]++;
        if (end == LEG_DONE)
                i->done_ns += l->times.ended - l->times.begun;
        if (l->event_stream && l->times.first) {
                i->first_count++;
                i->first_ns += l->times.first - l->times.begun;
        }
}

static void report(const struct leg *l, struct instance *i, enum leg_end end, uint64_t now) {
        switch (end) {
        case LEG_DONE:
        case LEG_REFUSED:
                pool_report(i, HEALTH_LEG_OK, now);
                break;
        case LEG_OVERLOADED:
                pool_stand_back(i, now + stand_back_ns(l));
                break;
        case LEG_ERROR:
                pool_report(i, HEALTH_LEG_ERROR, now);
                break;
        case LEG_ABORTED:
                break;
        default:
                if (l->stopped_as == LEG_DONE) /* not what the pool had told us */
                        pool_report(i, HEALTH_LEG_BROKEN, now);
                break;
        }
}

static void on_end(struct http_call *call, enum http_failure failure, const char *why, void *user) {
        struct leg *l = user;
        struct gateway *g = gateway_of(l);
        enum leg_end end = end_of(l, failure);
        uint64_t now = gateway_now(g);

        assert(l->call == call);
        l->call = NULL;
        l->times.ended = now;
        if (end == LEG_DONE)
                end = part_leg_judge(l);
        if (failure != HTTP_OK && !l->why[0])
                leg_say(l, "%s", why ? why : http_failure_text(failure));
        g->leg_count--;
        count_end(l, end);
        /* The load goes first: whoever is woken below finds the instance free again. */
        report(l, l->at, end, now);
        if (l->role == ROLE_PREFILL && end == LEG_DONE) /* from now on KV may be held there */
                pool_take(l->at, LOAD_HELD, l->part->prompt_tokens, &l->part->held);
        l->at = NULL;
        pool_give_back(&l->load);
        if (g->waiting_count > 0 && g->options.instance_cap > 0)
                gateway_wake_waiting(g, l->role);
        part_leg_end(l, end);
}

static const struct http_call_callbacks callbacks = {
    .on_head = on_head,
    .on_body = on_body,
    .on_end = on_end,
};
