/* dispatch.c - a MoE layer whose experts live on many ranks.
 *
 * A token goes once to every rank that holds experts of it; back comes what each of its experts there gave, one vector each, and
 * the token's own rank adds them up in the order of its choice. So the sums are those of one process, whatever the number of
 * ranks; that costs top_k vectors on the way back where partial sums would cost one a rank. What a rank has for itself goes through
 * the same forms (group_payload), so that no result depends on which rank holds an expert.
 *
 * What ranks hold for one another is computed in one go, so that an expert's weights are read once however many ranks ask for
 * it. Large prompts go in pieces of as many tokens on every rank. */
#include "comm/group_core.h"
#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

/* All outputs of a piece, of all ranks: more tokens than fit are done in several pieces. */
#define OUTPUT_BYTES ((size_t)256 << 20)
/* Below so many floats adding up is cheaper than waking the workers. */
#define ADD_ALONE  32768
#define HEAD_WORDS 2u /* tokens, pairs */

/* What goes between this rank and one other (or itself) in one piece. A pair is a token and one of its experts. */
struct lane {
        struct dispatch *dispatch;
        bool broken;
        uint32_t head_out[HEAD_WORDS], head_in[HEAD_WORDS];
        uint32_t *out;        /* head, then experts [pairs], tokens [pairs] */
        char *x_out;          /* the tokens, encoded */
        uint32_t *sent_pairs; /* [tokens * top_k]: (token, k) of each pair that went */
        uint32_t *meta;       /* came: experts [pairs], tokens [pairs] */
        char *x_in;           /* came: the tokens, encoded; x itself when they are floats */
        float *x, *scales;    /* the same decoded: [tokens][hidden] in dispatch.x, [tokens] in dispatch.scales */
        uint32_t *rows;       /* [pairs]: where in dispatch.y its output is */
        char *answer;         /* to be sent: [pairs] encoded */
        char *encoded_back;   /* what was asked for, encoded */
        float *back;          /* and decoded: [pairs][hidden] */
};

struct dispatch {
        struct lane *lanes; /* [size] */
        size_t capacity;    /* tokens of one rank in a piece */
        char *encoded;      /* [capacity]: the tokens at hand */
        float *x;           /* [size][capacity][hidden] */
        float *scales;      /* [size][capacity], where x is codes */
        enum row_type there, back;
        bool codes;      /* x is codes: the experts take them */
        float *y;        /* [size * capacity * top_k][hidden], grouped by expert */
        uint32_t *first; /* [experts + 1] */
        uint32_t *rows;  /* [size * capacity * top_k]: of x, grouped by expert */
        struct expert_call *calls;
        const float **parts; /* [capacity * top_k]: the output of each token's k-th expert */
        void **memory;       /* everything above, to be freed */
        size_t memory_count;
        /* for adding up */
        const float *weights;
        float *out;
        size_t tokens, hidden, top_k;
        _Atomic size_t next;
};

/* ---- memory ------------------------------------------------------------------------------------------------------------ */

void dispatch_free(struct dispatch *d) {
        if (!d)
                return;
        while (d->memory_count)
                free(d->memory[--d->memory_count]);
        free(d->memory);
        free(d);
}

static void *take(struct dispatch *d, size_t count, size_t size) {
        void *p = calloc(count ? count : 1, size);

        d->memory[d->memory_count++] = p;
        return p;
}

/* Whatever the payload is. */
static size_t token_bytes_most(size_t hidden) {
        return row_type_bytes(ROW_F32, hidden) + row_type_bytes(ROW_INT8, 0);
}

static int make_lane(struct dispatch *d, struct lane *l, size_t capacity, const struct model_config *c) {
        size_t pairs = capacity * c->top_k;

        l->out = take(d, HEAD_WORDS + 2 * pairs, sizeof(uint32_t));
        l->x_out = take(d, capacity, token_bytes_most(c->hidden));
        l->x_in = take(d, capacity, token_bytes_most(c->hidden));
        l->sent_pairs = take(d, pairs, sizeof(uint32_t));
        l->meta = take(d, 2 * pairs, sizeof(uint32_t));
        l->rows = take(d, pairs, sizeof(uint32_t));
        l->answer = take(d, pairs * c->hidden, sizeof(float));
        l->encoded_back = take(d, pairs * c->hidden, sizeof(float));
        l->back = take(d, pairs * c->hidden, sizeof(float));
        return l->out && l->x_out && l->x_in && l->sent_pairs && l->meta && l->rows && l->answer && l->encoded_back &&
                       l->back
                   ? 0
                   : -ENOMEM;
}

static int make_dispatch(struct group *g, size_t capacity) {
        const struct model_config *c = model_config(g->model);
        size_t size = g->options.size, pairs = size * capacity * c->top_k;
        struct dispatch *d = calloc(1, sizeof(*d));
        int r = 0;

        dispatch_free(g->dispatch);
        g->dispatch = NULL;
        if (!d)
                return -ENOMEM;
        d->memory = calloc(size * 9 + 10, sizeof(*d->memory));
        if (!d->memory) {
                free(d);
                return -ENOMEM;
        }
        d->capacity = capacity;
        d->hidden = c->hidden;
        d->top_k = c->top_k;
        d->lanes = take(d, size, sizeof(*d->lanes));
        d->x = take(d, size * capacity * c->hidden, sizeof(float));
        d->encoded = take(d, capacity, token_bytes_most(c->hidden));
        d->scales = take(d, size * capacity, sizeof(float));
        d->y = take(d, pairs * c->hidden, sizeof(float));
        d->first = take(d, c->experts + 1, sizeof(*d->first));
        d->rows = take(d, pairs, sizeof(*d->rows));
        d->calls = take(d, c->experts, sizeof(*d->calls));
        d->parts = take(d, capacity * c->top_k, sizeof(*d->parts));
        if (!d->lanes || !d->x || !d->encoded || !d->scales || !d->y || !d->first || !d->rows || !d->calls || !d->parts)
                r = -ENOMEM;
        for (size_t i = 0; r == 0 && i < size; i++) {
                d->lanes[i].dispatch = d;
                d->lanes[i].x = d->x + i * capacity * c->hidden;
                d->lanes[i].scales = d->scales + i * capacity;
                r = make_lane(d, &d->lanes[i], capacity, c);
        }
        if (r < 0) {
                dispatch_free(d);
                return r;
        }
        g->dispatch = d;
        return 0;
}

/* ---- what goes out ------------------------------------------------------------------------------------------------------ */

/* The lanes' pairs and tokens, for the tokens at hand. In a lane's `out` each list has its place for as many as there may be,
 * until pack() closes the gaps. */
static void sort_out(struct group *g, uint32_t layer, const float *x, const uint32_t *ids) {
        struct dispatch *d = g->dispatch;
        uint32_t size = g->options.size, rank = g->options.rank;
        size_t most = d->capacity * d->top_k, bytes = row_type_bytes(d->there, d->hidden);

        rows_encode(g->compute, d->there, x, d->hidden, d->tokens, d->hidden, d->encoded);
        for (uint32_t i = 0; i < size; i++)
                memset(d->lanes[i].head_out, 0, sizeof(d->lanes[i].head_out));
        for (size_t t = 0; t < d->tokens; t++)
                for (size_t k = 0; k < d->top_k; k++) {
                        uint32_t expert = ids[t * d->top_k + k];
                        struct lane *l = &d->lanes[placement_choose(&g->placement, layer, expert, rank, (uint32_t)t)];
                        uint32_t *words = l->out + HEAD_WORDS, n = l->head_out[1]++;
                        bool again = n > 0 && l->sent_pairs[n - 1] / d->top_k == t;

                        if (!again)
                                memcpy(l->x_out + l->head_out[0]++ * bytes, d->encoded + t * bytes, bytes);
                        words[n] = expert;
                        words[most + n] = l->head_out[0] - 1;
                        l->sent_pairs[n] = (uint32_t)(t * d->top_k + k);
                }
}

/* Close the gap: head, experts, tokens. Bytes. */
static size_t pack(struct dispatch *d, struct lane *l) {
        size_t most = d->capacity * d->top_k, pairs = l->head_out[1];
        uint32_t *words = l->out + HEAD_WORDS;

        memcpy(l->out, l->head_out, sizeof(l->head_out));
        memmove(words + pairs, words + most, pairs * sizeof(*words));
        return (HEAD_WORDS + 2 * pairs) * sizeof(*words);
}

/* ---- what comes in ------------------------------------------------------------------------------------------------------ */

static void on_meta(struct link_job *j) {
        struct lane *l = j->context;

        j->in = l->dispatch->there == ROW_F32 ? (char *)l->x : l->x_in;
        j->in_bytes = l->head_in[0] * row_type_bytes(l->dispatch->there, l->dispatch->hidden);
        j->arrived = NULL;
}

/* A peer may send no more than was agreed on: who does is read no further. */
static void on_head(struct link_job *j) {
        struct lane *l = j->context;
        const struct dispatch *d = l->dispatch;

        l->broken = l->head_in[0] > d->capacity || l->head_in[1] > d->capacity * d->top_k;
        j->arrived = NULL;
        if (l->broken)
                return;
        j->in = (char *)l->meta;
        j->in_bytes = 2 * (size_t)l->head_in[1] * sizeof(uint32_t);
        j->arrived = on_meta;
}

/* What this rank has for itself goes the same way, but for the wire. */
static void keep_own(struct dispatch *d, struct lane *l) {
        size_t most = d->capacity * d->top_k, pairs = l->head_out[1];
        const uint32_t *words = l->out + HEAD_WORDS;

        memcpy(l->head_in, l->head_out, sizeof(l->head_in));
        memcpy(l->meta, words, pairs * sizeof(*words));
        memcpy(l->meta + pairs, words + most, pairs * sizeof(*words));
        memcpy(d->there == ROW_F32 ? (char *)l->x : l->x_in, l->x_out,
            l->head_in[0] * row_type_bytes(d->there, d->hidden));
}

static void decode_tokens(struct group *g) {
        struct dispatch *d = g->dispatch;

        for (uint32_t i = 0; d->there != ROW_F32 && i < g->options.size; i++) {
                struct lane *l = &d->lanes[i];

                rows_decode(g->compute, d->there, l->x_in, l->head_in[0], d->hidden, l->x, d->hidden,
                    d->codes ? l->scales : NULL);
        }
}

static void prepare_requests(struct group *g) {
        struct dispatch *d = g->dispatch;

        for (uint32_t i = 0; i < g->options.size; i++) {
                struct lane *l = &d->lanes[i];

                if (g->links[i] < 0) { /* this rank itself, or one that is not there and gets nothing */
                        keep_own(d, l);
                        g->jobs[i] = (struct link_job){.fd = -1};
                        continue;
                }
                g->jobs[i] = (struct link_job){.fd = g->links[i],
                    .near = g->near[i],
                    .out = (const char *)l->out,
                    .out_bytes = pack(d, l),
                    .more = l->x_out,
                    .more_bytes = l->head_out[0] * row_type_bytes(d->there, d->hidden),
                    .in = (char *)l->head_in,
                    .in_bytes = sizeof(l->head_in),
                    .arrived = on_head,
                    .context = l};
        }
}

/* Experts that are held here and tokens that were sent: everything else would be read or written where nothing is. */
static bool is_sound(const struct group *g, uint32_t layer, const struct lane *l) {
        size_t pairs = l->head_in[1];

        if (l->broken)
                return false;
        for (size_t i = 0; i < pairs; i++)
                if (l->meta[i] >= model_config(g->model)->experts || !model_expert(g->model, layer, l->meta[i]) ||
                    l->meta[pairs + i] >= l->head_in[0])
                        return false;
        return true;
}

static int check_requests(struct group *g, uint32_t layer) {
        char text[80];

        for (uint32_t i = 0; i < g->options.size; i++)
                if (!is_sound(g, layer, &g->dispatch->lanes[i])) {
                        snprintf(text, sizeof(text), "rank %u has sent what nobody asked for", i);
                        group_break(g, text);
                        return -EPROTO;
                }
        return 0;
}

/* ---- computing ---------------------------------------------------------------------------------------------------------- */

/* A counting sort of all lanes' pairs by expert, and a call for each expert that somebody wants. */
static size_t group_pairs(struct group *g, uint32_t layer) {
        struct dispatch *d = g->dispatch;
        uint32_t experts = model_config(g->model)->experts;
        size_t count = 0;

        memset(d->first, 0, (experts + 1) * sizeof(*d->first));
        for (uint32_t r = 0; r < g->options.size; r++)
                for (size_t i = 0; i < d->lanes[r].head_in[1]; i++)
                        d->first[d->lanes[r].meta[i] + 1]++;
        for (uint32_t e = 0; e < experts; e++)
                d->first[e + 1] += d->first[e];
        for (uint32_t r = 0; r < g->options.size; r++) {
                struct lane *l = &d->lanes[r];

                for (size_t i = 0; i < l->head_in[1]; i++) {
                        uint32_t at = d->first[l->meta[i]]++;

                        d->rows[at] = (uint32_t)(r * d->capacity + l->meta[l->head_in[1] + i]);
                        l->rows[i] = at;
                }
        }
        moves_computed(g, d->first[experts]);
        memmove(d->first + 1, d->first, experts * sizeof(*d->first));
        d->first[0] = 0;
        for (uint32_t e = 0; e < experts; e++)
                if (d->first[e + 1] > d->first[e])
                        d->calls[count++] = (struct expert_call){.expert = model_expert(g->model, layer, e),
                            .rows = d->rows + d->first[e],
                            .m = d->first[e + 1] - d->first[e],
                            .scales = d->codes ? d->scales : NULL,
                            .y = d->y + (size_t)d->first[e] * d->hidden};
        return count;
}

static int exchange_answers(struct group *g) {
        struct dispatch *d = g->dispatch;
        size_t row_bytes = row_type_bytes(d->back, d->hidden);

        for (uint32_t r = 0; r < g->options.size; r++) {
                struct lane *l = &d->lanes[r];

                g->jobs[r] = (struct link_job){.fd = -1};
                if (r == g->options.rank && d->back == ROW_F32)
                        continue;
                for (size_t i = 0; i < l->head_in[1]; i++)
                        rows_encode(g->compute, d->back, d->y + (size_t)l->rows[i] * d->hidden, d->hidden, 1, d->hidden,
                            l->answer + i * row_bytes);
                if (r == g->options.rank)
                        continue;
                g->jobs[r] = (struct link_job){.fd = g->links[r],
                    .near = g->near[r],
                    .out = l->answer,
                    .out_bytes = l->head_in[1] * row_bytes,
                    .in = d->back == ROW_F32 ? (char *)l->back : l->encoded_back,
                    .in_bytes = l->head_out[1] * row_bytes};
        }
        return group_exchange(g, false);
}

static void decode_answers(struct group *g) {
        struct dispatch *d = g->dispatch;

        for (uint32_t r = 0; d->back != ROW_F32 && r < g->options.size; r++) {
                struct lane *l = &d->lanes[r];

                rows_decode(g->compute, d->back, r == g->options.rank ? l->answer : l->encoded_back, l->head_out[1],
                    d->hidden, l->back, d->hidden, NULL);
        }
}

/* ---- adding up ---------------------------------------------------------------------------------------------------------- */

static void find_parts(struct group *g) {
        struct dispatch *d = g->dispatch;

        for (uint32_t r = 0; r < g->options.size; r++) {
                const struct lane *l = &d->lanes[r];

                for (size_t i = 0; i < l->head_out[1]; i++)
                        d->parts[l->sent_pairs[i]] = r == g->options.rank && d->back == ROW_F32
                                                         ? d->y + (size_t)l->rows[i] * d->hidden
                                                         : l->back + i * d->hidden;
        }
}

/* In the order of the token's choice, each product rounded before it is added: as experts_run_here() does. */
static void add_task(void *dispatch, unsigned worker, unsigned workers) {
        struct dispatch *d = dispatch;
        size_t t;

        while ((t = atomic_fetch_add_explicit(&d->next, 1, memory_order_relaxed)) < d->tokens)
                for (size_t k = t * d->top_k; k < (t + 1) * d->top_k; k++) {
                        const float *y = d->parts[k], weight = d->weights[k];
                        float *out = d->out + t * d->hidden;

                        for (size_t j = 0; j < d->hidden; j++)
                                out[j] += weight * y[j];
                }
}

static void add_up(struct group *g) {
        struct dispatch *d = g->dispatch;

        decode_answers(g);
        find_parts(g);
        atomic_store_explicit(&d->next, 0, memory_order_relaxed);
        if (d->tokens * d->top_k * d->hidden < ADD_ALONE)
                add_task(d, 0, 1);
        else
                compute_share(g->compute, add_task, d);
}

/* ---- the layer ---------------------------------------------------------------------------------------------------------- */

static int run_piece(struct group *g, uint32_t layer, const float *x, const uint32_t *ids, void (*overlap)(void *),
    void *overlap_context) {
        struct dispatch *d = g->dispatch;
        int r;

        sort_out(g, layer, x, ids);
        prepare_requests(g);
        r = group_exchange(g, true);
        if (r < 0)
                return r;
        if (overlap) /* while tokens are under way */
                overlap(overlap_context);
        r = group_exchange(g, false);
        if (r == 0)
                r = check_requests(g, layer);
        if (r < 0)
                return r;
        decode_tokens(g);
        experts_run(g->compute, d->calls, group_pairs(g, layer), d->x, d->hidden, d->hidden);
        r = exchange_answers(g);
        if (r == 0)
                add_up(g);
        return r;
}

static void choose_payload(struct group *g, uint32_t layer) {
        struct dispatch *d = g->dispatch;
        bool exact_int8 = model_experts_take_int8(g->model, layer);

        d->back = ROW_F32;
        switch (g->options.payload) {
        case GROUP_PAYLOAD_EXACT:
                d->there = exact_int8                                          ? ROW_INT8
                           : compute_activation(g->compute) == ACTIVATION_BF16 ? ROW_BF16
                                                                               : ROW_F32;
                break;
        case GROUP_PAYLOAD_F32:
                d->there = ROW_F32;
                break;
        case GROUP_PAYLOAD_BF16:
        case GROUP_PAYLOAD_INT8:
                d->there = exact_int8 || g->options.payload == GROUP_PAYLOAD_INT8 ? ROW_INT8 : ROW_BF16;
                d->back = ROW_BF16;
                break;
        }
        d->codes = d->there == ROW_INT8 && exact_int8;
}

/* The same number on all ranks, which have the same model. */
static size_t tokens_of_piece(const struct group *g) {
        const struct model_config *c = model_config(g->model);
        size_t fit = OUTPUT_BYTES / ((size_t)g->options.size * c->top_k * c->hidden * sizeof(float));

        return fit == 0 ? 1 : fit;
}

static int run_layer(void *context, uint32_t layer, const float *x, const uint32_t *ids, const float *weights,
    size_t tokens, float *out, void (*overlap)(void *overlap_context), void *overlap_context) {
        struct group *g = context;
        const struct model_config *c = model_config(g->model);
        size_t piece = tokens_of_piece(g), wanted = g->most_rows < piece ? g->most_rows : piece;
        int r = 0;

        if (!g->formed)
                return -ENOTCONN;
        assert(tokens <= g->most_rows);
        moves_count(g, layer, ids, tokens * c->top_k);
        if ((!g->dispatch || g->dispatch->capacity < wanted) && (r = make_dispatch(g, wanted)) < 0) {
                group_break(g, "this rank is out of memory");
                return r;
        }
        choose_payload(g, layer);
        for (size_t at = 0; r == 0 && at < g->most_rows; at += piece) {
                struct dispatch *d = g->dispatch;

                d->tokens = at >= tokens ? 0 : tokens - at < piece ? tokens - at : piece;
                d->weights = weights + at * c->top_k;
                d->out = out + at * c->hidden;
                r = run_piece(
                    g, layer, x + at * c->hidden, ids + at * c->top_k, at == 0 ? overlap : NULL, overlap_context);
        }
        return r;
}

struct experts_interface group_experts(struct group *g, struct model *m, struct compute *compute) {
        g->model = m;
        g->compute = compute;
        return (struct experts_interface){.run = run_layer, .context = g};
}
