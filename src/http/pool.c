/* pool.c - endpoints in use: their addresses, and their idle connections.
 *
 * A target lives while calls or connections refer to it. The connection used last is taken first, so that the pool shrinks
 * to what the load needs and the rest times out. */
#include "base/hash.h"
#include "http/client.h"
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/un.h>

#define BUCKETS_FIRST 64

int http_pool_init(struct http_pool *p) {
        p->buckets = calloc(BUCKETS_FIRST, sizeof(*p->buckets));
        if (!p->buckets)
                return -ENOMEM;
        p->count_buckets = BUCKETS_FIRST;
        p->seed = hash_seed();
        return 0;
}

void http_pool_free(struct http_pool *p) {
        assert(p->count_targets == 0);
        free(p->buckets);
        p->buckets = NULL;
}

/* Keep about one target per bucket. Without memory the chains just grow longer. */
static void grow(struct http_pool *p) {
        size_t count = p->count_buckets * 2;
        struct http_target **buckets = calloc(count, sizeof(*buckets));

        if (!buckets)
                return;
        for (size_t i = 0; i < p->count_buckets; i++) {
                struct http_target *t = p->buckets[i];

                while (t) {
                        struct http_target *next = t->next;

                        t->next = buckets[t->hash & (count - 1)];
                        buckets[t->hash & (count - 1)] = t;
                        t = next;
                }
        }
        free(p->buckets);
        p->buckets = buckets;
        p->count_buckets = count;
}

/* An address literal needs no resolver; RFC 4007 zone ids ("fe80::1%eth0") are kept. */
static void set_literal(struct http_target *t) {
        char host[INET6_ADDRSTRLEN + IF_NAMESIZE + 2], *zone;
        union http_address *a = &t->addresses[0];

        if (t->endpoint.host.len >= sizeof(host))
                return;
        memcpy(host, t->endpoint.host.ptr, t->endpoint.host.len);
        host[t->endpoint.host.len] = 0;
        zone = strchr(host, '%');
        if (zone)
                *zone++ = 0;
        if (!zone && inet_pton(AF_INET, host, &a->v4.sin_addr) == 1) {
                a->v4.sin_family = AF_INET;
                a->v4.sin_port = htons(t->endpoint.port);
                t->literal = true;
        } else if (inet_pton(AF_INET6, host, &a->v6.sin6_addr) == 1) {
                a->v6.sin6_family = AF_INET6;
                a->v6.sin6_port = htons(t->endpoint.port);
                a->v6.sin6_scope_id = zone ? if_nametoindex(zone) : 0;
                t->literal = true;
        }
        t->count_addresses = t->literal;
}

/* The Host field: RFC 9110 7.2. The default port is left out, as browsers and curl do. */
static size_t write_host_field(const struct http_endpoint *endpoint, char *out, size_t size) {
        bool v6 = slice_find(endpoint->host, ':', 0) < endpoint->host.len;
        size_t host_len = slice_find(endpoint->host, '%', 0); /* a zone means nothing elsewhere */
        int n;

        if (endpoint->is_unix)
                return (size_t)snprintf(out, size, "localhost");
        n = snprintf(out, size, "%s%.*s%s", v6 ? "[" : "", (int)host_len, endpoint->host.ptr, v6 ? "]" : "");
        if (endpoint->port != (endpoint->tls ? 443 : 80))
                n += snprintf(out + n, size - (size_t)n, ":%u", endpoint->port);
        return (size_t)n;
}

static struct http_target *new_target(struct http_client *c, const struct http_endpoint *endpoint, uint64_t hash) {
        size_t key = endpoint->key.len, host = endpoint->host.len, field = host + 16;
        struct http_target *t = calloc(1, sizeof(*t) + key + host + field);
        char *at;

        if (!t)
                return NULL;
        at = (char *)(t + 1);
        t->client = c;
        t->hash = hash;
        t->endpoint = *endpoint;
        memcpy(at, endpoint->key.ptr, key);
        t->endpoint.key = slice_of(at, key);
        memcpy(at + key, endpoint->host.ptr, host);
        t->endpoint.host = slice_of(at + key, host);
        t->host_field = slice_of(at + key + host, write_host_field(endpoint, at + key + host, field));
        list_init(&t->idle);
        list_init(&t->waiting);
        if (endpoint->is_unix)
                t->literal = true;
        else
                set_literal(t);
        return t;
}

struct http_target *http_target_get(struct http_client *c, const struct http_endpoint *endpoint) {
        struct http_pool *p = &c->pool;
        uint64_t hash = hash64(endpoint->key, p->seed);
        struct http_target *t = p->buckets[hash & (p->count_buckets - 1)];

        while (t && !(t->hash == hash && slice_eq(t->endpoint.key, endpoint->key)))
                t = t->next;
        if (!t) {
                t = new_target(c, endpoint, hash);
                if (!t)
                        return NULL;
                if (p->count_targets >= p->count_buckets)
                        grow(p);
                t->next = p->buckets[hash & (p->count_buckets - 1)];
                p->buckets[hash & (p->count_buckets - 1)] = t;
                p->count_targets++;
        }
        t->references++;
        return t;
}

void http_target_put(struct http_target *t) {
        struct http_pool *p = &t->client->pool;
        struct http_target **at;

        if (--t->references)
                return;
        at = &p->buckets[t->hash & (p->count_buckets - 1)];
        while (*at != t)
                at = &(*at)->next;
        *at = t->next;
        p->count_targets--;
        free(t);
}

/* ---- names ---------------------------------------------------------------------------------------------------- */

bool http_target_has_addresses(struct http_target *t) {
        return t->literal || (t->count_addresses && http_io_now(&t->client->io) - t->resolved_at < HTTP_RESOLVE_MS);
}

static void take_addresses(struct http_target *t, const struct addrinfo *found) {
        unsigned count = 0;

        for (const struct addrinfo *a = found; a && count < HTTP_ADDRESSES_MAX; a = a->ai_next) {
                if (a->ai_family != AF_INET && a->ai_family != AF_INET6)
                        continue;
                memset(&t->addresses[count], 0, sizeof(t->addresses[count]));
                memcpy(&t->addresses[count], a->ai_addr, a->ai_addrlen);
                if (a->ai_family == AF_INET)
                        t->addresses[count].v4.sin_port = htons(t->endpoint.port);
                else
                        t->addresses[count].v6.sin6_port = htons(t->endpoint.port);
                count++;
        }
        if (count) {
                t->count_addresses = count;
                t->preferred = 0;
                t->resolved_at = http_io_now(&t->client->io);
        }
}

static void on_resolved(uv_getaddrinfo_t *request, int status, struct addrinfo *found) {
        struct http_target *t = list_item(request, struct http_target, resolve);
        struct http_client *c = t->client;
        struct list waiting, *link;

        t->resolving = false;
        c->resolving--;
        if (status == 0)
                take_addresses(t, found);
        uv_freeaddrinfo(found);
        /* When the resolver fails, addresses that worked before are better than none. */
        list_init(&waiting);
        while ((link = list_pop_front(&t->waiting)))
                list_push_back(&waiting, link);
        while ((link = list_pop_front(&waiting)))
                http_call_resolved(http_call_of_waiting(link), t->count_addresses ? 0
                                                               : status < 0       ? status
                                                                                  : UV_EAI_NONAME);
        http_target_put(t);
        http_client_check_closed(c);
}

int http_target_resolve(struct http_target *t) {
        struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
        char *host;
        int r;

        if (t->resolving)
                return 0;
        host = slice_dup(t->endpoint.host);
        if (!host)
                return -ENOMEM;
        r = uv_getaddrinfo(t->client->io.loop, &t->resolve, on_resolved, host, NULL, &hints);
        free(host);
        if (r < 0)
                return r;
        t->resolving = true;
        t->references++;
        t->client->resolving++;
        return 0;
}

/* ---- connections ---------------------------------------------------------------------------------------------- */

static void on_idle_deadline(struct wheel_timer *timer) {
        http_upstream_close(list_item(timer, struct http_upstream, timer));
}

struct http_upstream *http_upstream_new(struct http_client *c) {
        struct list *link = list_pop_front(&c->spare_upstreams);
        struct http_upstream *u;
        struct http_parser_limits limits = {
            .head_bytes = c->options.head_bytes, .head_fields = HTTP_ANSWER_FIELDS_MAX, .body_bytes = UINT64_MAX};

        if (link) {
                c->count_spare_upstreams--;
                u = list_item(link, struct http_upstream, link);
        } else {
                u = malloc(sizeof(*u));
                if (!u)
                        return NULL;
        }
        u->client = c;
        u->target = NULL;
        u->call = NULL;
        u->address = 0;
        list_init(&u->link);
        list_init(&u->idle_link);
        wheel_timer_init(&u->timer, on_idle_deadline);
        http_parser_init_response(&u->parser, &limits);
        return u;
}

void http_upstream_free(struct http_upstream *u) {
        struct http_client *c = u->client;

        list_remove(&u->link);
        if (c->count_spare_upstreams >= HTTP_SPARE_CALLS || c->closing) {
                free(u);
                return;
        }
        list_push_front(&c->spare_upstreams, &u->link);
        c->count_spare_upstreams++;
}

static void leave_idle(struct http_upstream *u) {
        if (list_empty(&u->idle_link))
                return;
        list_remove(&u->idle_link);
        u->target->count_idle--;
        wheel_stop(&u->timer);
}

struct http_upstream *http_pool_take(struct http_target *t) {
        struct http_upstream *u;

        if (list_empty(&t->idle))
                return NULL;
        u = list_item(t->idle.next, struct http_upstream, idle_link);
        leave_idle(u);
        return u;
}

void http_pool_give(struct http_upstream *u) {
        struct http_target *t = u->target;
        struct http_client *c = u->client;

        u->call = NULL;
        if (c->closing || u->conn.closing || u->conn.hung_up) {
                http_upstream_close(u);
                return;
        }
        http_conn_set_reading(&u->conn, true);
        list_push_front(&t->idle, &u->idle_link);
        if (++t->count_idle > c->options.idle_per_endpoint)
                http_upstream_close(list_item(t->idle.prev, struct http_upstream, idle_link));
        http_io_deadline(&c->io, &u->timer, http_io_now(&c->io) + c->options.idle_ms);
}

void http_upstream_close(struct http_upstream *u) {
        leave_idle(u);
        http_conn_close(&u->conn);
}

void http_pool_close_idle(struct http_client *c) {
        list_for_each (at, &c->upstreams) {
                struct http_upstream *u = list_item(at, struct http_upstream, link);

                if (!u->call)
                        http_upstream_close(u);
        }
}
