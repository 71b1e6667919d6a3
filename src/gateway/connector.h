/* connector.h - how prefill and decode find each other: what the bodies gain and lose on each leg, what is taken from
 * which answer, and what a leg that failed or a client that left owes to whom. A connector is one table in one file;
 * the life cycle (part.c) knows none by name.
 *
 * Pure: bytes in, bytes out. */
#pragma once
#include "base/arena.h"
#include "gateway/facts.h"

enum connector_order {
        ORDER_PREFILL_FIRST, /* the prefill leg's answer carries what the decode leg needs */
        ORDER_DECODE_FIRST,  /* the decoder asks for its prefill when it has room, at /v1/metaserver */
        ORDER_TOGETHER,      /* both legs at once, told where to meet */
        ORDER_ONE,           /* one leg on a whole engine */
};

/* What the two legs of one attempt are told of each other, where that is not in the prefill leg's answer. */
struct meeting {
        struct slice metaserver; /* decode first: URL that a decoder asks for its prefill at */
        struct slice asked;      /* the same: JSON, byte for byte as the decoder asked, for the prefiller */
        /* Together. */
        struct slice host; /* of the prefiller, as in a URL */
        uint16_t port;     /* of its bootstrap server */
        int dp_rank;       /* of the prefiller */
        struct slice engine_id, request_id;
        uint64_t room; /* random, at most 2^53: a number in any JSON */
};

/* What a prefill leg has committed: KV that waits at a prefiller until it is fetched. */
struct handoff {
        struct slice params;   /* JSON, byte for byte as the prefiller sent it; SLICE_NONE: nothing is held */
        int64_t prompt_tokens; /* -1: not said */
        int64_t cached_tokens; /* of the prompt, at the prefiller; -1: not said */
};

/* A body as it is sent: slices over the client's bytes and over what the edits put in. */
struct body {
        struct slice *parts;
        size_t count, bytes;
};

/* Edits of one body, at most one for each key; later ones take the place of earlier ones. */
#define EDITS_MAX 96
struct edits {
        struct openai_edit items[EDITS_MAX];
        size_t count;
};
void edits_set(struct edits *e, const char *key, struct slice value); /* SLICE_NONE takes the member out */

/* What a leg's body is made from: the client's body, or what continues it elsewhere (continuation.h). */
struct source {
        const struct facts *facts;
        struct slice text; /* the object */
        const struct openai_member *members;
        size_t count;
        /* Edits that hold for every leg of this part (its one prompt of a list, n, seed), NULL when none. */
        struct edits *edits;
        int64_t max_model_len; /* of the instance that gets it; 0: not known */
        struct meeting meeting;
};

enum decode_purpose {
        DECODE_ANSWER, /* the client's answer */
        DECODE_SETTLE, /* nobody waits for it: one token, so that the KV is fetched and the prefiller lets go of it */
};

struct connector {
        const char *name;
        const char *const *aliases; /* the engines' names for it, ended by NULL */
        enum connector_order order;
        /* Add what the leg's body needs; new text lives in `arena`. 0 or -ENOMEM. */
        int (*edit_prefill)(const struct source *s, struct arena *arena, struct edits *e);
        int (*edit_decode)(const struct source *s, const struct handoff *h, enum decode_purpose purpose,
            struct arena *arena, struct edits *e);
        /* Read a prefill leg's answer. 0; -ENODATA: it committed nothing that a decoder could use (the text says why);
         * -EINVAL: not an answer at all. *ret_handoff lives in `arena`. */
        int (*take)(struct slice answer, struct arena *arena, struct handoff *ret_handoff, struct error *e);
        /* What a prefiller's bootstrap server is asked at every probe (GET), to know its engine's id. NULL: nothing. */
        const char *bootstrap_path;
        /* The id of the engine of that rank (-1: the only one) in its answer, without quotes. 0 or -EINVAL with a text. */
        int (*take_engine)(struct slice answer, int dp_rank, struct slice *ret_id, struct error *e);
};

/* By its name or an alias, '-' and '_' and case aside. NULL: none. */
const struct connector *connector_find(const char *name);
const char *connector_names(void); /* for messages */
extern const struct connector connector_pull, connector_push, connector_mooncake, connector_sglang, connector_plain;

/* The edited body. Everything new lives in `arena`. 0 or -ENOMEM. */
int connector_prefill_body(
    const struct connector *c, const struct source *s, struct arena *arena, struct body *ret_body);
int connector_decode_body(const struct connector *c, const struct source *s, const struct handoff *h,
    enum decode_purpose purpose, bool want_token_ids, struct arena *arena, struct body *ret_body);

/* What connectors share. The edits that make a body one that is computed for its KV alone: one token, nothing that nobody
 * would read. */
void edits_for_prefill(const struct source *s, struct edits *e);
/* What usage (raw JSON) says of the prompt. */
void handoff_count(struct handoff *h, struct slice usage);
/* A `take` for prefill answers that carry nothing for the decoder. */
int connector_take_counts(struct slice answer, struct arena *arena, struct handoff *ret_handoff, struct error *e);

/* Why this request cannot be served through the connector at all; NULL: it can. */
const char *connector_refusal(const struct connector *c, const struct facts *f);
