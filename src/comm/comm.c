/* comm.c - comm's thread, and what is called from outside. */
#include "base/clock.h"
#include "base/rng.h"
#include "comm/core.h"
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <xxhash.h>

/* ---- small things for both sides --------------------------------------------------------------------------------------- */

uint64_t comm_now(const struct comm *c) {
        return uv_now(&c->loop);
}

struct outgoing {
        uv_write_t write;
        struct buf bytes;
};

static void on_written(uv_write_t *write, int status) {
        struct outgoing *o = write->data;

        buf_free(&o->bytes);
        free(o);
}

int comm_send(uv_stream_t *to, const struct wire_message *m) {
        struct outgoing *o = calloc(1, sizeof(*o));
        uv_buf_t out;
        int r;

        if (!o)
                return -ENOMEM;
        o->write.data = o;
        wire_write(&o->bytes, m);
        out = uv_buf_init(o->bytes.ptr, (unsigned)o->bytes.len);
        r = buf_ok(&o->bytes) ? uv_write(&o->write, to, &out, 1, on_written) : -ENOMEM;
        if (r < 0) {
                buf_free(&o->bytes);
                free(o);
        }
        return r;
}

void comm_introduce(const struct comm *c, struct wire_message *m, const char *own_facts[2]) {
        static const char *const own_names[] = {"kv_layers", "kv_row_bytes"};
        struct wire_facts *f = &m->facts;

        m->version = WIRE_VERSION;
        m->engine = slice_str(c->options.engine_id);
        for (size_t i = 0; i < c->options.fact_count; i++) {
                f->names[f->count] = slice_str(c->options.facts[i].name);
                f->values[f->count++] = slice_str(c->options.facts[i].value);
        }
        for (size_t i = 0; i < 2; i++) {
                f->names[f->count] = slice_str(own_names[i]);
                f->values[f->count++] = slice_str(own_facts[i]);
        }
}

void comm_compare(const struct comm *c, const struct wire_message *m, char *ret_text, size_t bytes) {
        char layers[16], row_bytes[16];
        const char *own_facts[] = {layers, row_bytes};
        struct wire_message own = {0};

        snprintf(layers, sizeof(layers), "%u", c->pool.layers);
        snprintf(row_bytes, sizeof(row_bytes), "%zu", c->pool.row_bytes);
        comm_introduce(c, &own, own_facts);
        ret_text[0] = '\0';
        for (size_t i = 0; i < own.facts.count; i++) {
                struct slice theirs = SLICE_LIT("not said");

                for (size_t k = 0; k < m->facts.count; k++)
                        if (slice_eq(m->facts.names[k], own.facts.names[i]))
                                theirs = m->facts.values[k];
                if (!slice_eq(theirs, own.facts.values[i])) {
                        snprintf(ret_text, bytes, "its %.*s is %.*s, here it is %.*s", SLICE_ARG(own.facts.names[i]),
                            SLICE_ARG(theirs), SLICE_ARG(own.facts.values[i]));
                        return;
                }
        }
}

void comm_tell_memory(const struct comm *c, bool same_host, struct wire_message *m) {
        m->block_tokens = c->pool.block_tokens;
        m->blocks = c->pool.blocks;
        m->base = (uintptr_t)c->pool.base;
        if (!same_host || c->options.way != COMM_WAY_BEST)
                return;
        m->pid = (uint64_t)getpid();
        m->proof_at = (uintptr_t)c->proof;
        memcpy(m->proof, c->proof, sizeof(c->proof));
}

bool comm_has_one_host(const uv_tcp_t *tcp) {
        struct sockaddr_storage here = {0}, there = {0};
        int here_bytes = sizeof(here), there_bytes = sizeof(there);

        if (uv_tcp_getsockname(tcp, (struct sockaddr *)&here, &here_bytes) < 0 ||
            uv_tcp_getpeername(tcp, (struct sockaddr *)&there, &there_bytes) < 0 || here.ss_family != there.ss_family)
                return false;
        if (here.ss_family == AF_INET6)
                return memcmp(&((struct sockaddr_in6 *)&here)->sin6_addr, &((struct sockaddr_in6 *)&there)->sin6_addr,
                           sizeof(struct in6_addr)) == 0;
        return ((struct sockaddr_in *)&here)->sin_addr.s_addr == ((struct sockaddr_in *)&there)->sin_addr.s_addr;
}

unsigned comm_turn(struct pieces *p, uv_buf_t *out) {
        struct iovec turn[TURN_PIECES];
        size_t bytes, n = pieces_gather(p, TURN_BYTES, turn, TURN_PIECES, &bytes);

        for (size_t i = 0; i < n; i++)
                out[i] = uv_buf_init(turn[i].iov_base, (unsigned)turn[i].iov_len);
        return (unsigned)n;
}

uint64_t comm_checksum(struct pieces p) {
        XXH3_state_t *state = XXH3_createState();
        struct iovec piece;
        uint64_t sum;

        if (!state)
                return 0; /* the fetch fails then */
        XXH3_64bits_reset(state);
        while ((piece = pieces_take(&p, SIZE_MAX)).iov_len)
                XXH3_64bits_update(state, piece.iov_base, piece.iov_len);
        sum = XXH3_64bits_digest(state);
        XXH3_freeState(state);
        return sum;
}

/* ---- events ------------------------------------------------------------------------------------------------------------ */

void comm_tell(struct comm *c, struct comm_event *event, int result, const char *text) {
        event->result = result;
        event->text = text;
        event->next = NULL;
        pthread_mutex_lock(&c->lock);
        /* Who takes the event frees what it is part of: nothing may be asked of that any more. */
        if (event->kind == COMM_FETCHED) {
                struct comm_fetch *f = (struct comm_fetch *)event;

                f->told = true;
                list_remove(&f->ask_link);
        } else if (event->kind == COMM_RECEIVED) {
                struct comm_receipt *x = (struct comm_receipt *)event;

                x->told = true;
                list_remove(&x->ask_link);
        } else if (event->kind == COMM_PUSHED) {
                struct comm_push *p = (struct comm_push *)event;

                p->told = true;
                list_remove(&p->ask_link);
        }
        if (c->last_event)
                c->last_event->next = event;
        else
                c->first_event = event;
        c->last_event = event;
        pthread_mutex_unlock(&c->lock);
        if (c->options.wake)
                c->options.wake(c->options.wake_context);
}

struct comm_event *comm_take(struct comm *c) {
        struct comm_event *list;

        pthread_mutex_lock(&c->lock);
        list = c->first_event;
        c->first_event = c->last_event = NULL;
        pthread_mutex_unlock(&c->lock);
        return list;
}

static void fetch_free(struct comm_fetch *f) {
        free(f->blocks);
        free(f->there_blocks);
        free(f);
}

void comm_event_free(struct comm_event *event) {
        switch (event->kind) {
        case COMM_RELEASED:
                free(event);
                break;
        case COMM_FETCHED:
                fetch_free((struct comm_fetch *)event);
                break;
        case COMM_RECEIVED:
                receipt_free((struct comm_receipt *)event);
                break;
        case COMM_PUSHED:
                push_free((struct comm_push *)event);
                break;
        }
}

/* ---- comm's thread ----------------------------------------------------------------------------------------------------- */

static void on_tick(uv_timer_t *timer) {
        struct comm *c = timer->data;
        uint64_t now = comm_now(c);

        bool wait = leases_tick(c, now);

        wait |= fetches_tick(c, now);
        wait |= receipts_tick(c, now);
        wait |= pushes_tick(c, now);
        if (!wait)
                uv_timer_stop(timer);
}

void comm_need_ticks(struct comm *c) {
        if (!uv_is_active((uv_handle_t *)&c->tick))
                uv_timer_start(&c->tick, on_tick, TICK_MS, TICK_MS);
}

void comm_take_asked(struct comm *c) {
        struct buf withdrawn;
        struct list *at;

        for (;;) {
                struct lease *l = NULL;
                struct comm_fetch *f = NULL;
                struct comm_receipt *x = NULL;
                struct comm_push *p = NULL;
                bool start = false, drop = false;

                pthread_mutex_lock(&c->lock);
                withdrawn = c->withdrawn;
                c->withdrawn = (struct buf){0};
                if ((at = list_pop_front(&c->asked_leases)))
                        l = list_item(at, struct lease, ask_link);
                else if ((at = list_pop_front(&c->asked_fetches))) {
                        f = list_item(at, struct comm_fetch, ask_link);
                        start = f->asked_start;
                        drop = f->asked_drop;
                        f->asked_start = f->asked_drop = false;
                } else if ((at = list_pop_front(&c->asked_receipts))) {
                        x = list_item(at, struct comm_receipt, ask_link);
                        drop = x->asked_drop;
                } else if ((at = list_pop_front(&c->asked_pushes))) {
                        p = list_item(at, struct comm_push, ask_link);
                        drop = p->asked_drop;
                        buf_add(&p->rows, buf_slice(&p->added));
                        p->rows.failed |= p->added.failed;
                        buf_reset(&p->added);
                }
                pthread_mutex_unlock(&c->lock);
                if (l)
                        lease_begin(c, l);
                if (f)
                        fetch_asked(f, start, drop);
                if (x)
                        receipt_asked(x, drop);
                if (p)
                        push_asked(p, drop);
                leases_withdraw(c, buf_slice(&withdrawn));
                buf_free(&withdrawn);
                if (!l && !f && !x && !p)
                        return;
        }
}

static void close_handle(uv_handle_t *handle) {
        if (!uv_is_closing(handle))
                uv_close(handle, NULL);
}

static void on_asked(uv_async_t *async) {
        struct comm *c = async->data;
        bool stopping;

        comm_take_asked(c);
        pthread_mutex_lock(&c->lock);
        stopping = c->stopping;
        pthread_mutex_unlock(&c->lock);
        if (!stopping)
                return;
        receipts_close(c);
        pushes_close(c);
        readers_close(c);
        sources_close(c);
        close_handle((uv_handle_t *)&c->asked);
        close_handle((uv_handle_t *)&c->tick);
        close_handle((uv_handle_t *)&c->copy);
        if (c->ucx)
                ucx_close(c->ucx);
        if (c->has_listener)
                close_handle((uv_handle_t *)&c->listener);
}

static void *run(void *comm) {
        struct comm *c = comm;

        uv_run(&c->loop, UV_RUN_DEFAULT);
        return NULL;
}

/* ---- life -------------------------------------------------------------------------------------------------------------- */

static int make_loop(struct comm *c) {
        int r = uv_loop_init(&c->loop);

        if (r < 0)
                return r;
        r = uv_async_init(&c->loop, &c->asked, on_asked);
        if (r < 0) {
                uv_loop_close(&c->loop);
                return r;
        }
        uv_timer_init(&c->loop, &c->tick); /* these cannot fail */
        uv_idle_init(&c->loop, &c->copy);
        c->asked.data = c->tick.data = c->copy.data = c->listener.data = c;
        return 0;
}

/* What is only asked for has no end on the thread any more. */
static void free_asked(struct comm *c) {
        struct list *at;

        while ((at = list_pop_front(&c->asked_leases)))
                free(list_item(at, struct lease, ask_link));
        while ((at = list_pop_front(&c->asked_fetches)))
                if (!list_item(at, struct comm_fetch, ask_link)->source)
                        fetch_free(list_item(at, struct comm_fetch, ask_link));
        while ((at = list_pop_front(&c->asked_receipts)))
                receipt_free(list_item(at, struct comm_receipt, ask_link));
        while ((at = list_pop_front(&c->asked_pushes)))
                push_free(list_item(at, struct comm_push, ask_link));
}

static void free_leases(struct comm *c) {
        struct list *at;

        while ((at = list_pop_front(&c->leases)))
                free(list_item(at, struct lease, link));
}

void comm_free(struct comm *c) {
        struct comm_event *list;

        if (!c)
                return;
        pthread_mutex_lock(&c->lock);
        c->stopping = true;
        pthread_mutex_unlock(&c->lock);
        uv_async_send(&c->asked);
        if (c->started)
                pthread_join(c->thread, NULL);
        else
                uv_run(&c->loop, UV_RUN_DEFAULT);
        uv_loop_close(&c->loop);
        ucx_free(c->ucx);
        free_asked(c);
        free_leases(c);
        buf_free(&c->withdrawn);
        sources_free(c);
        list = comm_take(c);
        while (list) {
                struct comm_event *next = list->next;

                comm_event_free(list);
                list = next;
        }
        pthread_mutex_destroy(&c->lock);
        free(c);
}

static int start(struct comm *c) {
        sigset_t all, before;
        int r;

        /* Signals belong to the command's main thread. */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        r = pthread_create(&c->thread, NULL, run, c);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        c->started = r == 0;
        return -r;
}

/* RDMA that does not work is no reason not to serve: there is TCP. */
static int make_ucx(struct comm *c, struct error *e) {
        struct error why = {0};

        if (c->options.way == COMM_WAY_UCX)
                return ucx_new(&c->loop, &c->pool, &c->ucx, e);
        if (c->options.way == COMM_WAY_BEST && ucx_has_rdma() && ucx_new(&c->loop, &c->pool, &c->ucx, &why) < 0)
                log_warn(c->options.log, "KV is not handed over by RDMA: %s", why.text);
        return 0;
}

int comm_new(const struct comm_options *options, struct comm **ret_comm, struct error *e) {
        struct comm *c = calloc(1, sizeof(*c));
        int r;

        assert(options->fact_count + 2 <= WIRE_FACTS_MAX);
        if (!c)
                return error_set(e, -ENOMEM, "out of memory");
        c->options = *options;
        c->pool = options->pool;
        if (!c->options.lease_ms)
                c->options.lease_ms = COMM_LEASE_MS;
        if (!c->options.silence_ms)
                c->options.silence_ms = COMM_SILENCE_MS;
        list_init(&c->asked_leases);
        list_init(&c->asked_fetches);
        list_init(&c->asked_receipts);
        list_init(&c->asked_pushes);
        list_init(&c->receipts);
        list_init(&c->pushes);
        list_init(&c->writers);
        list_init(&c->leases);
        list_init(&c->readers);
        list_init(&c->sources);
        rng_secure(c->proof, sizeof(c->proof));
        r = make_loop(c);
        if (r < 0) {
                free(c);
                return error_set(e, r, "the KV transfer's event loop: %s", uv_strerror(r));
        }
        pthread_mutex_init(&c->lock, NULL);
        r = make_ucx(c, e);
        if (r == 0 && c->options.host)
                r = leases_listen(c, e);
        if (r == 0 && (r = start(c)) < 0)
                error_set(e, r, "the KV transfer's thread: %s", strerror(-r));
        if (r < 0) {
                comm_free(c);
                return r;
        }
        *ret_comm = c;
        return 0;
}

uint16_t comm_port(const struct comm *c) {
        return c->port;
}

/* ---- asking ------------------------------------------------------------------------------------------------------------ */

static bool is_name(struct slice s) {
        return s.len > 0 && s.len <= COMM_NAME_MAX && !memchr(s.ptr, '\0', s.len);
}

int comm_export(struct comm *c, struct slice id, const uint32_t *blocks, size_t count, uint32_t tokens, void *user) {
        struct lease *l;

        if (!is_name(id) || tokens == 0 || (uint64_t)count * c->pool.block_tokens < tokens)
                return -EINVAL;
        l = calloc(1, sizeof(*l) + count * sizeof(*blocks) + id.len);
        if (!l)
                return -ENOMEM;
        memcpy(l->blocks, blocks, count * sizeof(*blocks));
        l->event = (struct comm_event){
            .kind = COMM_RELEASED, .user = user, .text = "", .blocks = l->blocks, .block_count = count};
        l->tokens = tokens;
        l->id = (char *)&l->blocks[count];
        l->id_bytes = id.len;
        memcpy(l->id, id.ptr, id.len);
        list_init(&l->link);
        list_init(&l->reader_link);
        pthread_mutex_lock(&c->lock);
        list_push_back(&c->asked_leases, &l->ask_link);
        pthread_mutex_unlock(&c->lock);
        uv_async_send(&c->asked);
        return 0;
}

void comm_withdraw(struct comm *c, struct slice id) {
        pthread_mutex_lock(&c->lock);
        buf_reserve(&c->withdrawn, id.len + 1); /* whole, or not at all */
        if (buf_ok(&c->withdrawn)) {
                buf_add(&c->withdrawn, id);
                buf_add_char(&c->withdrawn, '\0');
        }
        c->withdrawn.failed = false;
        pthread_mutex_unlock(&c->lock);
        uv_async_send(&c->asked);
}

/* Copies a name behind those that are there. */
static struct slice keep_name(char **at, struct slice name) {
        struct slice kept = {*at, name.len};

        memcpy(*at, name.ptr, name.len);
        (*at)[name.len] = '\0';
        *at += name.len + 1;
        return kept;
}

static void ask(struct comm_fetch *f, bool start, bool drop) {
        struct comm *c = f->comm;

        pthread_mutex_lock(&c->lock);
        if (!f->told) {
                f->asked_start |= start;
                f->asked_drop |= drop;
                list_remove(&f->ask_link);
                list_push_back(&c->asked_fetches, &f->ask_link);
        }
        pthread_mutex_unlock(&c->lock);
        uv_async_send(&c->asked);
}

int comm_announce(struct comm *c, const struct comm_source *from, void *user, struct comm_fetch **ret_fetch) {
        struct comm_fetch *f;
        char *at;

        if (!is_name(from->host) || !is_name(from->engine_id) || !is_name(from->id) || from->port == 0)
                return -EINVAL;
        f = calloc(1, sizeof(*f) + from->host.len + from->engine_id.len + from->id.len + 3);
        if (!f)
                return -ENOMEM;
        f->event = (struct comm_event){.kind = COMM_FETCHED, .user = user, .text = ""};
        f->comm = c;
        at = f->names;
        f->host = keep_name(&at, from->host);
        f->engine_id = keep_name(&at, from->engine_id);
        f->id = keep_name(&at, from->id);
        f->port = from->port;
        list_init(&f->ask_link);
        list_init(&f->link);
        ask(f, false, false);
        *ret_fetch = f;
        return 0;
}

void comm_fetch(struct comm_fetch *f, const uint32_t *blocks, size_t count, uint32_t first, uint32_t end) {
        assert(first <= end && !f->event.blocks);
        f->first = first;
        f->end = end;
        f->blocks = malloc((count + 1) * sizeof(*blocks));
        if (f->blocks) { /* without memory the fetch fails when it is started */
                if (count)
                        memcpy(f->blocks, blocks, count * sizeof(*blocks));
                f->event.blocks = f->blocks;
                f->event.block_count = count;
        }
        ask(f, true, false);
}

void comm_drop(struct comm_fetch *f) {
        ask(f, false, true);
}

static void ask_receipt(struct comm_receipt *x, bool drop) {
        struct comm *c = x->comm;

        pthread_mutex_lock(&c->lock);
        if (!x->told) {
                x->asked_drop |= drop;
                list_remove(&x->ask_link);
                list_push_back(&c->asked_receipts, &x->ask_link);
        }
        pthread_mutex_unlock(&c->lock);
        uv_async_send(&c->asked);
}

int comm_expect(struct comm *c, struct slice id, const uint32_t *blocks, size_t count, uint32_t first, uint32_t end,
    void *user, struct comm_receipt **ret_receipt) {
        struct comm_receipt *x;

        if (!is_name(id) || first >= end || (uint64_t)count * c->pool.block_tokens < end)
                return -EINVAL;
        x = calloc(1, sizeof(*x) + (count + c->pool.layers) * sizeof(uint32_t) + id.len);
        if (!x)
                return -ENOMEM;
        memcpy(x->blocks, blocks, count * sizeof(*blocks));
        x->event = (struct comm_event){
            .kind = COMM_RECEIVED, .user = user, .text = "", .blocks = x->blocks, .block_count = count};
        x->comm = c;
        x->first = first;
        x->end = end;
        x->begun_ns = clock_mono_ns();
        x->done = &x->blocks[count];
        for (uint32_t i = 0; i < c->pool.layers; i++)
                x->done[i] = first;
        x->id = (char *)&x->done[c->pool.layers];
        x->id_bytes = id.len;
        memcpy(x->id, id.ptr, id.len);
        list_init(&x->link);
        list_init(&x->ask_link);
        *ret_receipt = x;
        ask_receipt(x, false);
        return 0;
}

void comm_refuse(struct comm_receipt *r) {
        ask_receipt(r, true);
}

/* Under the lock: have comm's thread look at it. */
static void ask_push(struct comm_push *p) {
        list_remove(&p->ask_link);
        list_push_back(&p->comm->asked_pushes, &p->ask_link);
}

int comm_push(struct comm *c, const struct comm_source *to, uint32_t first, uint32_t end, void *user,
    struct comm_push **ret_push) {
        struct comm_push *p;
        char *at;

        if (!is_name(to->host) || !is_name(to->engine_id) || !is_name(to->id) || to->port == 0 || first >= end)
                return -EINVAL;
        p = calloc(1, sizeof(*p) + to->host.len + to->engine_id.len + to->id.len + 3);
        if (!p)
                return -ENOMEM;
        p->event = (struct comm_event){.kind = COMM_PUSHED, .user = user, .text = ""};
        p->comm = c;
        at = p->names;
        p->host = keep_name(&at, to->host);
        p->engine_id = keep_name(&at, to->engine_id);
        p->id = keep_name(&at, to->id);
        p->port = to->port;
        p->first = first;
        p->end = end;
        p->total = pieces_bytes(&c->pool, first, end);
        list_init(&p->link);
        list_init(&p->ask_link);
        *ret_push = p;
        return 0;
}

void comm_push_open(struct comm_push *p) {
        pthread_mutex_lock(&p->comm->lock);
        ask_push(p);
        pthread_mutex_unlock(&p->comm->lock);
        uv_async_send(&p->comm->asked);
}

int comm_push_blocks(struct comm_push *p, const uint32_t *blocks, size_t count) {
        uint32_t *copy = malloc(count * sizeof(*blocks));

        assert((uint64_t)count * p->comm->pool.block_tokens >= p->end);
        if (!copy)
                return -ENOMEM;
        memcpy(copy, blocks, count * sizeof(*blocks));
        pthread_mutex_lock(&p->comm->lock);
        assert(!p->blocks);
        p->blocks = copy;
        p->event.blocks = copy; /* it may have ended, untaken */
        p->event.block_count = count;
        pthread_mutex_unlock(&p->comm->lock);
        return 0;
}

void comm_push_rows(struct comm_push *p, uint32_t layer, uint32_t first, uint32_t end) {
        struct comm *c = p->comm;
        const struct rows rows = {layer, first, end};

        assert(layer < c->pool.layers && p->first <= first && first < end && end <= p->end);
        pthread_mutex_lock(&c->lock);
        if (!p->told) {
                buf_append(&p->added, &rows, sizeof(rows));
                p->last_ns = clock_mono_ns();
                ask_push(p);
        }
        pthread_mutex_unlock(&c->lock);
        uv_async_send(&c->asked);
}

void comm_push_drop(struct comm_push *p) {
        struct comm *c = p->comm;

        pthread_mutex_lock(&c->lock);
        if (!p->told) {
                p->asked_drop = true;
                ask_push(p);
        }
        pthread_mutex_unlock(&c->lock);
        uv_async_send(&c->asked);
}
