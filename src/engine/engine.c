/* engine.c - the front's side of the engine: making it, submitting, aborting, taking outputs. */
#include "base/clock.h"
#include "base/hash.h"
#include "base/rng.h"
#include "engine/core.h"
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MAX_WAITING_DEFAULT 10000u

/* ---- making ------------------------------------------------------------------------------------------------------------- */

static int check_options(const struct engine_options *o, struct error *e) {
        if (o->max_model_len < 2 || o->max_seqs < 1 || o->max_batched_tokens < 1 || o->block_tokens < 1)
                return error_set(
                    e, -EINVAL, "max-model-len, max-num-seqs, max-num-batched-tokens and block-size must be positive");
        if (!o->chunked_prefill && o->max_batched_tokens < o->max_model_len)
                return error_set(e, -EINVAL,
                    "max-num-batched-tokens (%u) is smaller than max-model-len (%u): without chunked prefill a long "
                    "prompt could never run; raise it, or leave chunked prefill on",
                    o->max_batched_tokens, o->max_model_len);
        if (o->prefill_first && o->chunked_prefill)
                return error_set(
                    e, -EINVAL, "the prefill-first scheduler takes whole prompts: turn chunked prefill off");
        if (o->max_batched_tokens < o->max_seqs)
                return error_set(e, -EINVAL, "max-num-batched-tokens (%u) is smaller than max-num-seqs (%u)",
                    o->max_batched_tokens, o->max_seqs);
        if (o->draft_tokens > DRAFTS_MAX)
                return error_set(
                    e, -EINVAL, "num_speculative_tokens is %u, at most %u are supported", o->draft_tokens, DRAFTS_MAX);
        if (o->draft_tokens && model_config(o->model)->mtp_layers == 0)
                return error_set(
                    e, -EINVAL, "the checkpoint has no multi-token-prediction layer: leave speculative-config out");
        return 0;
}

/* How many blocks the cache gets. What all sequences at full length cannot fill is still worth having as prefix cache, but
 * only so much. */
static uint32_t count_blocks(const struct engine_options *o) {
        size_t fit = o->kv_bytes / kv_cache_block_bytes(o->model, o->kv_type, o->block_tokens);
        uint64_t each = ((uint64_t)o->max_model_len + o->draft_tokens + o->block_tokens - 1) / o->block_tokens;
        uint64_t most = 4 * each * o->max_seqs;

        if (o->kv_blocks)
                return o->kv_blocks;
        if (fit > most)
                fit = most;
        return fit < UINT32_MAX ? (uint32_t)fit : UINT32_MAX - 1;
}

static int make_cache(struct engine *g, struct error *e) {
        const struct engine_options *o = &g->options;
        uint32_t blocks = count_blocks(o);
        enum prefix_caching caching = !o->prefix_caching ? PREFIX_OFF : o->share_outputs ? PREFIX_SHARED : PREFIX_EXACT;
        uint8_t key[16];
        int r;

        if ((uint64_t)blocks * o->block_tokens < (uint64_t)o->max_model_len + o->draft_tokens)
                return error_set(e, -EINVAL,
                    "the KV cache has room for %llu tokens, but one request may have %u (max-model-len): give it more "
                    "memory, or lower max-model-len",
                    (unsigned long long)blocks * o->block_tokens, o->max_model_len);
        r = kv_cache_new(o->model, o->kv_type, o->block_tokens, blocks, &g->kv, e);
        if (r < 0)
                return r;
        rng_secure(key, sizeof(key));
        g->blocks = blocks_new(blocks, o->block_tokens, caching, key);
        if (!g->blocks)
                return error_set(e, -ENOMEM, "out of memory");
        events_watch(g);
        return g->options.transfer ? transfer_new(g, e) : 0;
}

static int make_scheduler(struct engine *g) {
        const struct engine_options *o = &g->options;
        struct scheduler_options s = {.max_seqs = o->max_seqs,
            .max_batched_tokens = o->max_batched_tokens,
            .long_prefill_tokens = o->long_prefill_tokens,
            .max_model_len = o->max_model_len,
            .chunked_prefill = o->chunked_prefill,
            .prefill_first = o->prefill_first,
            .by_priority = o->policy == SCHEDULE_PRIORITY,
            .give_up_preempted = o->transfer && o->transfer->give_up_preempted,
            .lookahead = o->draft_tokens};

        return scheduler_init(&g->scheduler, &s, g->blocks);
}

static int make_buffers(struct engine *g) {
        size_t rows = g->options.max_batched_tokens, width = g->config->hidden;

        g->tokens = calloc(rows, sizeof(*g->tokens));
        g->logit_rows = calloc(rows, sizeof(*g->logit_rows));
        g->spans = calloc(g->options.max_seqs, sizeof(*g->spans));
        g->jobs = calloc(g->options.max_seqs, sizeof(*g->jobs));
        if (!g->tokens || !g->logit_rows || !g->spans || !g->jobs)
                return -ENOMEM;
        if (g->options.draft_tokens) {
                g->hidden = calloc(rows * width, sizeof(*g->hidden));
                g->draft_hidden = calloc(rows * width, sizeof(*g->draft_hidden));
                if (!g->hidden || !g->draft_hidden)
                        return -ENOMEM;
        }
        g->scratch = calloc(compute_threads(g->options.compute), sizeof(*g->scratch));
        if (!g->scratch)
                return -ENOMEM;
        for (; g->workers < compute_threads(g->options.compute); g->workers++)
                if (sampler_scratch_init(&g->scratch[g->workers], g->config->vocab) < 0)
                        return -ENOMEM;
        return 0;
}

static int make_metrics(struct engine *g) {
        const struct engine_options *o = &g->options;
        struct engine_cache_facts facts = {.block_tokens = o->block_tokens,
            .blocks = blocks_total(g->blocks),
            .max_model_len = o->max_model_len,
            .draft_tokens = o->draft_tokens,
            .dtype = o->kv_type == KV_F32 ? "float32" : "bfloat16",
            .prefix_caching = o->prefix_caching,
            .transfers = o->transfer != NULL};

        return metrics_init(&g->metrics, &facts);
}

static void on_group_wake(void *engine) {
        const struct engine *g = engine;
        const uint64_t one = 1;

        if (write(g->wake_fd, &one, sizeof(one)) < 0)
                return; /* it is full of wakes already */
}

void wake_engine(struct engine *g) {
        pthread_cond_signal(&g->mailbox.work);
        if (g->wake_fd >= 0)
                on_group_wake(g);
}

/* What must be equal on all ranks, for a step to be the same everywhere. */
static size_t tell_group_facts(struct engine *g, const struct placement *p) {
        static const char *const payloads[] = {[GROUP_PAYLOAD_EXACT] = "auto",
            [GROUP_PAYLOAD_F32] = "float32",
            [GROUP_PAYLOAD_BF16] = "bfloat16",
            [GROUP_PAYLOAD_INT8] = "int8"};
        const struct engine_options *o = &g->options;

        snprintf(g->draft_text, sizeof(g->draft_text), "%u", o->draft_tokens);
        snprintf(g->slot_text, sizeof(g->slot_text), "%u", p->slots - p->experts);
        g->group_facts[0] = (struct comm_fact){"model", model_digest(o->model)};
        g->group_facts[1] = (struct comm_fact){
            "activations", compute_activation(o->compute) == ACTIVATION_BF16 ? "bfloat16" : "float32"};
        g->group_facts[2] = (struct comm_fact){"num_speculative_tokens", g->draft_text};
        g->group_facts[3] = (struct comm_fact){"num_redundant_experts", g->slot_text};
        g->group_facts[4] = (struct comm_fact){"enable-eplb", o->group->balance ? "true" : "false"};
        g->group_facts[5] = (struct comm_fact){"expert-placement-strategy", placement_strategy_name(p->strategy)};
        g->group_facts[6] = (struct comm_fact){"all2all_dtype", payloads[o->group->payload]};
        return 7;
}

static int join_group(struct engine *g, struct error *e) {
        const struct engine_group *o = g->options.group;
        const struct placement *p = o->placement;
        struct group_options options = {.rank = o->rank,
            .size = o->size,
            .host = o->host,
            .port = o->port,
            .silence_ms = o->silence_ms,
            .payload = o->payload,
            .sockets_only = o->sockets_only,
            .facts = g->group_facts,
            .balance = o->balance,
            .window_steps = o->window_steps,
            .interval_steps = o->interval_steps,
            .tell_balance = o->tell_balance,
            .wake = on_group_wake,
            .wake_context = g,
            .log = g->options.log};
        struct experts_interface experts;
        int r = p ? 0
                  : placement_new(model_layers(g->options.model), g->config->experts, 0, o->size, PLACEMENT_LINEAR,
                        &g->placement);

        if (r < 0)
                return error_set(e, r, "%u ranks cannot share %u experts", o->size, g->config->experts);
        options.placement = p ? p : &g->placement;
        options.fact_count = tell_group_facts(g, options.placement);
        g->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (g->wake_fd < 0)
                return error_set(e, -errno, "no eventfd: %s", strerror(errno));
        r = group_new(&options, &g->group, e);
        if (r < 0)
                return r;
        experts = group_experts(g->group, g->options.model, g->options.compute);
        model_set_experts(g->options.model, &experts);
        return 0;
}

/* Deadlines are of the monotonic clock: setting the wall clock must not cut a drain short. */
static void make_mailbox(struct mailbox *m) {
        pthread_condattr_t attributes;

        pthread_condattr_init(&attributes);
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
        pthread_mutex_init(&m->lock, NULL);
        pthread_cond_init(&m->work, &attributes);
        pthread_cond_init(&m->reply, &attributes);
        pthread_condattr_destroy(&attributes);
}

int engine_new(const struct engine_options *options, struct engine **ret_engine, struct error *e) {
        struct engine *g;
        int r = check_options(options, e);

        if (r < 0)
                return r;
        g = calloc(1, sizeof(*g));
        if (!g)
                return error_set(e, -ENOMEM, "out of memory");
        g->options = *options;
        if (!g->options.max_waiting)
                g->options.max_waiting = MAX_WAITING_DEFAULT;
        g->config = model_config(options->model);
        g->seed = (uint64_t)options->seed;
        g->wake_fd = -1;
        g->complete = options->group == NULL;
        make_mailbox(&g->mailbox);
        r = make_cache(g, e);
        if (r == 0 && (make_metrics(g) < 0 || make_scheduler(g) < 0 || make_buffers(g) < 0))
                r = error_set(e, -ENOMEM, "out of memory");
        if (r == 0 && options->group)
                r = join_group(g, e);
        if (r < 0) {
                engine_free(g);
                return r;
        }
        *ret_engine = g;
        return 0;
}

int engine_start(struct engine *g) {
        sigset_t all, before;
        int r;

        /* Signals belong to the front: the engine thread must not run its handlers. */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        r = pthread_create(&g->thread, NULL, engine_thread, g);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        g->started = r == 0;
        pthread_mutex_lock(&g->mailbox.lock);
        g->mailbox.started = g->started;
        pthread_mutex_unlock(&g->mailbox.lock);
        return -r;
}

void engine_stop(struct engine *g, unsigned deadline_ms) {
        struct mailbox *m = &g->mailbox;
        struct timespec until;
        int r = 0;

        if (!g->started)
                return;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += deadline_ms / 1000;
        until.tv_nsec += (long)(deadline_ms % 1000) * 1000000;
        if (until.tv_nsec >= 1000000000) {
                until.tv_sec++;
                until.tv_nsec -= 1000000000;
        }
        pthread_mutex_lock(&m->lock);
        m->stopping = true;
        wake_engine(g);
        while (!m->ended && r != ETIMEDOUT)
                r = pthread_cond_timedwait(&m->reply, &m->lock, &until);
        m->abort_all = true;
        wake_engine(g);
        pthread_mutex_unlock(&m->lock);
        pthread_join(g->thread, NULL);
        g->started = false;
}

/* What was submitted and never admitted: comm frees what it has of it. */
static void forget_queued(struct engine *g) {
        for (struct command *c = g->mailbox.first; c; c = c->next)
                if (c->request)
                        transfer_forget(g, c->request);
}

static void free_requests(struct engine *g) {
        while (g->mailbox.first) {
                struct command *c = g->mailbox.first;

                g->mailbox.first = c->next;
                request_free(c->request);
                free(c->reset);
                free(c);
        }
        while (g->mailbox.resets) {
                struct engine_reset *reset = g->mailbox.resets;

                g->mailbox.resets = reset->next;
                free(reset);
        }
        for (size_t i = 0; i < ID_BUCKETS; i++)
                while (g->by_id[i]) {
                        struct request *q = g->by_id[i];

                        g->by_id[i] = q->next_in_bucket;
                        scheduler_remove(&g->scheduler, &q->sequence);
                        request_free(q);
                }
        engine_outputs_free(g, (struct engine_output *)g->mailbox.out_first);
}

void engine_free(struct engine *g) {
        if (!g)
                return;
        assert(!g->started);
        if (g->group)
                model_set_experts(g->options.model, NULL);
        group_free(g->group);
        placement_free(&g->placement);
        if (g->wake_fd >= 0)
                close(g->wake_fd);
        forget_queued(g);
        comm_free(g->comm); /* nobody reads or writes the cache any more */
        free_requests(g);
        scheduler_free(&g->scheduler);
        while (g->workers)
                sampler_scratch_free(&g->scratch[--g->workers]);
        free(g->scratch);
        blocks_free(g->blocks);
        events_free(g);
        kv_cache_free(&g->kv);
        metrics_free(&g->metrics);
        pthread_mutex_destroy(&g->mailbox.lock);
        pthread_cond_destroy(&g->mailbox.work);
        pthread_cond_destroy(&g->mailbox.reply);
        free(g->tokens);
        free(g->logit_rows);
        free(g->spans);
        free(g->jobs);
        free(g->logits);
        free(g->hidden);
        free(g->draft_hidden);
        free(g);
}

/* ---- requests ----------------------------------------------------------------------------------------------------------- */

/* Commands are few and small: one allocation each. -ESHUTDOWN, -EAGAIN leave everything as it was. */
static int send_command(struct engine *g, struct command *c) {
        bool counts = c->kind == COMMAND_SUBMIT, ends = c->kind == COMMAND_ABORT || c->kind == COMMAND_UNEXPECT;
        struct mailbox *m = &g->mailbox;
        int r = 0;

        pthread_mutex_lock(&m->lock);
        if (!ends && (m->stopping || m->ended))
                r = -ESHUTDOWN;
        else if (counts && m->queued >= g->options.max_waiting + g->options.max_seqs)
                r = -EAGAIN;
        else {
                c->next = NULL;
                if (m->last)
                        m->last->next = c;
                else
                        m->first = c;
                m->last = c;
                m->queued += counts;
                wake_engine(g);
        }
        pthread_mutex_unlock(&m->lock);
        return r;
}

/* A request's own seed where it brings none: different for every request, the same in every run. */
static uint64_t seed_of(const struct engine *g, engine_id id) {
        uint64_t both[2] = {g->seed, id};

        return hash64(slice_of(both, sizeof(both)), 1);
}

int engine_submit(struct engine *g, const struct engine_request *request, engine_id *ret_id) {
        engine_id id = g->last_id + 1;
        struct request_limits limits = {.max_model_len = g->options.max_model_len,
            .vocab = g->config->vocab,
            .block_tokens = g->options.block_tokens,
            .lookahead = g->options.draft_tokens,
            .seed = seed_of(g, id)};
        struct command *c = malloc(sizeof(*c));
        struct request *q = NULL;
        int r = c ? sequence_new(request, &limits, id, &q) : -ENOMEM;

        if (r == 0 && !atomic_load(&g->complete))
                r = -ENOTCONN;
        if (r == 0 && request->remote)
                r = transfer_announce(g, q, request->remote);
        if (r == 0 && request->expect)
                transfer_expect(q);
        if (r == 0 && request->push)
                r = transfer_push(g, q, request->push);
        if (r == 0) {
                *c = (struct command){.kind = COMMAND_SUBMIT, .request = q};
                q->queued_ns = clock_mono_ns();
                r = send_command(g, c);
        }
        if (r < 0) {
                if (r == -EAGAIN)
                        metrics_rejected(&g->metrics);
                if (q)
                        transfer_forget(g, q);
                request_free(q);
                free(c);
                return r;
        }
        g->last_id = *ret_id = id;
        return 0;
}

void engine_abort(struct engine *g, engine_id id, enum finish_reason reason) {
        struct command *c = malloc(sizeof(*c));

        if (!c)
                return; /* it runs to its end then */
        *c = (struct command){.kind = COMMAND_ABORT, .id = id, .reason = reason};
        send_command(g, c);
}

void engine_unexpect(struct engine *g, engine_id id) {
        struct command *c = malloc(sizeof(*c));

        if (!c)
                return; /* the lease of its blocks ends then */
        *c = (struct command){.kind = COMMAND_UNEXPECT, .id = id};
        send_command(g, c);
}

/* ---- outputs ------------------------------------------------------------------------------------------------------------ */

struct engine_output *engine_take(struct engine *g) {
        struct engine_output *list;

        pthread_mutex_lock(&g->mailbox.lock);
        list = (struct engine_output *)g->mailbox.out_first;
        g->mailbox.out_first = g->mailbox.out_last = NULL;
        pthread_mutex_unlock(&g->mailbox.lock);
        return list;
}

void engine_outputs_free(struct engine *g, struct engine_output *list) {
        while (list) {
                struct engine_output *next = list->next;

                output_free((struct output *)list);
                list = next;
        }
}

/* ---- looking in --------------------------------------------------------------------------------------------------------- */

void engine_load(const struct engine *g, struct engine_load *ret_load) {
        struct engine *locks = (struct engine *)(uintptr_t)g;
        uint32_t queued;

        pthread_mutex_lock(&locks->mailbox.lock);
        queued = g->mailbox.queued;
        ret_load->healthy = g->mailbox.started && !g->mailbox.ended && atomic_load(&g->complete);
        pthread_mutex_unlock(&locks->mailbox.lock);
        pthread_mutex_lock(&locks->metrics.lock);
        ret_load->running = g->metrics.figures.running;
        ret_load->kv_usage = g->metrics.figures.kv_usage;
        pthread_mutex_unlock(&locks->metrics.lock);
        /* What the engine thread has not seen yet waits, too. */
        ret_load->waiting = queued > ret_load->running ? queued - ret_load->running : 0;
}

void engine_metrics(struct engine *g, const char *labels, struct buf *out) {
        metrics_write(&g->metrics, labels, out);
        if (g->group)
                metrics_write_group(g->group, labels, out);
}

int engine_rebalance_experts(struct engine *g) {
        return g->group ? group_rebalance(g->group) : -ENOTSUP;
}

bool engine_describe_experts(struct engine *g, struct buf *out) {
        if (g->group)
                group_describe(g->group, out);
        return g->group != NULL;
}

int engine_reset_prefix_cache(struct engine *g, void *user) {
        struct engine_reset *reset = malloc(sizeof(*reset));
        struct command *c = malloc(sizeof(*c));
        int r = -ENOMEM;

        if (reset && c) {
                *reset = (struct engine_reset){.user = user};
                *c = (struct command){.kind = COMMAND_RESET_CACHE, .reset = reset};
                r = send_command(g, c);
        }
        if (r < 0) {
                free(reset);
                free(c);
        }
        return r;
}

struct engine_reset *engine_take_resets(struct engine *g) {
        struct engine_reset *list;

        pthread_mutex_lock(&g->mailbox.lock);
        list = g->mailbox.resets;
        g->mailbox.resets = NULL;
        pthread_mutex_unlock(&g->mailbox.lock);
        return list;
}

void engine_release(struct engine *g, const char *kept_id) {
        if (g->comm)
                comm_withdraw(g->comm, slice_str(kept_id));
}

uint16_t engine_transfer_port(const struct engine *g) {
        return g->comm ? comm_port(g->comm) : 0;
}

uint32_t engine_kv_blocks(const struct engine *g) {
        return blocks_total(g->blocks);
}
