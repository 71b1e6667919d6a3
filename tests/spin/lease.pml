/* lease.pml - the lease under which a prefiller keeps KV, and those who fetch it: src/comm/lease.c and fetch.c.
 *
 * One lease, two decoders that know its name (the second one is a gateway's mistake), one block. Everybody may vanish or
 * fall silent at any step, connections break, messages that are under way arrive or do not. Time is left out: a timer may fire at any
 * moment at which it is armed, so beats, which only put off the lease's, add nothing.
 *
 *   never   a fetch that counts has read what somebody else wrote there   (assert in count_fetch)
 *   ends    every lease ends, every fetch ends                           (ltl)
 *
 * A switch takes out one rule of the code; the model must then fail: UNCONFIRMED (a fetch counts without the producer's last
 * word), NO_TIMER (a lease does not expire), NO_SILENCE (a decoder waits for an answer without a limit). */
#define READERS 2
#define NOBODY  READERS

mtype = { LEASE_HELD, LEASE_READ, LEASE_ENDED }; /* nobody reads it, somebody does, lease_end() */
mtype = { FETCH_ANNOUNCED, FETCH_WANTED, FETCH_LEFT, FETCH_SENT, FETCH_RECEIVING, FETCH_COPYING, FETCH_CLOSING, FETCH_ENDED };
mtype = { WIRE_RELEASE, WIRE_FETCH, WIRE_CLOSE, WIRE_BLOCKS, WIRE_DATA, WIRE_REFUSED, WIRE_CLOSED };

mtype lease = LEASE_HELD;
byte reader = NOBODY;
bool writing;   /* a payload goes out of the blocks: only the end of the connection ends the lease now */
bool rewritten; /* the blocks went back, and others have written there */
bool producer_lives = true;

mtype fetch[READERS] = FETCH_ANNOUNCED;
bool consumer_lives[READERS] = true, connected[READERS] = true, foul[READERS]; /* foul: it has read what others wrote */
byte read_count[READERS];
chan asks[READERS] = [2] of { mtype };
chan answers[READERS] = [3] of { mtype, bool }; /* WIRE_DATA: are the bytes the lease's? WIRE_CLOSED: was it valid? */

inline lease_end() {
        lease = LEASE_ENDED;
        reader = NOBODY;
        writing = false
}

/* reader_close(): the leases that were read over the connection end with it. */
inline reader_close(i) {
        connected[i] = false;
        if
        :: lease == LEASE_READ && reader == i -> lease_end()
        :: else
        fi
}

inline answer_fetch(i) {
        if
        :: lease != LEASE_HELD -> answers[i]!WIRE_REFUSED, false
        :: else ->
                lease = LEASE_READ;
                reader = i;
                if
                :: answers[i]!WIRE_BLOCKS, true /* it reads this host's memory, or by RDMA */
                :: writing = true              /* it is sent the bytes */
                fi
        fi
}

inline answer_close(i) {
        if
        :: lease == LEASE_READ && reader == i && !writing ->
                lease_end();
                answers[i]!WIRE_CLOSED, true
        :: else -> answers[i]!WIRE_CLOSED, false
        fi
}

active proctype producer() {
        byte i;

end:    do
        :: atomic { !producer_lives -> break }
        :: atomic { asks[0]?WIRE_FETCH -> i = 0; answer_fetch(i) }
        :: atomic { asks[1]?WIRE_FETCH -> i = 1; answer_fetch(i) }
        :: atomic { asks[0]?WIRE_CLOSE -> i = 0; answer_close(i) }
        :: atomic { asks[1]?WIRE_CLOSE -> i = 1; answer_close(i) }
        :: atomic { asks[0]?WIRE_RELEASE -> if :: lease == LEASE_HELD -> lease_end() :: else fi }
        :: atomic { asks[1]?WIRE_RELEASE -> if :: lease == LEASE_HELD -> lease_end() :: else fi }
        :: atomic { writing -> answers[reader]!WIRE_DATA, !rewritten; writing = false } /* the kernel has all of it */
        :: atomic { lease == LEASE_READ && !connected[reader] -> i = reader; reader_close(i) }
#ifndef NO_TIMER
        :: atomic { lease == LEASE_READ && writing -> i = reader; reader_close(i) }
        :: atomic { lease != LEASE_ENDED && !writing -> lease_end() }
#endif
        :: atomic { lease == LEASE_ENDED && !rewritten -> rewritten = true }
        od
}

inline fetch_end(i) {
        fetch[i] = FETCH_ENDED
}

/* It is decoded from. */
inline count_fetch(i) {
        assert(!foul[i]);
        fetch_end(i)
}

inline close_fetch(i) {
#ifdef UNCONFIRMED
        count_fetch(i)
#else
        asks[i]!WIRE_CLOSE;
        fetch[i] = FETCH_CLOSING
#endif
}

/* source_fail(): the connection is closed, what was fetched over it ends. */
inline source_fail(i) {
        connected[i] = false;
        fetch_end(i)
}

#define IS_WAITING(i) (fetch[i] == FETCH_SENT || fetch[i] == FETCH_RECEIVING || fetch[i] == FETCH_CLOSING)

proctype consumer(byte i) {
        bool said;

        do
        :: atomic { fetch[i] == FETCH_ENDED || !consumer_lives[i] -> break }
        :: atomic { fetch[i] == FETCH_ANNOUNCED -> fetch[i] = FETCH_WANTED } /* there are blocks for it */
        :: atomic { fetch[i] == FETCH_ANNOUNCED || fetch[i] == FETCH_WANTED -> fetch[i] = FETCH_LEFT } /* it is not wanted */
        :: atomic { fetch[i] == FETCH_WANTED && connected[i] -> asks[i]!WIRE_FETCH; fetch[i] = FETCH_SENT }
        :: atomic { fetch[i] == FETCH_LEFT && connected[i] -> asks[i]!WIRE_RELEASE; fetch_end(i) }
        :: atomic { answers[i]?WIRE_REFUSED, said -> fetch_end(i) }
        :: atomic { answers[i]?WIRE_BLOCKS, said -> fetch[i] = FETCH_COPYING }
        :: atomic { fetch[i] == FETCH_SENT && answers[i]?[WIRE_DATA, said] -> fetch[i] = FETCH_RECEIVING }
        :: atomic { fetch[i] == FETCH_RECEIVING -> answers[i]?WIRE_DATA, said; foul[i] = !said; close_fetch(i) }
        :: atomic { fetch[i] == FETCH_COPYING && read_count[i] < 2 ->
                foul[i] = foul[i] || rewritten; read_count[i]++ }
        :: atomic { fetch[i] == FETCH_COPYING && read_count[i] > 0 && connected[i] -> close_fetch(i) }
        :: atomic { answers[i]?WIRE_CLOSED, said -> if :: said -> count_fetch(i) :: else -> fetch_end(i) fi }
        :: atomic { !connected[i] -> fetch_end(i) }
#ifndef NO_SILENCE
        :: atomic { IS_WAITING(i) || fetch[i] == FETCH_COPYING -> source_fail(i) }
#endif
        od
}

/* What may happen at any moment, or never. */
proctype fate_of_producer() {
        if
        :: producer_lives = false                                                       /* silent, as with SIGSTOP */
        :: atomic { producer_lives = false; connected[0] = false; connected[1] = false } /* its process has ended */
        :: skip
        fi
}

proctype fate_of_consumer(byte i) {
        if
        :: consumer_lives[i] = false
        :: atomic { consumer_lives[i] = false; connected[i] = false }
        :: skip
        fi
}

proctype fate_of_connection(byte i) {
        if
        :: connected[i] = false
        :: atomic { nempty(asks[i]) -> connected[i] = false; asks[i]?_ } /* with what was under way */
        :: skip
        fi
}

init {
        atomic {
                run consumer(0);
                run consumer(1);
                run fate_of_producer();
                run fate_of_consumer(0);
                run fate_of_connection(0) /* the second decoder is there to be in the first one's way */
        }
}

ltl ends {
        <> ((lease == LEASE_ENDED || !producer_lives) && (fetch[0] == FETCH_ENDED || !consumer_lives[0]) &&
            (fetch[1] == FETCH_ENDED || !consumer_lives[1]))
}
