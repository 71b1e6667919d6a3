/* engine.c - the front's side of the engine: making it, submitting, aborting, taking outputs. */
#include "base/clock.h"
#include "engine/core.h"
#include "os/os.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#define MAX_WAITING_DEFAULT 10000u
#define DRAFTS_MAX          8u

/* ---- making ------------------------------------------------------------------------------------------------------------- */

static int check_options(const struct engine_options *o, struct error *e) {
        if (o->max_model_len < 2 || o->max_seqs < 1 || o->max_batched_tokens < 1 || o->block_tokens < 1)
                return error_set(
                    e, -EINVAL, "max-model-len, max-num-seqs, max-num-batched-tokens and block-size must be positive");
        if (!o->chunked_prefill && o->max_batched_tokens < o->max_model_len)
                return error_set(e, -EINVAL,
                    "max-num-batched-tokens (%u) is smaller than max-model-len (%u): without chunked prefill a long "
                    "prompt could "
                    "never run; raise it, or leave chunked prefill on",
                    o->max_batched_tokens, o->max_model_len);
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

static int make_cache(struct engine *g, struct error *e) {
        const struct engine_options *o = &g->options;
        size_t block_bytes = kv_cache_block_bytes(o->model, o->kv_type, o->block_tokens);
        uint32_t blocks = o->kv_blocks ? o->kv_blocks : (uint32_t)(o->kv_bytes / block_bytes);
        uint32_t needed = (o->max_model_len + o->draft_tokens + o->block_tokens - 1) / o->block_tokens;
        uint64_t most =
            ((uint64_t)o->max_model_len + o->draft_tokens + o->block_tokens) / o->block_tokens * o->max_seqs;

        if (blocks < needed)
                return error_set(e, -EINVAL,
                    "the KV cache has room for %llu tokens, but one request may have %u (max-model-len): give it more "
                    "memory, or "
                    "lower max-model-len",
                    (unsigned long long)blocks * o->block_tokens, o->max_model_len);
        /* What all sequences at full length cannot fill is still worth having as prefix cache, but only so much. */
        if (!o->kv_blocks && blocks > 4 * most)
                blocks = (uint32_t)(4 * most);
        if (kv_cache_new(o->model, o->kv_type, o->block_tokens, blocks, &g->kv, e) < 0)
                return -ENOMEM;
        g->blocks = blocks_new(blocks, o->block_tokens, o->prefix_caching, hash_seed());
        return g->blocks ? 0 : error_set(e, -ENOMEM, "out of memory");
}

static int make_buffers(struct engine *g) {
        const struct engine_options *o = &g->options;
        struct scheduler_options s = {.max_seqs = o->max_seqs,
            .max_batched_tokens = o->max_batched_tokens,
            .long_prefill_tokens = o->long_prefill_tokens,
            .max_model_len = o->max_model_len,
            .chunked_prefill = o->chunked_prefill,
            .prefill_first = o->prefill_first,
            .by_priority = o->policy == SCHEDULE_PRIORITY,
            .lookahead = o->draft_tokens};
        size_t rows = o->max_batched_tokens;

        g->tokens = calloc(rows, sizeof(*g->tokens));
        g->logit_rows = calloc(rows, sizeof(*g->logit_rows));
        g->spans = calloc(o->max_seqs, sizeof(*g->spans));
        g->new_tokens = calloc(DRAFTS_MAX + 1, sizeof(*g->new_tokens));
        g->tops = calloc((DRAFTS_MAX + 1) * (size_t)g->config->vocab, sizeof(*g->tops));
        if (o->draft_tokens) {
                g->hidden = calloc(rows * g->config->hidden, sizeof(*g->hidden));
                g->draft_hidden = calloc(rows * g->config->hidden, sizeof(*g->draft_hidden));
                if (!g->hidden || !g->draft_hidden)
                        return -ENOMEM;
        }
        if (!g->tokens || !g->logit_rows || !g->spans || !g->new_tokens || !g->tops ||
            sampler_scratch_init(&g->scratch, g->config->vocab) < 0)
                return -ENOMEM;
        return scheduler_init(&g->scheduler, &s, g->blocks);
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
        pthread_mutex_init(&g->mailbox.lock, NULL);
        pthread_cond_init(&g->mailbox.work, NULL);
        pthread_cond_init(&g->mailbox.reply, NULL);
        r = metrics_init(&g->metrics, options->max_model_len);
        if (r == 0)
                r = make_cache(g, e);
        if (r == 0) {
                r = make_buffers(g);
                if (r < 0)
                        error_set(e, r, "out of memory");
        }
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
        return -r;
}

void engine_stop(struct engine *g, unsigned deadline_ms) {
        struct mailbox *m = &g->mailbox;
        struct timespec until;
        int r = 0;

        if (!g->started)
                return;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += deadline_ms / 1000;
        until.tv_nsec += (long)(deadline_ms % 1000) * 1000000;
        if (until.tv_nsec >= 1000000000) {
                until.tv_sec++;
                until.tv_nsec -= 1000000000;
        }
        pthread_mutex_lock(&m->lock);
        m->stopping = true;
        pthread_cond_signal(&m->work);
        while (!m->ended && r != ETIMEDOUT)
                r = pthread_cond_timedwait(&m->reply, &m->lock, &until);
        m->abort_all = true;
        pthread_cond_signal(&m->work);
        pthread_mutex_unlock(&m->lock);
        pthread_join(g->thread, NULL);
        g->started = false;
}

void engine_free(struct engine *g) {
        if (!g)
                return;
        assert(!g->started);
        while (g->mailbox.first) {
                struct command *c = g->mailbox.first;

                g->mailbox.first = c->next;
                if (c->sequence)
                        sequence_free(c->sequence);
                free(c);
        }
        for (size_t i = 0; i < ID_BUCKETS; i++)
                while (g->by_id[i]) {
                        struct sequence *q = g->by_id[i];

                        g->by_id[i] = q->next_in_bucket;
                        scheduler_remove(&g->scheduler, q);
                        sequence_free(q);
                }
        engine_outputs_free(g, g->mailbox.out_first);
        scheduler_free(&g->scheduler);
        sampler_scratch_free(&g->scratch);
        blocks_free(g->blocks);
        kv_cache_free(&g->kv);
        metrics_free(&g->metrics);
        pthread_mutex_destroy(&g->mailbox.lock);
        pthread_cond_destroy(&g->mailbox.work);
        pthread_cond_destroy(&g->mailbox.reply);
        free(g->tokens);
        free(g->logit_rows);
        free(g->spans);
        free(g->new_tokens);
        free(g->tops);
        free(g->logits);
        free(g->hidden);
        free(g->draft_hidden);
        free(g->forgotten);
        free(g);
}

/* ---- requests ----------------------------------------------------------------------------------------------------------- */

static int copy_bytes(struct arena *a, const void **at, size_t bytes) {
        void *copy;

        if (!*at || !bytes)
                return 0;
        copy = arena_alloc(a, bytes);
        if (!copy)
                return -ENOMEM;
        memcpy(copy, *at, bytes);
        *at = copy;
        return 0;
}

static size_t bad_sequences_length(const uint32_t *b) {
        size_t n = 0;

        while (b && b[n])
                n += b[n] + 1;
        return b ? n + 1 : 0;
}

static int copy_request(struct engine *g, struct sequence *q, const struct engine_request *r) {
        uint64_t room = (uint64_t)r->prompt_count + r->sampling.max_tokens;

        if (room > g->options.max_model_len)
                room = g->options.max_model_len;
        q->max_count = (uint32_t)room;
        q->tokens = malloc((room + g->options.draft_tokens + 1) * sizeof(*q->tokens));
        if (!q->tokens)
                return -ENOMEM;
        memcpy(q->tokens, r->prompt, r->prompt_count * sizeof(*q->tokens));
        q->prompt = q->count = r->prompt_count;
        q->priority = r->priority;
        q->user = r->user;
        q->arrival_ns = r->arrival_ns;
        q->params = r->sampling;
        q->bypass_cache = r->sampling.prompt_logprobs >= 0;
        q->salt = arena_copy(&q->arena, r->cache_salt);
        q->eos_count = r->eos_count < 8 ? r->eos_count : 8;
        memcpy(q->eos, r->eos, q->eos_count * sizeof(*q->eos));
        q->sampler.params = &q->params;
        q->sampler.eos = q->eos;
        q->sampler.eos_count = r->sampling.ignore_eos ? 0 : q->eos_count;
        q->sampler.bad_sequences = r->bad_sequences;
        if (!q->salt.ptr ||
            copy_bytes(&q->arena, (const void **)&q->params.stop_ids, q->params.stop_id_count * sizeof(uint32_t)) < 0 ||
            copy_bytes(&q->arena, (const void **)&q->params.bias, q->params.bias_count * sizeof(struct openai_bias)) <
                0 ||
            copy_bytes(&q->arena, (const void **)&q->params.allowed_ids, q->params.allowed_count * sizeof(uint32_t)) <
                0 ||
            copy_bytes(&q->arena, (const void **)&q->sampler.bad_sequences,
                bad_sequences_length(r->bad_sequences) * sizeof(uint32_t)) < 0)
                return -ENOMEM;
        q->params.stop = NULL;
        q->params.bad_words = NULL;
        if (q->bypass_cache) {
                uint32_t top = (uint32_t)r->sampling.prompt_logprobs;

                q->prompt_tokens = calloc(q->prompt, sizeof(*q->prompt_tokens));
                q->prompt_top = top ? calloc((size_t)q->prompt * top, sizeof(*q->prompt_top)) : NULL;
                if (!q->prompt_tokens || (top && !q->prompt_top))
                        return -ENOMEM;
        }
        return sampler_init(&q->sampler, r, g->config->vocab, g->seed ^ (q->id * 0x9e3779b97f4a7c15ull));
}

void sequence_free(struct sequence *q) {
        block_table_free(&q->table);
        sampler_done(&q->sampler);
        arena_free(&q->arena);
        free(q->prompt_tokens);
        free(q->prompt_top);
        free(q->tokens);
        free(q);
}

/* Commands are few and small: one allocation each. -ENOMEM, -ESHUTDOWN, -EAGAIN leave everything as it was. */
static int send_command(struct engine *g, struct command *c, bool counts) {
        struct mailbox *m = &g->mailbox;
        int r = 0;

        pthread_mutex_lock(&m->lock);
        if (counts && (m->stopping || m->ended))
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
                pthread_cond_signal(&m->work);
        }
        pthread_mutex_unlock(&m->lock);
        return r;
}

int engine_submit(struct engine *g, const struct engine_request *request, engine_id *ret_id) {
        struct sequence *q;
        struct command *c;
        int r;

        if (request->prompt_count < 1 || request->prompt_count >= g->options.max_model_len ||
            request->sampling.max_tokens < 1)
                return -EINVAL;
        for (uint32_t i = 0; i < request->prompt_count; i++)
                if (request->prompt[i] >= g->config->vocab)
                        return -EINVAL;
        q = calloc(1, sizeof(*q));
        c = calloc(1, sizeof(*c));
        r = q && c ? 0 : -ENOMEM;
        if (r == 0) {
                q->state = SEQUENCE_DONE;
                q->id = g->next_id + 1;
                r = copy_request(g, q, request);
        }
        if (r == 0) {
                *c = (struct command){.kind = COMMAND_SUBMIT, .sequence = q};
                q->queued_ns = clock_mono_ns();
                r = send_command(g, c, true);
        }
        if (r < 0) {
                if (q)
                        sequence_free(q);
                free(c);
                if (r == -EAGAIN) {
                        pthread_mutex_lock(&g->metrics.lock);
                        g->metrics.figures.rejected++;
                        pthread_mutex_unlock(&g->metrics.lock);
                }
                return r;
        }
        *ret_id = ++g->next_id;
        return 0;
}

static void remember_forgotten(struct engine *g, engine_id id) {
        if (g->forgotten_count == g->forgotten_capacity) {
                size_t capacity = g->forgotten_capacity ? g->forgotten_capacity * 2 : 64;
                engine_id *grown = realloc(g->forgotten, capacity * sizeof(*grown));

                if (!grown)
                        abort(); /* an output to a caller that has gone would be worse */
                g->forgotten = grown;
                g->forgotten_capacity = capacity;
        }
        g->forgotten[g->forgotten_count++] = id;
}

void engine_abort(struct engine *g, engine_id id, bool forget) {
        struct command *c = calloc(1, sizeof(*c));

        if (forget)
                remember_forgotten(g, id);
        if (!c)
                return; /* it runs to its end then */
        *c = (struct command){.kind = COMMAND_ABORT, .id = id};
        send_command(g, c, false);
}

/* ---- outputs ------------------------------------------------------------------------------------------------------------ */

static bool is_forgotten(struct engine *g, const struct engine_output *o) {
        for (size_t i = 0; i < g->forgotten_count; i++)
                if (g->forgotten[i] == o->id) {
                        if (o->finish != FINISH_NONE) /* the last of it: ids never come back */
                                g->forgotten[i] = g->forgotten[--g->forgotten_count];
                        return true;
                }
        return false;
}

struct engine_output *engine_take(struct engine *g) {
        struct engine_output *list, *first = NULL, **last = &first;

        pthread_mutex_lock(&g->mailbox.lock);
        list = g->mailbox.out_first;
        g->mailbox.out_first = g->mailbox.out_last = NULL;
        pthread_mutex_unlock(&g->mailbox.lock);
        while (list) {
                struct engine_output *o = list;

                list = o->next;
                o->next = NULL;
                if (g->forgotten_count && is_forgotten(g, o))
                        free(o);
                else {
                        *last = o;
                        last = &o->next;
                }
        }
        return first;
}

void engine_outputs_free(struct engine *g, struct engine_output *list) {
        (void)g;
        while (list) {
                struct engine_output *next = list->next;

                free(list);
                list = next;
        }
}

/* ---- looking in --------------------------------------------------------------------------------------------------------- */

void engine_load(const struct engine *g, struct engine_load *ret_load) {
        struct engine *writable = (struct engine *)(uintptr_t)g; /* for its locks */

        pthread_mutex_lock(&writable->metrics.lock);
        *ret_load = (struct engine_load){.running = g->metrics.figures.running,
            .waiting = g->metrics.figures.waiting + g->metrics.figures.deferred,
            .kv_usage = g->metrics.figures.kv_usage};
        pthread_mutex_unlock(&writable->metrics.lock);
        pthread_mutex_lock(&writable->mailbox.lock);
        ret_load->healthy = !g->mailbox.failed;
        pthread_mutex_unlock(&writable->mailbox.lock);
}

void engine_metrics(struct engine *g, const char *labels, struct buf *out) {
        metrics_write(&g->metrics, labels, g->options.draft_tokens > 0, g->options.draft_tokens, out);
}

bool engine_reset_prefix_cache(struct engine *g) {
        struct mailbox *m = &g->mailbox;
        struct command *c = calloc(1, sizeof(*c));
        bool done;

        if (!c)
                return false;
        *c = (struct command){.kind = COMMAND_RESET_CACHE};
        pthread_mutex_lock(&m->lock);
        m->cache_reset_done = m->cache_was_reset = false;
        pthread_mutex_unlock(&m->lock);
        send_command(g, c, false);
        pthread_mutex_lock(&m->lock);
        while (!m->cache_reset_done && !m->ended)
                pthread_cond_wait(&m->reply, &m->lock);
        done = m->cache_was_reset;
        pthread_mutex_unlock(&m->lock);
        return done;
}

uint32_t engine_kv_blocks(const struct engine *g) {
        return blocks_total(g->blocks);
}
