/* bpe.c - see bpe.h. */
#include "text/bpe.h"
#include "base/hash.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

enum { WHOLE_UNKNOWN, WHOLE_YES, WHOLE_NO };

/* Up to here a plain search for the best pair beats a heap. */
#define SHORT_PIECE 48u
#define NO_RANK     UINT32_MAX
#define NOWHERE     UINT32_MAX

/* ---- merges --------------------------------------------------------------------------------------------------------- */

int bpe_init(struct bpe *b, const struct vocab *vocab, size_t merge_count) {
        unsigned log2 = 4;

        *b = (struct bpe){.vocab = vocab, .seed = hash_seed() | 1};
        while (((size_t)1 << log2) < merge_count * 2)
                log2++;
        b->merges = malloc(((size_t)1 << log2) * sizeof(*b->merges));
        b->whole = calloc(vocab->size + 1, sizeof(*b->whole));
        if (!b->merges || !b->whole) {
                bpe_free(b);
                return -ENOMEM;
        }
        memset(b->merges, 0xff, ((size_t)1 << log2) * sizeof(*b->merges));
        b->mask = ((size_t)1 << log2) - 1;
        b->shift = 64 - log2;
        for (unsigned i = 0; i < 256; i++) {
                char byte = (char)i;

                b->byte_ids[i] = vocab_find(vocab, slice_of(&byte, 1), VOCAB_BYTES);
        }
        return 0;
}

void bpe_free(struct bpe *b) {
        free(b->merges);
        free(b->whole);
        *b = (struct bpe){0};
}

static struct bpe_merge *merge_slot(const struct bpe *b, uint32_t left, uint32_t right) {
        uint64_t key = ((uint64_t)left << 32 | right) * b->seed;

        for (size_t i = (key ^ key << 29) >> b->shift;; i = (i + 1) & b->mask) {
                struct bpe_merge *m = &b->merges[i];

                if ((m->left == left && m->right == right) || m->left == NOWHERE)
                        return m;
        }
}

static uint32_t rank_of(const struct bpe *b, uint32_t left, uint32_t right, uint32_t *ret_joined) {
        const struct bpe_merge *m = merge_slot(b, left, right);

        *ret_joined = m->joined;
        return m->rank; /* of an empty slot: NO_RANK */
}

int bpe_add_merge(struct bpe *b, struct slice left, struct slice right, uint32_t rank) {
        char text[1 << 16];
        int64_t left_id, right_id, joined;
        struct bpe_merge *m;

        if (left.len + right.len > sizeof(text))
                return -ENOENT;
        memcpy(text, left.ptr, left.len);
        memcpy(text + left.len, right.ptr, right.len);
        left_id = vocab_find(b->vocab, left, VOCAB_BYTES);
        right_id = vocab_find(b->vocab, right, VOCAB_BYTES);
        joined = vocab_find(b->vocab, slice_of(text, left.len + right.len), VOCAB_BYTES);
        if (left_id < 0 || right_id < 0 || joined < 0)
                return -ENOENT;
        m = merge_slot(b, (uint32_t)left_id, (uint32_t)right_id);
        *m = (struct bpe_merge){(uint32_t)left_id, (uint32_t)right_id, rank, (uint32_t)joined};
        return 0;
}

/* ---- output --------------------------------------------------------------------------------------------------------- */

int id_list_add(struct id_list *list, uint32_t id) {
        if (list->count == list->capacity) {
                size_t capacity = list->capacity ? list->capacity * 2 : 256;
                uint32_t *grown = realloc(list->ids, capacity * sizeof(*grown));

                if (!grown)
                        return -ENOMEM;
                list->ids = grown;
                list->capacity = capacity;
        }
        list->ids[list->count++] = id;
        return 0;
}

/* ---- short pieces --------------------------------------------------------------------------------------------------- */

static int encode_short(const struct bpe *b, struct slice piece, struct id_list *out) {
        uint32_t ids[SHORT_PIECE], ranks[SHORT_PIECE], joined[SHORT_PIECE]; /* rank of the pair that begins here */
        size_t n = 0;
        int r = 0;

        assert(piece.len <= SHORT_PIECE);
        for (size_t i = 0; i < piece.len; i++) {
                int64_t id = b->byte_ids[(unsigned char)piece.ptr[i]];

                if (id >= 0)
                        ids[n++] = (uint32_t)id;
        }
        if (n == 0)
                return 0;
        for (size_t i = 0; i + 1 < n; i++)
                ranks[i] = rank_of(b, ids[i], ids[i + 1], &joined[i]);
        while (n > 1) {
                size_t best = 0;

                for (size_t i = 1; i + 1 < n; i++)
                        if (ranks[i] < ranks[best])
                                best = i;
                if (ranks[best] == NO_RANK)
                        break;
                ids[best] = joined[best];
                n--;
                memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof(*ids));
                if (n > best + 1) {
                        memmove(ranks + best + 1, ranks + best + 2, (n - best - 2) * sizeof(*ranks));
                        memmove(joined + best + 1, joined + best + 2, (n - best - 2) * sizeof(*joined));
                        ranks[best] = rank_of(b, ids[best], ids[best + 1], &joined[best]);
                }
                if (best > 0)
                        ranks[best - 1] = rank_of(b, ids[best - 1], ids[best], &joined[best - 1]);
        }
        for (size_t i = 0; r == 0 && i < n; i++)
                r = id_list_add(out, ids[i]);
        return r;
}

/* ---- long pieces ---------------------------------------------------------------------------------------------------- */

struct bpe_symbol {
        uint32_t id, previous, next; /* next NOWHERE: the last one. A symbol that was swallowed has id NOWHERE */
};

/* The heap holds rank << 32 | position, smallest first: what equals in rank comes from left to right. Entries whose pair
 * has changed since are recognised by their rank and dropped. */
static void heap_sink(uint64_t *heap, size_t count, size_t at) {
        uint64_t moving = heap[at];

        for (;;) {
                size_t child = at * 2 + 1;

                if (child >= count)
                        break;
                if (child + 1 < count && heap[child + 1] < heap[child])
                        child++;
                if (heap[child] >= moving)
                        break;
                heap[at] = heap[child];
                at = child;
        }
        heap[at] = moving;
}

static int heap_push(struct bpe_scratch *s, size_t *count, uint64_t item) {
        size_t at = *count;

        if (at == s->heap_capacity) {
                size_t capacity = s->heap_capacity ? s->heap_capacity * 2 : 1024;
                uint64_t *grown = realloc(s->heap, capacity * sizeof(*grown));

                if (!grown)
                        return -ENOMEM;
                s->heap = grown;
                s->heap_capacity = capacity;
        }
        while (at > 0 && s->heap[(at - 1) / 2] > item) {
                s->heap[at] = s->heap[(at - 1) / 2];
                at = (at - 1) / 2;
        }
        s->heap[at] = item;
        ++*count;
        return 0;
}

static int push_pair(const struct bpe *b, struct bpe_scratch *s, size_t *count, uint32_t at) {
        uint32_t next = s->symbols[at].next, rank, joined;

        if (next == NOWHERE)
                return 0;
        rank = rank_of(b, s->symbols[at].id, s->symbols[next].id, &joined);
        return rank == NO_RANK ? 0 : heap_push(s, count, (uint64_t)rank << 32 | at);
}

static int encode_long(const struct bpe *b, struct bpe_scratch *s, struct slice piece, struct id_list *out) {
        size_t n = 0, heap_count = 0;
        int r = 0;

        if (piece.len >= NOWHERE)
                return -ENOMEM;
        if (s->symbol_capacity < piece.len) {
                free(s->symbols);
                s->symbol_capacity = 0;
                s->symbols = malloc(piece.len * sizeof(*s->symbols));
                if (!s->symbols)
                        return -ENOMEM;
                s->symbol_capacity = piece.len;
        }
        for (size_t i = 0; i < piece.len; i++) {
                int64_t id = b->byte_ids[(unsigned char)piece.ptr[i]];

                if (id >= 0) {
                        s->symbols[n] = (struct bpe_symbol){(uint32_t)id, (uint32_t)n - 1, (uint32_t)n + 1};
                        n++;
                }
        }
        if (n == 0)
                return 0;
        s->symbols[n - 1].next = NOWHERE;
        for (size_t i = 0; r == 0 && i < n; i++)
                r = push_pair(b, s, &heap_count, (uint32_t)i);
        while (r == 0 && heap_count > 0) {
                uint32_t rank = (uint32_t)(s->heap[0] >> 32), at = (uint32_t)s->heap[0], joined;
                struct bpe_symbol *left = &s->symbols[at], *right;

                s->steps++;
                s->heap[0] = s->heap[--heap_count];
                heap_sink(s->heap, heap_count, 0);
                if (left->id == NOWHERE || left->next == NOWHERE)
                        continue;
                right = &s->symbols[left->next];
                if (rank_of(b, left->id, right->id, &joined) != rank)
                        continue;
                left->id = joined;
                left->next = right->next;
                right->id = NOWHERE;
                if (left->next != NOWHERE)
                        s->symbols[left->next].previous = at;
                r = push_pair(b, s, &heap_count, at);
                if (r == 0 && left->previous != NOWHERE)
                        r = push_pair(b, s, &heap_count, left->previous);
        }
        for (uint32_t i = 0; r == 0 && i != NOWHERE; i = s->symbols[i].next)
                r = id_list_add(out, s->symbols[i].id);
        return r;
}

void bpe_scratch_free(struct bpe_scratch *s) {
        free(s->symbols);
        free(s->heap);
        *s = (struct bpe_scratch){0};
}

/* ---- a piece -------------------------------------------------------------------------------------------------------- */

int bpe_encode(const struct bpe *b, struct bpe_scratch *s, struct slice piece, struct id_list *out) {
        size_t before = out->count;
        int64_t id = -1;
        uint8_t whole = WHOLE_UNKNOWN;
        int r;

        /* Most pieces are one token. Whether an entry's text is encoded as itself never changes: ask once. */
        if (piece.len <= b->vocab->longest)
                id = vocab_find(b->vocab, piece, VOCAB_BYTES);
        if (id >= 0) {
                whole = b->ignore_merges ? WHOLE_YES : atomic_load_explicit(&b->whole[id], memory_order_relaxed);
                if (whole == WHOLE_YES)
                        return id_list_add(out, (uint32_t)id);
        }
        r = piece.len <= SHORT_PIECE ? encode_short(b, piece, out) : encode_long(b, s, piece, out);
        if (r == 0 && id >= 0 && whole == WHOLE_UNKNOWN)
                atomic_store_explicit(&b->whole[id],
                    out->count == before + 1 && out->ids[before] == (uint32_t)id ? WHOLE_YES : WHOLE_NO,
                    memory_order_relaxed);
        return r;
}
