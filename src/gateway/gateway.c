/* gateway.c - the gateway as a whole: made, started, ticking, drained, freed. */
#include "base/clock.h"
#include "base/hash.h"
#include "gateway/core.h"
#include "os/os.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* Between looks at what changes by itself: probes that are due, lines of the access log, waiting parts. */
#define PACE (100 * NS_PER_MS)
/* The same, when more probes are due than are started at once. */
#define PACE_OF_MANY (10 * NS_PER_MS)
/* Between looks for streams that have gone silent. */
#define PACE_OF_SILENCE NS_PER_S
/* A leg whose instance was ejected is cut when it has shown no life for so long; one that still talks is left alone, for
 * a health route may fail where the engine works. */
#define SILENT_WHEN_EJECTED (2 * NS_PER_S)

uint64_t gateway_now(const struct gateway *g) {
        return clock_mono_ns();
}

bool gateway_is_ready(const struct gateway *g) {
        if (g->draining)
                return false;
        if (g->connector->order != ORDER_ONE && pool_routable(g->pool, ROLE_PREFILL) == 0)
                return false;
        return pool_routable(g->pool, ROLE_DECODE) > 0;
}

/* ---- what clients send ------------------------------------------------------------------------------------------------ */

bool gateway_keep_body(struct gateway *g, struct buf *body, struct slice data) {
        size_t before = body->len;

        if (g->body_bytes + data.len > g->max_body_bytes)
                return false;
        buf_add(body, data);
        g->body_bytes += body->len - before;
        return buf_ok(body);
}

void gateway_drop_body(struct gateway *g, struct buf *body) {
        g->body_bytes -= body->len;
        buf_free(body);
}

/* ---- the timer ------------------------------------------------------------------------------------------------------ */

static void on_timer(uv_timer_t *timer);

static void arm(struct gateway *g, uint64_t ms) {
        if (g->timer_open)
                uv_timer_start(&g->timer, on_timer, ms, 0);
}

static uint64_t ms_until(uint64_t when, uint64_t now) {
        return when <= now ? 0 : (when - now + NS_PER_MS - 1) / NS_PER_MS;
}

/* Let the timer look on the next turn of the loop; what it is to do stands in the gateway. */
static void wake(struct gateway *g) {
        if (g->timer_open && uv_timer_get_due_in(&g->timer) > 0)
                arm(g, 0);
}

void gateway_wake_at(struct gateway *g, uint64_t due) {
        uint64_t ms;

        if (due >= g->waiting_at)
                return;
        g->waiting_at = due;
        ms = ms_until(due, gateway_now(g));
        if (g->timer_open && uv_timer_get_due_in(&g->timer) > ms)
                arm(g, ms);
}

void gateway_wake_admission(struct gateway *g) {
        if (g->admission.queue.count > 0)
                wake(g);
}

void gateway_wake_waiting(struct gateway *g, enum role role) {
        if (role == gateway_first_role(g))
                gateway_wake_admission(g);
        if (list_empty(&g->waiting[role]))
                return;
        g->freed[role] = true;
        wake(g);
}

/* Probe what is due now, not at the next pace. */
static void probe_soon(struct gateway *g) {
        g->periodic_at = 0;
        wake(g);
}

enum role gateway_first_role(const struct gateway *g) {
        return g->connector->order == ORDER_PREFILL_FIRST ? ROLE_PREFILL : ROLE_DECODE;
}

struct part *gateway_first_in_need(struct gateway *g, enum role role) {
        list_for_each (at, &g->waiting[role]) {
                struct part *p = list_item(at, struct part, waiting);

                if (p->due == UINT64_MAX)
                        return p;
        }
        return NULL;
}

/* Only as many are looked at as there is room for: thousands may wait for each leg that ends. One that avoids whoever has
 * the room then waits for a moment, and the next one is asked. */
static void fill_freed(struct gateway *g, enum role role) {
        struct part *p;

        g->freed[role] = false;
        while (pool_has_room(g->pool, role) && (p = gateway_first_in_need(g, role))) {
                struct request *r = p->request;

                part_step(p, PART_TRY);
                request_settle(r);
        }
}

/* Look at each waiting part once; those that are moved on may end their requests. New ones come behind the mark. */
static void tick_waiting(struct gateway *g, struct list *waiting, uint64_t now) {
        struct list mark;

        list_push_back(waiting, &mark);
        while (waiting->next != &mark) {
                struct part *p = list_item(waiting->next, struct part, waiting);
                struct request *r = p->request;

                list_remove(&p->waiting);
                list_push_back(waiting, &p->waiting);
                if (part_due(p) > now) {
                        gateway_wake_at(g, part_due(p));
                        continue;
                }
                part_tick(p, now);
                request_settle(r);
        }
        list_remove(&mark);
}

/* Is this leg to be given up? A stream that says nothing for too long hangs, also behind its [DONE]; and so does, sooner, a
 * leg of an instance that was ejected. */
static bool is_lost(const struct gateway *g, const struct part *p, const struct leg *l, uint64_t now) {
        uint64_t limit = (uint64_t)(g->options.idle_timeout * (double)NS_PER_S), silence;

        if (!leg_in_flight(l) || p->client_is_slow)
                return false;
        silence = now > l->last_byte ? now - l->last_byte : 0;
        if (l->at->state == INSTANCE_EJECTED && silence > SILENT_WHEN_EJECTED)
                return true;
        return l->role == ROLE_DECODE && (p->state == PART_RELAY || p->state == PART_END) && limit > 0 &&
               silence > limit;
}

static void tick_silence(struct gateway *g, uint64_t now) {
        list_for_each (at, &g->requests) {
                struct request *r = list_item(at, struct request, link);

                request_keep_alive(r, now);
                for (size_t i = 0; i < r->part_count; i++) {
                        struct part *p = &r->parts[i];

                        part_tick_reserve(p, now);
                        if (is_lost(g, p, &p->prefill, now))
                                leg_stop(&p->prefill, LEG_BROKEN);
                        if (is_lost(g, p, &p->decode, now))
                                leg_stop(&p->decode, LEG_BROKEN);
                }
        }
}

static void on_flush(uv_check_t *check) {
        struct gateway *g = check->data;

        while (!list_empty(&g->unsent))
                request_flush(list_item(g->unsent.next, struct request, unsent));
}

static void maybe_drained(struct gateway *g);

static void periodic(struct gateway *g, uint64_t now) {
        g->periodic_at = now + PACE;
        if (!g->draining && health_probe(g))
                g->periodic_at = now + PACE_OF_MANY;
        if (now >= g->silence_at) {
                g->silence_at = now + PACE_OF_SILENCE;
                tick_silence(g, now);
        }
        if (now >= g->sample_at) {
                struct stats_now figures = gateway_measure(g);

                g->sample_at = now + HISTORY_STEP_NS;
                history_sample(&g->history, &g->stats, &figures, now);
        }
        access_flush(&g->access);
}

static uint64_t next_look(const struct gateway *g) {
        if (g->freed[ROLE_PREFILL] || g->freed[ROLE_DECODE])
                return 0;
        return g->waiting_at < g->periodic_at ? g->waiting_at : g->periodic_at;
}

static void on_timer(uv_timer_t *timer) {
        struct gateway *g = timer->data;
        uint64_t now = gateway_now(g);

        for (int role = 0; role < ROLE_COUNT; role++)
                if (g->freed[role])
                        fill_freed(g, (enum role)role);
        if (now >= g->waiting_at) {
                g->waiting_at = g->waiting_count > 0 ? now + PACE : UINT64_MAX;
                for (int role = 0; role < ROLE_COUNT; role++)
                        tick_waiting(g, &g->waiting[role], now);
        }
        admission_tick(g, now);
        if (now >= g->periodic_at)
                periodic(g, now);
        maybe_drained(g);
        arm(g, ms_until(next_look(g), gateway_now(g)));
}

/* ---- membership ----------------------------------------------------------------------------------------------------- */

static void on_change(void *context, struct instance *i, enum instance_state before, bool gone) {
        struct gateway *g = context;

        if (gone) {
                events_unfollow(i);
                log_info(g->log, "%s %s has left", pool_role_name(i->role), i->name);
                return;
        }
        if (i->state == INSTANCE_EJECTED || (i->state == INSTANCE_SUSPECT && before != INSTANCE_SUSPECT))
                log_warn(g->log, "%s %s is %s (was %s)", pool_role_name(i->role), i->name,
                    instance_state_name(i->state), instance_state_name(before));
        else
                log_info(g->log, "%s %s is %s (was %s)", pool_role_name(i->role), i->name,
                    instance_state_name(i->state), instance_state_name(before));
        if (i->state == INSTANCE_HEALTHY)
                gateway_wake_waiting(g, i->role);
        if (i->state == INSTANCE_SUSPECT)
                probe_soon(g);
}

int gateway_member_key(struct arena *arena, const struct gateway_member *m, struct http_endpoint *ret_endpoint,
    const char **ret_key, struct error *e) {
        struct slice path, key;
        const char *text;
        int r = http_endpoint_parse(arena, slice_str(m->url), ret_endpoint, &path, e);

        if (r < 0)
                return r;
        if (path.len > 0 && !slice_is(path, "/"))
                return error_set(e, -EINVAL, "%s: an instance's address has no path", m->url);
        key = ret_endpoint->key;
        if (slice_starts(key, SLICE_LIT("http://")))
                key = slice_sub(key, 7, key.len);
        text =
            m->dp_rank >= 0 ? arena_printf(arena, "%.*s@%d", SLICE_ARG(key), m->dp_rank) : arena_copy(arena, key).ptr;
        if (!text)
                return -ENOMEM;
        *ret_key = text;
        return 0;
}

/* The endpoint in one block of memory, for the pool to free. */
static struct http_endpoint *endpoint_dup(const struct http_endpoint *from) {
        struct http_endpoint *to = malloc(sizeof(*to) + from->key.len + from->host.len + 2);
        char *text;

        if (!to)
                return NULL;
        text = (char *)(to + 1);
        *to = *from;
        memcpy(text, from->key.ptr, from->key.len);
        text[from->key.len] = 0;
        to->key = slice_of(text, from->key.len);
        text += from->key.len + 1;
        memcpy(text, from->host.ptr, from->host.len);
        text[from->host.len] = 0;
        to->host = slice_of(text, from->host.len);
        return to;
}

int gateway_add_member(struct gateway *g, const struct gateway_member *m, bool later, struct error *e) {
        struct arena arena = {0};
        struct http_endpoint endpoint, *copy;
        struct instance *i;
        struct instance_spec spec = {.role = m->prefill ? ROLE_PREFILL : ROLE_DECODE,
            .name = m->name,
            .dp_rank = m->dp_rank,
            .bootstrap_port = m->bootstrap_port,
            .added_later = later};
        int r = gateway_member_key(&arena, m, &endpoint, &spec.key, e);

        if (r < 0)
                goto out;
        copy = endpoint_dup(&endpoint);
        if (!copy) {
                r = -ENOMEM;
                goto out;
        }
        spec.endpoint = copy;
        r = pool_add(g->pool, &spec, gateway_now(g), &i);
        if (r < 0) {
                free(copy);
                if (r == -EEXIST)
                        error_set(e, r, "%s is given twice as %s instance", spec.key, pool_role_name(spec.role));
                goto out;
        }
        if (g->listening)
                events_follow(g, i);
        probe_soon(g);
out:
        arena_free(&arena);
        return r;
}

/* ---- life ----------------------------------------------------------------------------------------------------------- */

static void on_request(void *context, struct http_exchange *x) {
        struct gateway *g = context;

        route_request(g, x, g->admin_server ? LISTENER_CLIENTS : LISTENER_ALL);
}

static void on_admin_request(void *context, struct http_exchange *x) {
        route_request(context, x, LISTENER_ADMIN);
}

static int make_key_field(struct gateway *g) {
        char *value;

        if (!g->options.api_key)
                return 0;
        if (asprintf(&value, "Bearer %s", g->options.api_key) < 0)
                return -ENOMEM;
        g->key_field = (struct http_field){SLICE_LIT("Authorization"), slice_str(value)};
        g->key_fields = (struct http_fields){&g->key_field, 1};
        return 0;
}

static int make_pool(struct gateway *g) {
        const struct gateway_options *o = &g->options;
        struct pool_options options = {
            .probe_interval = (uint64_t)(o->probe_interval * (double)NS_PER_S),
            .join_interval = (uint64_t)(o->join_interval * (double)NS_PER_S),
            .join_tries = (unsigned)o->join_tries,
            .cap = (uint32_t)o->instance_cap,
            .policy = {policy_find(o->prefill_policy ? o->prefill_policy : o->policy),
                policy_find(o->decode_policy ? o->decode_policy : o->policy)},
            .slow_start = (uint64_t)(o->slow_start * (double)NS_PER_S),
            .prefix_bytes = (size_t)o->prefix_bytes,
            .kv_bytes = o->kv_events.count > 0 ? (size_t)o->kv_bytes : 0,
            .seed = hash_seed(),
            .on_change = on_change,
            .context = g,
        };

        return pool_new(&options, &g->pool);
}

/* A client in flight has three descriptors: its own, its decode leg's, and the connection that its prefill leg has left
 * idle. Were there more clients, connecting would fail for want of descriptors, and instances would be blamed for it. A
 * sixteenth stays for listeners, logs and probes. */
static size_t client_limit(void) {
        uint64_t files = os_raise_file_limit();

        return (size_t)((files - files / 16) / 3);
}

/* People and monitors: few connections, small bodies. */
#define ADMIN_CONNECTIONS 64
#define ADMIN_BODY_BYTES  (1u << 20)

static int make_http(struct gateway *g, struct error *e) {
        const struct http_server_options admin = {
            .limits = {.body_bytes = ADMIN_BODY_BYTES, .connections = ADMIN_CONNECTIONS},
            .tls = g->options.tls,
            .log = g->log,
            .on_request = on_admin_request,
            .context = g,
        };
        const struct http_server_options server = {
            .limits = {.body_bytes = (size_t)g->options.max_body,
                .connections = client_limit(),
                .head_ms = (unsigned)(g->options.client_header_timeout * 1000),
                .body_idle_ms = (unsigned)(g->options.client_body_timeout * 1000)},
            .tls = g->options.tls,
            .log = g->log,
            .on_request = on_request,
            .context = g,
        };
        /* As many kept connections as there may be legs at once in an ordinary burst: a new one costs a round trip. vLLM
         * closes idle ones after 5 s: closing first avoids sending into a connection that is being closed. */
        const struct http_client_options client = {.idle_per_endpoint = 256, .idle_ms = 4000, .log = g->log};
        int r = http_server_new(g->loop, &server, &g->server, e);

        if (r == 0 && g->options.admin_port >= 0)
                r = http_server_new(g->loop, &admin, &g->admin_server, e);
        return r < 0 ? r : http_client_new(g->loop, &client, &g->client, e);
}

/* What texts are tokenised with, where that is wanted. */
static int make_tokens(struct gateway *g, struct error *e) {
        const struct gateway_options *o = &g->options;
        struct error no_chat = {0};
        int r;

        if (!o->tokenizer || o->kv_events.count == 0)
                return 0;
        r = tokens_reader_load(o->tokenizer, o->chat_format, &g->tokens, &no_chat, e);
        if (r < 0)
                return error_prefix(e, -EINVAL, "--tokenizer");
        if (g->tokens.chat.family == CHAT_NONE)
                log_warn(g->log, "--tokenizer: chat prompts are guessed: %s; --chat-format names a format",
                    error_text(&no_chat, -EINVAL));
        return 0;
}

int gateway_new(uv_loop_t *loop, const struct gateway_options *options, struct gateway **ret_gateway, struct error *e) {
        struct gateway *g = calloc(1, sizeof(*g));
        int r;

        if (!g)
                return error_set(e, -ENOMEM, "out of memory");
        g->loop = loop;
        g->options = *options;
        g->log = options->log;
        g->max_body_bytes = (size_t)options->max_bodies;
        if (g->max_body_bytes == 0)
                g->max_body_bytes = os_memory_total() / 4;
        g->connector = connector_find(options->connector ? options->connector : "pull");
        g->access.fd = -1;
        list_init(&g->requests);
        for (int role = 0; role < ROLE_COUNT; role++)
                list_init(&g->waiting[role]);
        g->waiting_at = UINT64_MAX;
        for (size_t i = 0; i < ASKING_BUCKETS; i++)
                list_init(&g->asking[i]);
        queue_init(&g->admission.queue, (size_t)options->queue_size);
        list_init(&g->admission.arrivals);
        g->admission.seed = hash_seed();
        list_init(&g->calls);
        list_init(&g->unsent);
        assert(g->connector);
        r = stats_init(&g->stats);
        if (r == 0)
                r = history_init(&g->history, &g->stats);
        if (r == 0)
                r = make_key_field(g);
        if (r == 0)
                r = make_pool(g);
        if (r == 0)
                r = make_tokens(g, e);
        if (r == 0)
                r = access_open(&g->access, options->access_log, e);
        for (size_t i = 0; r == 0 && i < options->member_count; i++)
                r = gateway_add_member(g, &options->members[i], false, e) < 0 ? -EINVAL : 0;
        /* Last: the client has handles on the loop, which only a drain closes. */
        if (r == 0)
                r = make_http(g, e);
        if (r < 0) {
                gateway_free(g);
                return r;
        }
        uv_timer_init(g->loop, &g->timer);
        g->timer.data = g;
        g->timer_open = true;
        uv_check_init(g->loop, &g->flush);
        g->flush.data = g;
        uv_check_start(&g->flush, on_flush);
        *ret_gateway = g;
        return 0;
}

/* Where decoders find us: as told, or where we listen. */
static int make_metaserver(struct gateway *g, uint16_t port, struct error *e) {
        const struct gateway_options *o = &g->options;
        bool bare_v6 = strchr(o->host, ':') && o->host[0] != '[';
        char *url;

        if (g->connector->order != ORDER_DECODE_FIRST)
                return 0;
        if (o->metaserver_url ? asprintf(&url, "%s", o->metaserver_url) < 0
                              : asprintf(&url, bare_v6 ? "%s://[%s]:%u/v1/metaserver" : "%s://%s:%u/v1/metaserver",
                                    o->tls.cert ? "https" : "http", o->host, port) < 0)
                return error_set(e, -ENOMEM, "out of memory");
        g->metaserver = slice_str(url);
        return 0;
}

int gateway_start(struct gateway *g, uint16_t *ret_port, struct error *e) {
        const struct http_listen at = {.host = g->options.host, .port = (uint16_t)g->options.port};
        const struct http_listen admin = {.host = g->options.admin_host ? g->options.admin_host : "127.0.0.1",
            .port = (uint16_t)(g->options.admin_port > 0 ? g->options.admin_port : 0)};
        uint16_t port, admin_port;
        int r = http_server_listen(g->server, &at, &port, e);

        g->listening = r == 0;
        if (r == 0 && g->admin_server) {
                r = http_server_listen(g->admin_server, &admin, &admin_port, e);
                if (r == 0)
                        log_info(g->log, "admin routes at %s:%u", admin.host, admin_port);
        }
        if (r == 0)
                r = make_metaserver(g, port, e);
        if (r == 0)
                r = events_start(g, e);
        if (r < 0)
                return r;
        if (ret_port)
                *ret_port = port;
        arm(g, 0);
        return 0;
}

/* ---- the end: server, then requests without client, then calls, then the timer ---------------------------------------- */

static void on_handle_closed(uv_handle_t *handle) {
        struct gateway *g = handle->data;

        if (--g->open_handles == 0)
                g->on_drained(g->drained_context);
}

static void on_client_closed(void *context) {
        struct gateway *g = context;

        access_flush(&g->access);
        g->timer_open = false;
        g->open_handles = 2;
        uv_close((uv_handle_t *)&g->timer, on_handle_closed);
        uv_close((uv_handle_t *)&g->flush, on_handle_closed);
}

static void on_server_drained(void *context) {
        struct gateway *g = context;

        g->servers_open--;
        wake(g);
}

static void stop_all(struct gateway *g) {
        list_for_each (at, &g->requests) {
                request_stop(list_item(at, struct request, link));
        }
}

/* Requests whose client has left may still settle; they end by their own deadlines, or are stopped with the drain's. */
static void maybe_drained(struct gateway *g) {
        if (!g->draining || g->closing)
                return;
        if (!g->stopped && (g->abort_now || gateway_now(g) >= g->drain_deadline)) {
                g->stopped = true;
                stop_all(g);
        }
        if (g->servers_open > 0 || g->request_count > 0)
                return;
        g->closing = true;
        call_abort_all(g);
        events_stop(g);
        http_client_close(g->client, on_client_closed, g);
}

void gateway_request_gone(struct gateway *g) {
        if (g->draining)
                wake(g);
}

void gateway_drain(struct gateway *g, void (*on_drained)(void *context), void *context) {
        double timeout = g->options.drain_timeout;
        struct http_server *const servers[] = {g->server, g->admin_server};

        if (g->draining) {
                g->abort_now = true;
                wake(g);
                return;
        }
        g->draining = true;
        g->on_drained = on_drained;
        g->drained_context = context;
        g->drain_deadline = gateway_now(g) + (uint64_t)(timeout * (double)NS_PER_S);
        log_info(
            g->log, "draining: %llu requests in flight, at most %g s", (unsigned long long)g->request_count, timeout);
        for (int i = 0; g->listening && i < 2; i++)
                if (servers[i]) {
                        g->servers_open++;
                        http_server_drain(servers[i], (unsigned)(timeout * 1000) + 1000, on_server_drained, g);
                }
        arm(g, 0);
}

void gateway_free(struct gateway *g) {
        if (!g)
                return;
        assert(g->request_count == 0 && g->leg_count == 0 && g->body_bytes == 0);
        http_server_free(g->server);
        http_server_free(g->admin_server);
        http_client_free(g->client);
        queue_free(&g->admission.queue);
        pool_free(g->pool);
        events_hub_free(g->events);
        tokens_reader_free(&g->tokens);
        access_close(&g->access);
        history_free(&g->history);
        stats_free(&g->stats);
        free((char *)g->key_field.value.ptr);
        free((char *)g->metaserver.ptr);
        while (g->spare_arena_count > 0)
                arena_free(&g->spare_arenas[--g->spare_arena_count]);
        while (g->spare_count > 0)
                buf_free(&g->spare[--g->spare_count]);
        free(g);
}
