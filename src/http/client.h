/* client.h - what the parts of the client share: client.c (the whole), call.c (calls), pool.c (endpoints, their names and
 * their connections).
 * Private to http/. */
#pragma once
#include "base/buf.h"
#include "http/codec.h"
#include "http/conn.h"
#include "http/tls.h"

/* Addresses tried per name. */
#define HTTP_ADDRESSES_MAX 8
/* A resolved name is asked for again after this: getaddrinfo() tells no lifetime, and names of services move. */
#define HTTP_RESOLVE_MS 30000
/* Fields of an answer: servers send 10 to 30. */
#define HTTP_ANSWER_FIELDS_MAX 256
/* Calls and connections kept as memory for the next ones. */
#define HTTP_SPARE_CALLS 256

union http_address {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
};

struct http_target { /* an endpoint that is in use */
        struct http_target *next;
        struct http_client *client;
        uint64_t hash;
        size_t references; /* calls, connections, and a resolving */
        struct list idle;  /* connections, last used first */
        size_t count_idle;
        struct list waiting; /* calls, for the resolver */
        uv_getaddrinfo_t resolve;
        bool resolving, literal;
        uint64_t resolved_at;
        unsigned count_addresses, preferred;
        union http_address addresses[HTTP_ADDRESSES_MAX];
        struct http_endpoint endpoint; /* its slices point into the bytes behind the struct */
        struct slice host_field;
};

struct http_pool {
        struct http_target **buckets;
        size_t count_buckets, count_targets;
        uint64_t seed;
};

struct http_client {
        struct http_io io;
        struct http_client_options options; /* filled in */
        struct http_tls_context *tls;       /* made at the first https endpoint */
        struct http_pool pool;
        struct list calls, upstreams, spare_calls, spare_upstreams;
        size_t count_spare_calls, count_spare_upstreams, resolving;
        struct http_task closed_task;
        void (*on_closed)(void *context);
        void *closed_context;
        bool closing, closed;
};

/* A connection of the pool. */
struct http_upstream {
        struct http_conn conn;
        struct http_client *client;
        struct http_target *target;
        struct http_call *call; /* NULL while idle */
        struct list link, idle_link;
        struct wheel_timer timer; /* while idle */
        struct http_parser parser;
        uint8_t address; /* which of the target's it is connected to */
};

/* pool.c */
int http_pool_init(struct http_pool *p);
void http_pool_free(struct http_pool *p);
/* The target of that key, made when there is none, with a reference for the caller. NULL when memory is out. */
struct http_target *http_target_get(struct http_client *c, const struct http_endpoint *endpoint);
void http_target_put(struct http_target *t);
/* Whether addresses are known and fresh; if not, ask for them: http_call_resolved() follows for each waiting call. */
bool http_target_has_addresses(struct http_target *t);
int http_target_resolve(struct http_target *t);

struct http_upstream *http_upstream_new(struct http_client *c);
void http_upstream_free(struct http_upstream *u); /* memory only */
/* The idle connection used last, or NULL. */
struct http_upstream *http_pool_take(struct http_target *t);
/* A connection that may carry another call. */
void http_pool_give(struct http_upstream *u);
void http_upstream_close(struct http_upstream *u);
void http_pool_close_idle(struct http_client *c);

/* client.c */
/* The context of TLS connections, made when it is first needed. Returns 0 or a negative errno (logged). */
int http_client_make_tls(struct http_client *c);
void http_client_check_closed(struct http_client *c);

/* call.c */
extern const struct http_conn_ops http_upstream_ops;
struct http_call *http_call_of_waiting(struct list *link);
void http_call_resolved(struct http_call *call, int error);
/* By their links in client->calls and client->spare_calls. */
void http_call_close(struct list *link);
void http_call_free_spare(struct list *link);
