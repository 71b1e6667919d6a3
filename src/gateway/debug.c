/* debug.c - what can be seen of the gateway at this moment, as JSON: requests in flight, instances, the last minutes. */
#include "base/clock.h"
#include "base/json.h"
#include "gateway/core.h"

struct stats_now gateway_measure(const struct gateway *g) {
        struct stats_now now = {.requests = g->request_count,
            .streams = g->stream_count,
            .waiting = g->waiting_count,
            .connections = http_server_connections(g->server),
            .body_bytes = g->body_bytes,
            .ready = gateway_is_ready(g),
            .draining = g->draining};

        for (int role = 0; role < ROLE_COUNT; role++)
                list_for_each (at, &g->waiting[role]) {
                        now.waiting_for[role]++;
                }
        return now;
}

static void write_ms(struct json_writer *w, const char *name, uint64_t from, uint64_t to) {
        json_key(w, name);
        json_u64(w, to > from ? (to - from) / NS_PER_MS : 0);
}

static void write_count(struct json_writer *w, const char *name, uint64_t value) {
        json_key(w, name);
        json_u64(w, value);
}

static void write_text(struct json_writer *w, const char *name, const char *text) {
        json_key(w, name);
        json_str(w, text);
}

/* ---- requests in flight ---------------------------------------------------------------------------------------------- */

static void write_leg(struct json_writer *w, const char *name, const struct leg *l, uint64_t now) {
        if (!l->name)
                return;
        json_key(w, name);
        json_open(w, '{');
        write_text(w, "instance", l->name);
        json_key(w, "in_flight");
        json_bool(w, leg_in_flight(l));
        write_ms(w, "age_ms", l->times.begun, now);
        if (l->status)
                write_count(w, "status", (uint64_t)l->status);
        if (l->times.first)
                write_ms(w, "first_ms", l->times.begun, l->times.first);
        if (leg_in_flight(l))
                write_ms(w, "silent_ms", l->last_byte, now);
        json_close(w, '}');
}

static void write_part(struct json_writer *w, const struct part *p, uint64_t now) {
        json_open(w, '{');
        write_count(w, "index", p->index);
        write_text(w, "state", part_state_name(p->state));
        if (p->request_id.ptr) {
                json_key(w, "leg_id");
                json_string(w, p->request_id);
        }
        if (p->is_waiting)
                write_ms(w, "waiting_ms", p->wait_begun, now);
        write_leg(w, "prefill", &p->prefill, now);
        write_leg(w, "decode", &p->decode, now);
        write_count(w, "prompt_tokens_estimated", p->prompt_tokens);
        write_count(w, "tokens", p->relay.ids_sent);
        write_count(w, "continuations", p->continuations);
        json_close(w, '}');
}

static const char *state_of(const struct request *r) {
        if (r->part_count == 0)
                return "reading";
        if (!r->x)
                return "left"; /* its client; KV is still to be fetched */
        return r->answer == ANSWER_BEGUN ? "streaming" : "working";
}

static void write_request(struct json_writer *w, const struct request *r, uint64_t now) {
        json_open(w, '{');
        json_key(w, "id");
        json_string(w, r->id);
        json_key(w, "trace");
        json_string(w, slice_sub(r->trace, 3, 35));
        write_text(w, "peer", r->peer);
        write_text(w, "path", r->facts.api == API_CHAT ? "/v1/chat/completions" : "/v1/completions");
        json_key(w, "model");
        json_string(w, slice_sub(r->facts.model, 0, 200));
        json_key(w, "stream");
        json_bool(w, r->facts.stream);
        write_text(w, "state", state_of(r));
        write_ms(w, "age_ms", r->begun, now);
        if (r->first)
                write_ms(w, "ttft_ms", r->begun, r->first);
        write_count(w, "bytes_in", r->body.len);
        write_count(w, "bytes_out", r->bytes_out);
        write_count(w, "retries", r->retries);
        write_count(w, "part_count", r->part_count);
        json_key(w, "parts"); /* those at work: FANOUT_MAX at most, and KV that is being freed */
        json_open(w, '[');
        for (size_t i = 0; i < r->part_count; i++)
                if (r->parts[i].state != PART_IDLE && !part_is_over(&r->parts[i]))
                        write_part(w, &r->parts[i], now);
        list_for_each (at, &r->settlers) {
                const struct part *p = list_item(at, struct part, link);

                if (!part_is_over(p))
                        write_part(w, p, now);
        }
        json_close(w, ']');
        json_close(w, '}');
}

void debug_write_requests(const struct gateway *g, struct json_writer *w) {
        uint64_t now = gateway_now(g);
        size_t shown = 0;

        json_open(w, '{');
        write_count(w, "count", g->request_count);
        json_key(w, "requests");
        json_open(w, '[');
        list_for_each (at, &g->requests) {
                if (shown++ == DEBUG_ROWS_MAX)
                        break;
                write_request(w, list_item(at, struct request, link), now);
        }
        json_close(w, ']');
        json_close(w, '}');
}

/* ---- the picture ----------------------------------------------------------------------------------------------------- */

static void write_instance(struct json_writer *w, const struct instance *i) {
        uint64_t failed = 0;

        for (int end = 0; end < LEG_ENDS; end++)
                if (end != LEG_DONE && end != LEG_REFUSED && end != LEG_ABORTED)
                        failed += i->ended[end];
        json_open(w, '{');
        write_text(w, "role", pool_role_name(i->role));
        write_text(w, "name", i->name);
        write_text(w, "state", instance_state_name(i->state));
        json_key(w, "stands_back");
        json_bool(w, i->busy_until > 0);
        write_count(w, "requests", i->requests);
        write_count(w, "tokens", i->tokens);
        write_count(w, "held_requests", i->held_requests);
        write_text(w, "kv_events", i->events ? follow_state_name(i->events_state) : "off");
        write_count(w, "kv_blocks", i->kv.count);
        write_count(w, "done", i->ended[LEG_DONE]);
        write_count(w, "failed", failed);
        json_close(w, '}');
}

static void write_instances(struct json_writer *w, const struct pool *p) {
        json_open(w, '[');
        for (int role = 0; role < ROLE_COUNT; role++)
                for (size_t k = 0; k < pool_count(p, (enum role)role) && k < DEBUG_ROWS_MAX; k++)
                        write_instance(w, pool_at(p, (enum role)role, k));
        json_close(w, ']');
}

static void write_point(struct json_writer *w, const struct history_point *p, uint64_t now) {
        const struct {
                const char *name;
                double value;
        } values[] = {{"requests", p->requests}, {"errors", p->errors}, {"events", p->events}, {"tokens", p->tokens},
            {"continued", p->continued}, {"ttft_p50", p->ttft_p50}, {"ttft_p99", p->ttft_p99}, {"itl_p50", p->itl_p50},
            {"itl_p99", p->itl_p99}};

        json_open(w, '{');
        write_ms(w, "ago_ms", p->at, now);
        write_count(w, "running", p->running);
        write_count(w, "streams", p->streams);
        write_count(w, "waiting", p->waiting);
        for (size_t i = 0; i < sizeof(values) / sizeof(*values); i++) {
                json_key(w, values[i].name);
                json_double(w, values[i].value);
        }
        json_close(w, '}');
}

void debug_write_load(const struct gateway *g, struct json_writer *w) {
        struct stats_now now = gateway_measure(g);
        uint64_t at = gateway_now(g);

        json_open(w, '{');
        json_key(w, "ready");
        json_bool(w, now.ready);
        json_key(w, "draining");
        json_bool(w, now.draining);
        write_count(w, "running", now.requests);
        write_count(w, "streams", now.streams);
        write_count(w, "waiting", now.waiting);
        write_count(w, "connections", now.connections);
        write_count(w, "retries", g->stats.counters[COUNT_RETRIES]);
        write_count(w, "continued", g->stats.counters[COUNT_CONTINUED]);
        write_count(w, "cut", g->stats.counters[COUNT_CUT]);
        write_count(w, "stranded", g->stats.counters[COUNT_STRANDED]);
        write_count(w, "instance_count", pool_count(g->pool, ROLE_PREFILL) + pool_count(g->pool, ROLE_DECODE));
        json_key(w, "instances"); /* the first DEBUG_ROWS_MAX of each role */
        write_instances(w, g->pool);
        write_count(w, "step_ms", HISTORY_STEP_NS / NS_PER_MS);
        json_key(w, "history");
        json_open(w, '[');
        for (size_t i = 0; i < g->history.count; i++)
                write_point(w, history_at(&g->history, i), at);
        json_close(w, ']');
        json_close(w, '}');
}
