/* push.pml - a decoder leases blocks out, a prefiller writes into them: src/comm/receive.c and push.c, with what the engines on
 * both sides do with their blocks (src/engine/transfer.c).
 *
 * One receipt, two prefillers that know its name (the second one is a gateway's mistake), each with blocks of its own. A writer
 * tells its rows in two parts; the decoder puts them in place when it takes the message: off the connection, where the bytes are
 * what they were when they were sent, or out of the writer's memory, where they are what is there by then. Everybody may vanish
 * or fall silent at any step, be given up by its client at any step, connections break, messages that are under way arrive or do not.
 * Time is left out: a timer may fire at any moment at which it is armed.
 *
 *   never   a block is written that was given to somebody else                  (assert in take_rows)
 *   never   a receipt counts with rows missing, or with what others wrote        (assert in count_receipt)
 *   never   a prefill is told to be done whose decoder has not got all           (assert in count_push)
 *   ends    every receipt ends, every push ends                                 (ltl)
 *
 * A switch takes out one rule of the code; the model must then fail: UNFENCED (the writer writes
 * into the decoder's memory itself), UNCONFIRMED (a receipt counts without the writer's last word), EARLY (a writer's blocks go
 * back when all is told, not when it is confirmed), NO_TIMER (a receipt does not expire), NO_SILENCE (a writer waits for an
 * answer without a limit). */
#define WRITERS 2
#define NOBODY  WRITERS
#define PARTS   2

mtype = { RECEIPT_HELD, RECEIPT_WRITTEN, RECEIPT_CLOSING, RECEIPT_ENDED }; /* nobody writes yet, somebody does, all is here */
mtype = { PUSH_OPENING, PUSH_WRITING, PUSH_COMPLETING, PUSH_ENDED };
mtype = { WIRE_PUSH, WIRE_ROWS, WIRE_COMPLETE, WIRE_CLOSED, WIRE_READY, WIRE_REFUSED, WIRE_CLOSE };

mtype receipt = RECEIPT_HELD;
byte writer = NOBODY;
byte done;      /* parts that are here */
bool foul;      /* one of them is what others wrote */
bool given;     /* the decoder's blocks have become somebody else's */
bool counted;   /* it is decoded from */
bool consumer_lives = true, consumer_left; /* left: by its client */

mtype push[WRITERS] = PUSH_OPENING;
byte told[WRITERS];     /* parts */
bool direct[WRITERS];   /* the decoder reads its memory */
bool rewritten[WRITERS]; /* its blocks went back, and others have written there */
bool producer_lives[WRITERS] = true, producer_left[WRITERS], connected[WRITERS] = true;
chan asks[WRITERS] = [2] of { mtype, bool }; /* WIRE_ROWS: are the bytes the prompt's? WIRE_CLOSED: was it valid? */
chan answers[WRITERS] = [2] of { mtype, bool }; /* WIRE_READY: directly? */

/* ---- the decoder --------------------------------------------------------------------------------------------------------- */

/* receipt_end(): the connection goes with it, the blocks are the engine's again. */
inline receipt_end() {
        if
        :: writer != NOBODY -> connected[writer] = false
        :: else
        fi;
        receipt = RECEIPT_ENDED;
        writer = NOBODY
}

inline count_receipt() {
        assert(done == PARTS && !foul);
        counted = true;
        receipt_end()
}

inline take_push(i) {
        if
        :: receipt != RECEIPT_HELD -> answers[i]!WIRE_REFUSED, false
        :: else ->
                receipt = RECEIPT_WRITTEN;
                writer = i;
                if
                :: direct[i] = true
                :: direct[i] = false
                fi;
                answers[i]!WIRE_READY, direct[i]
        fi
}

/* What comes over a connection that is no receipt's any more is not heard. What was sent before a writer left may be. */
inline take_rows(i, said) {
        if
        :: writer == i && receipt == RECEIPT_WRITTEN ->
                assert(!given);
                foul = foul || (direct[i] && rewritten[i]) || (!direct[i] && !said);
                done++
        :: else
        fi
}

inline complete(i) {
        if
        :: writer == i && receipt == RECEIPT_WRITTEN && done == PARTS ->
#ifdef UNCONFIRMED
                count_receipt()
#else
                receipt = RECEIPT_CLOSING;
                answers[i]!WIRE_CLOSE, true
#endif
        :: writer == i && !(receipt == RECEIPT_WRITTEN && done == PARTS) -> receipt_end()
        :: else
        fi
}

active proctype consumer() {
        bool said;
        byte i;

end:    do
        :: atomic { !consumer_lives -> break }
        :: atomic { asks[0]?[WIRE_PUSH, _] -> asks[0]?WIRE_PUSH, said; i = 0; take_push(i) }
        :: atomic { asks[1]?[WIRE_PUSH, _] -> asks[1]?WIRE_PUSH, said; i = 1; take_push(i) }
        :: atomic { asks[0]?[WIRE_ROWS, _] -> asks[0]?WIRE_ROWS, said; i = 0; take_rows(i, said) }
        :: atomic { asks[1]?[WIRE_ROWS, _] -> asks[1]?WIRE_ROWS, said; i = 1; take_rows(i, said) }
        :: atomic { asks[0]?[WIRE_COMPLETE, _] -> asks[0]?WIRE_COMPLETE, said; i = 0; complete(i) }
        :: atomic { asks[1]?[WIRE_COMPLETE, _] -> asks[1]?WIRE_COMPLETE, said; i = 1; complete(i) }
        :: atomic { writer != NOBODY && asks[writer]?[WIRE_CLOSED, _] ->
                asks[writer]?WIRE_CLOSED, said;
                if
                :: receipt == RECEIPT_CLOSING && said -> count_receipt()
                :: else -> receipt_end()
                fi }
        :: atomic { writer != NOBODY && !connected[writer] -> receipt_end() } /* receipt_cut() */
        :: atomic { receipt != RECEIPT_ENDED && consumer_left -> receipt_end() }
#ifndef NO_TIMER
        :: atomic { receipt != RECEIPT_ENDED -> receipt_end() }
#endif
        :: atomic { receipt == RECEIPT_ENDED && !given -> given = true }
        od
}

/* ---- a prefiller --------------------------------------------------------------------------------------------------------- */

/* push_end(): its blocks are the engine's again. */
inline push_end(i) {
        push[i] = PUSH_ENDED
}

inline push_fail(i) {
        connected[i] = false;
        push_end(i)
}

inline count_push(i) {
        assert(done == PARTS && !foul);
        push_end(i)
}

proctype producer(byte i) {
        bool said;

        asks[i]!WIRE_PUSH, false;
end:    do
        :: atomic { !producer_lives[i] -> break }
        :: atomic { push[i] == PUSH_ENDED && !rewritten[i] -> rewritten[i] = true }
        :: atomic { push[i] != PUSH_ENDED && answers[i]?[WIRE_REFUSED, _] -> answers[i]?WIRE_REFUSED, said; push_fail(i) }
        :: atomic { push[i] == PUSH_OPENING && answers[i]?[WIRE_READY, _] ->
                answers[i]?WIRE_READY, said; push[i] = PUSH_WRITING }
#ifdef UNFENCED
        :: atomic { push[i] == PUSH_WRITING && told[i] < PARTS -> assert(!given); told[i]++ }
#else
        :: atomic { push[i] == PUSH_WRITING && told[i] < PARTS && connected[i] && nfull(asks[i]) ->
                asks[i]!WIRE_ROWS, !rewritten[i]; told[i]++ }
#endif
        :: atomic { push[i] == PUSH_WRITING && told[i] == PARTS && connected[i] && nfull(asks[i]) ->
                asks[i]!WIRE_COMPLETE, false; push[i] = PUSH_COMPLETING }
#ifdef EARLY
        :: atomic { push[i] == PUSH_COMPLETING && !rewritten[i] -> rewritten[i] = true }
#endif
        :: atomic { push[i] == PUSH_COMPLETING && answers[i]?[WIRE_CLOSE, _] && connected[i] && nfull(asks[i]) ->
                answers[i]?WIRE_CLOSE, said; asks[i]!WIRE_CLOSED, true; count_push(i) }
        :: atomic { push[i] != PUSH_ENDED && !connected[i] -> push_end(i) }
        :: atomic { push[i] != PUSH_ENDED && producer_left[i] -> push_fail(i) }
#ifndef NO_SILENCE
        :: atomic { push[i] == PUSH_OPENING || push[i] == PUSH_COMPLETING || (push[i] == PUSH_WRITING && full(asks[i])) ->
                push_fail(i) }
#endif
        od
}

/* ---- what may happen at any moment, or never ------------------------------------------------------------------------------- */

proctype fate_of_producer(byte i) {
        if
        :: producer_lives[i] = false                                      /* silent, as with SIGSTOP */
        :: atomic { producer_lives[i] = false; connected[i] = false }      /* its process has ended */
        :: skip
        fi
}

proctype fate_of_consumer() {
        if
        :: consumer_lives = false
        :: atomic { consumer_lives = false; connected[0] = false; connected[1] = false }
        :: skip
        fi
}

proctype fate_of_clients() {
        if
        :: consumer_left = true
        :: producer_left[0] = true
        :: atomic { consumer_left = true; producer_left[0] = true }
        :: skip
        fi
}

proctype fate_of_connection(byte i) {
        if
        :: connected[i] = false
        :: skip
        fi
}

init {
        atomic {
                run producer(0);
                run producer(1);
                run fate_of_producer(0);
                run fate_of_consumer();
                run fate_of_clients();
                run fate_of_connection(0) /* the second prefiller is there to be in the first one's way */
        }
}

ltl ends {
        <> ((receipt == RECEIPT_ENDED || !consumer_lives) && (push[0] == PUSH_ENDED || !producer_lives[0]) &&
            (push[1] == PUSH_ENDED || !producer_lives[1]))
}
