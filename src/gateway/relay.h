/* relay.h - the events of a decode leg on their way to the client.
 *
 * Sans-I/O: one event in, bytes out, and a verdict. An event that needs no change is passed as it is; else single values
 * are replaced in its bytes. What is changed, and why:
 *  - token ids, which the gateway asks for to be able to go on elsewhere, become null when the client did not ask;
 *  - the answer's id and the choice's index, when one answer is made of several legs;
 *  - usage: cached tokens are those of the prefiller (a decoder counts what it has fetched as cached), and counts of
 *    all legs are added up;
 *  - chunks of a completions leg that continues a chat get the chat's frame.
 *
 * The rule that makes continuing exact: an event that carries tokens but no text (half a character, mostly) is held
 * until text comes. What the client has seen therefore always ends where a token's text ends, and the tokens held are
 * simply computed again. */
#pragma once
#include "base/buf.h"
#include "gateway/facts.h"

/* Held events beyond this are let go: a model that emits no text for so long is saying nothing at all. The stream can be
 * continued again once text comes. */
#define RELAY_HELD_MAX 16384u

struct relay {
        const struct facts *facts;
        uint32_t index; /* of this part's choice in the client's answer */
        bool many;  /* the answer has several parts: ids and indices are rewritten, usage is added up by the caller */
        bool track; /* token ids were asked for: hold events without text */
        struct slice id;       /* shown to the client; the first chunk's, or set by the caller before */
        int64_t cached_tokens; /* of the prefiller; -1: leave what the decoder says */

        struct buf head; /* id, created, model as raw JSON: the memory behind the three slices */
        struct slice created, model;
        struct buf prompt_ids; /* raw JSON list, empty: not known */
        struct buf ids; /* of the output, "1,2,3": `ids_seen` of them, of which `ids_sent` have gone to the client */
        uint32_t ids_seen, ids_sent;
        size_t sent_bytes;   /* of ids.ptr */
        struct buf held;     /* events that wait for text */
        uint64_t chars_sent; /* code points of text */

        bool any_sent;   /* an event has gone to the client */
        bool role_sent;  /* the role chunk of a chat */
        bool restarted;  /* this leg is not the first: its role chunk is not shown */
        bool finished;   /* a finish_reason has gone to the client */
        bool usage_sent; /* the closing usage chunk has gone to the client */
        bool done;       /* [DONE] was read */
        bool opaque;     /* something that cannot be continued has gone by: reasoning, tool calls, several choices */
        bool reframe;    /* this leg is a completions leg that continues a chat */
        uint32_t ids_before; /* sent by legs before this one */
        uint64_t chars_before;
        int64_t usage_prompt, usage_completion; /* the last usage seen, as shown to the client; -1: none */
        struct buf scratch, error;              /* `error`: the data of an error event */
};

void relay_init(struct relay *r, const struct facts *facts);
void relay_free(struct relay *r);

enum relay_verdict {
        RELAY_MORE,
        RELAY_DONE,       /* [DONE]: not written, the caller ends the answer */
        RELAY_ERROR,      /* an error event, kept in r->error, not written */
        RELAY_RECOMPUTED, /* the decoder gave the request up for want of memory: go on elsewhere */
        RELAY_NO_MEMORY,
};
/* Take one event (with its blank line) and append what the client gets to `out`. */
enum relay_verdict relay_event(struct relay *r, struct slice event, struct buf *out);

/* May the stream go on with the tokens sent so far? NULL: yes; else why not. Zero tokens can always be begun anew. */
const char *relay_obstacle(const struct relay *r);
/* The leg is lost: forget what was held, and get ready for the events of the next leg. `reframe`: they will be those of
 * a completions leg for a chat. */
void relay_restart(struct relay *r, bool reframe);
/* The tokens asked for are all out but no finish_reason has come: write the chunk that ends the choice as "length" (and
 * the usage when asked for). */
void relay_end_at_length(struct relay *r, struct buf *out);
/* The choice has its end but its leg was lost behind it: write the closing usage chunk when the client asked for one and
 * none has come, with our own count where no engine has told one (`prompt_tokens`: the prefiller's, -1: not known). */
void relay_end_usage(struct relay *r, int64_t prompt_tokens, struct buf *out);

/* The closing usage chunk of an answer of many parts. */
void relay_write_usage(const struct relay *first, int64_t prompt_tokens, int64_t completion_tokens, struct buf *out);

/* ---- replacing values in a text, shared with whole answers ---------------------------------------------------------- */

#define CUTS_MAX 24
struct cut {
        struct slice what, with;
};
struct cuts {
        struct cut items[CUTS_MAX];
        size_t count;
};
void cuts_add(struct cuts *c, struct slice what, struct slice with);
/* `text` with the cuts made; they must lie in it and not overlap. */
void cuts_write(struct cuts *c, struct slice text, struct buf *out);

/* Replace usage's cached_tokens where the object has one. `number` is memory for the new text. */
void relay_fix_cached(struct slice usage, int64_t cached_tokens, char number[24], struct cuts *cuts);
