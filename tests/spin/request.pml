/* request.pml - the life of one choice in the gateway: src/gateway/part.c, with the client, a prefiller and a decoder around it.
 *
 * States, events and actions have the names that they have there, and the table below is that of part.c, line by line: the
 * test compares the two. ORDER is the connector's: PULL, PUSH, TOGETHER. The client may leave, instances refuse, break, fall
 * silent or vanish at any step; timers fire at any moment at which they are armed; retries and waits are bounded.
 *
 *   never   two legs of a role at once; two answers to a client; params sent that a decoder may have used; KV that is held for
 *           nobody without being counted, unless a leg broke so that nobody can tell    (asserts)
 *   ends    every request ends, with its legs                                          (ltl)
 *
 * A switch takes out one rule; the model must then fail: REUSE (params of a decoder that broke are sent again), NO_SETTLE (KV of a
 * client that has left is not fetched), NO_CUT (a failed prefill does not end the decode leg), NO_CLEAR (the next attempt does
 * not wait for the legs of the last). */
#define PULL     0
#define PUSH     1
#define TOGETHER 2
#ifndef ORDER
#define ORDER PULL
#endif
#define TRIES         2 /* --max-retries */
#define CONTINUATIONS 1
#define WAITS         2 /* looks for an instance in vain */

mtype = { PART_IDLE, PART_NEED_PREFILL, PART_PREFILL, PART_NEED_DECODE, PART_RESERVE, PART_NEED_PUSH, PART_BOTH, PART_CLEAR,
        PART_DECODE, PART_RELAY, PART_LET_PREFILL, PART_LET_BOTH, PART_LET_FETCH, PART_NEED_SETTLE, PART_SETTLE, PART_END };
mtype = { PART_TRY, PART_WAITED_TOO_LONG, PART_ASKED, PART_PREFILLED, PART_PREFILL_FAILED, PART_PREFILL_REFUSED,
        PART_DECODE_BEGAN, PART_DECODED, PART_DECODE_FAILED, PART_DECODE_REFUSED, PART_CLEARED, PART_GRACE_OVER, PART_STOP, NOTHING };
mtype = { LEG_DONE, LEG_REFUSED, LEG_OVERLOADED, LEG_ERROR, LEG_UNSENT, LEG_BROKEN, LEG_TIMEOUT, LEG_ABORTED };

/* The part. */
mtype state = PART_IDLE, event = NOTHING, last_end = LEG_DONE;
mtype as; /* how a leg ends */
mtype ended = NOTHING; /* which one: PART_PREFILL, PART_DECODE, NOTHING */
bool prefill_leg, decode_leg, prefill_cut, decode_cut; /* in flight; leg_stop() was called */
bool params;                                           /* p->handoff.params */
byte tries, continuations, waits;
/* The client. */
bool gone, answered, may_leave = true;
/* The engines. */
bool held;     /* KV is kept at the prefiller until it is fetched */
bool excused;  /* that it stays there is counted, or nobody can tell */
bool shown;    /* a decoder may have used the params */
bool taken_in; /* the decoder has admitted the leg */
bool asked, written, fetched, begun;

/* ---- legs ------------------------------------------------------------------------------------------------------------- */

inline leg_stop_both() {
        prefill_cut = prefill_leg;
        decode_cut = decode_leg
}

inline send_prefill() {
        assert(!prefill_leg);
        assert(!held || excused);
        prefill_leg = true;
        prefill_cut = false;
        held = false;
        fetched = false;
        excused = false;
        written = false
}

inline send_decode() {
        assert(!decode_leg);
        assert(!(params && shown));
        decode_leg = true;
        decode_cut = false;
        taken_in = false;
        asked = false;
        fetched = false;
        begun = false
}

/* ---- actions ------------------------------------------------------------------------------------------------------------ */

inline strand() {
        excused = true;
        state = PART_END
}

inline drop_handoff() {
        params = false
}

inline fail() {
        assert(!answered && !gone);
        answered = true;
        leg_stop_both();
        state = PART_END
}

inline start_prefill() {
        if
        :: waits < WAITS -> waits++; state = (ORDER == PUSH -> PART_NEED_PUSH : PART_NEED_PREFILL)
        :: send_prefill(); state = (ORDER == PUSH -> PART_BOTH : PART_PREFILL)
        fi
}

inline start_both() {
        if
        :: waits < WAITS -> waits++; state = PART_NEED_PREFILL
        :: waits < WAITS -> waits++; state = PART_NEED_DECODE
        :: send_prefill(); send_decode(); state = PART_BOTH
        fi
}

inline start_decode() {
        if
        :: ORDER == PULL && params && state != PART_PREFILL -> excused = true; drop_handoff() /* too old by now */
        :: true
        fi;
        if
        :: ORDER == TOGETHER -> start_both()
        :: ORDER == PULL && !params -> start_prefill()
        :: else ->
                if
                :: waits < WAITS -> waits++; state = PART_NEED_DECODE
                :: send_decode(); state = (ORDER == PUSH -> PART_RESERVE : PART_DECODE)
                fi
        fi
}

inline begin() {
#ifdef NO_CLEAR
        start_decode()
#else
        if
        :: !prefill_leg && !decode_leg -> start_decode()
        :: else ->
                excused = excused || prefill_leg; /* cut: it may have committed just now */
                leg_stop_both();
                state = PART_CLEAR
        fi
#endif
}

inline take_prefill() {
        params = true;
        shown = false;
        start_decode()
}

inline answer_call() {
        start_prefill()
}

inline pushed() {
        state = PART_DECODE
}

#define IS_UNTOUCHED (last_end == LEG_UNSENT || last_end == LEG_OVERLOADED)

inline retry_prefill() {
        if
        :: tries == TRIES -> fail()
        :: else -> tries++; start_prefill()
        fi
}

inline retry_push() {
        if
        :: tries == TRIES -> fail()
        :: tries < TRIES && IS_UNTOUCHED && ORDER == PUSH -> tries++; start_prefill()
        :: else ->
                tries++;
#ifdef NO_CUT
                state = PART_DECODE
#else
                begin()
#endif
        fi
}

inline refuse_prefill() {
        drop_handoff();
        fail()
}

/* Of a prefiller that was called together with a decoder: nobody else knows where they were to meet. */
inline leave_behind() {
        excused = excused || (ORDER == TOGETHER && (state == PART_DECODE || state == PART_LET_FETCH))
}

/* In the code a part of its own does it: what it owes is the same. */
inline settle_aside() {
        if
        :: params -> excused = true
        :: else -> leave_behind()
        fi
}

inline retry_decode() {
        if
        :: tries == TRIES -> if :: IS_UNTOUCHED -> settle_aside() :: else fi; fail()
        :: else ->
                tries++;
                if
                :: IS_UNTOUCHED -> if :: ORDER == TOGETHER -> leave_behind() :: else fi
#ifndef REUSE
                :: else -> drop_handoff()
#else
                :: else
#endif
                fi;
                begin()
        fi
}

inline refuse_decode() {
        settle_aside();
        fail()
}

inline begin_relay() {
        assert(!gone);
        state = PART_RELAY
}

inline finish() {
        assert(!answered && !gone);
        answered = true;
        state = PART_END
}

inline go_on_elsewhere() {
        drop_handoff();
        if
        :: continuations == CONTINUATIONS -> fail()
        :: else -> continuations++; begin()
        fi
}

inline waited_too_long() {
        settle_aside();
        fail()
}

inline end() {
        state = PART_END
}

inline leave_prefill() {
        if
        :: state = PART_LET_PREFILL
        :: cut_prefill() /* it is older than the grace */
        fi
}

inline cut_prefill() {
        excused = true; /* whether it had committed nobody can tell */
        prefill_cut = prefill_leg;
        state = PART_END
}

inline leave_decode() {
        if
        :: !params && ORDER != TOGETHER -> cut_decode()
        :: params || ORDER == TOGETHER -> state = PART_LET_FETCH
        :: params || ORDER == TOGETHER -> excused = true; cut_decode()
        fi
}

inline cut_decode() {
        decode_cut = decode_leg;
        state = PART_END
}

inline leave_both() {
        if
        :: state = PART_LET_BOTH
        :: excused = true; cut_both()
        fi
}

inline cut_both() {
        leg_stop_both();
        state = PART_END
}

inline let_fetch() {
        state = PART_LET_FETCH
}

inline settle() {
#ifdef NO_SETTLE
        state = PART_END
#else
        if
        :: !params || (shown && !IS_UNTOUCHED && last_end != LEG_REFUSED) -> state = PART_END
        :: else ->
                if
                :: strand() /* the params are too old */
                :: waits < WAITS -> waits++; state = PART_NEED_SETTLE
                :: waits < WAITS -> waits++; send_decode(); state = PART_SETTLE /* until they are too old */
                fi
        fi
#endif
}

inline settle_again() {
        if
        :: !IS_UNTOUCHED && state == PART_SETTLE -> strand()
        :: !IS_UNTOUCHED && state != PART_SETTLE && last_end != LEG_REFUSED -> state = PART_END
        :: else -> leave_behind(); settle()
        fi
}

inline settled() {
        state = PART_END
}

/* ---- the table of part.c ------------------------------------------------------------------------------------------------ */

inline part_step() {
        if
        :: state == PART_IDLE && event == PART_TRY -> begin()
        :: state == PART_IDLE && event == PART_STOP -> end()
        :: state == PART_NEED_PREFILL && event == PART_TRY -> begin()
        :: state == PART_NEED_PREFILL && event == PART_WAITED_TOO_LONG -> waited_too_long()
        :: state == PART_NEED_PREFILL && event == PART_STOP -> end()
        :: state == PART_PREFILL && event == PART_PREFILLED -> take_prefill()
        :: state == PART_PREFILL && event == PART_PREFILL_FAILED -> retry_prefill()
        :: state == PART_PREFILL && event == PART_PREFILL_REFUSED -> refuse_prefill()
        :: state == PART_PREFILL && event == PART_STOP -> leave_prefill()
        :: state == PART_NEED_DECODE && event == PART_TRY -> start_decode()
        :: state == PART_NEED_DECODE && event == PART_WAITED_TOO_LONG -> waited_too_long()
        :: state == PART_NEED_DECODE && event == PART_STOP -> settle()
        :: state == PART_RESERVE && event == PART_ASKED -> answer_call()
        :: state == PART_RESERVE && event == PART_DECODE_BEGAN -> begin_relay()
        :: state == PART_RESERVE && event == PART_DECODED -> finish()
        :: state == PART_RESERVE && event == PART_DECODE_FAILED -> retry_decode()
        :: state == PART_RESERVE && event == PART_DECODE_REFUSED -> refuse_decode()
        :: state == PART_RESERVE && event == PART_STOP -> cut_decode()
        :: state == PART_NEED_PUSH && event == PART_TRY -> start_prefill()
        :: state == PART_NEED_PUSH && event == PART_WAITED_TOO_LONG -> waited_too_long()
        :: state == PART_NEED_PUSH && event == PART_DECODE_BEGAN -> begin_relay()
        :: state == PART_NEED_PUSH && event == PART_DECODED -> finish()
        :: state == PART_NEED_PUSH && event == PART_DECODE_FAILED -> retry_decode()
        :: state == PART_NEED_PUSH && event == PART_DECODE_REFUSED -> refuse_decode()
        :: state == PART_NEED_PUSH && event == PART_STOP -> cut_decode()
        :: state == PART_BOTH && event == PART_PREFILLED -> pushed()
        :: state == PART_BOTH && event == PART_PREFILL_FAILED -> retry_push()
        :: state == PART_BOTH && event == PART_PREFILL_REFUSED -> refuse_prefill()
        :: state == PART_BOTH && event == PART_DECODE_BEGAN -> begin_relay()
        :: state == PART_BOTH && event == PART_DECODED -> finish()
        :: state == PART_BOTH && event == PART_DECODE_FAILED -> retry_decode()
        :: state == PART_BOTH && event == PART_DECODE_REFUSED -> refuse_decode()
        :: state == PART_BOTH && event == PART_STOP -> leave_both()
        :: state == PART_CLEAR && event == PART_CLEARED -> begin()
        :: state == PART_CLEAR && event == PART_STOP -> end()
        :: state == PART_DECODE && event == PART_DECODE_BEGAN -> begin_relay()
        :: state == PART_DECODE && event == PART_DECODED -> finish()
        :: state == PART_DECODE && event == PART_DECODE_FAILED -> retry_decode()
        :: state == PART_DECODE && event == PART_DECODE_REFUSED -> refuse_decode()
        :: state == PART_DECODE && event == PART_STOP -> leave_decode()
        :: state == PART_RELAY && event == PART_DECODED -> finish()
        :: state == PART_RELAY && event == PART_DECODE_FAILED -> go_on_elsewhere()
        :: state == PART_RELAY && event == PART_DECODE_REFUSED -> go_on_elsewhere()
        :: state == PART_RELAY && event == PART_STOP -> cut_decode()
        :: state == PART_LET_PREFILL && event == PART_PREFILLED -> settle()
        :: state == PART_LET_PREFILL && event == PART_PREFILL_FAILED -> end()
        :: state == PART_LET_PREFILL && event == PART_PREFILL_REFUSED -> end()
        :: state == PART_LET_PREFILL && event == PART_GRACE_OVER -> cut_prefill()
        :: state == PART_LET_BOTH && event == PART_PREFILLED -> let_fetch()
        :: state == PART_LET_BOTH && event == PART_PREFILL_FAILED -> cut_both()
        :: state == PART_LET_BOTH && event == PART_PREFILL_REFUSED -> cut_both()
        :: state == PART_LET_BOTH && event == PART_DECODE_BEGAN -> cut_both()
        :: state == PART_LET_BOTH && event == PART_DECODED -> cut_both()
        :: state == PART_LET_BOTH && event == PART_DECODE_FAILED -> cut_both()
        :: state == PART_LET_BOTH && event == PART_DECODE_REFUSED -> cut_both()
        :: state == PART_LET_BOTH && event == PART_GRACE_OVER -> cut_both()
        :: state == PART_LET_FETCH && event == PART_DECODE_BEGAN -> cut_decode()
        :: state == PART_LET_FETCH && event == PART_DECODED -> end()
        :: state == PART_LET_FETCH && event == PART_DECODE_FAILED -> settle_again()
        :: state == PART_LET_FETCH && event == PART_DECODE_REFUSED -> settle_again()
        :: state == PART_LET_FETCH && event == PART_GRACE_OVER -> cut_decode()
        :: state == PART_NEED_SETTLE && event == PART_TRY -> settle()
        :: state == PART_NEED_SETTLE && event == PART_WAITED_TOO_LONG -> strand()
        :: state == PART_SETTLE && event == PART_DECODED -> settled()
        :: state == PART_SETTLE && event == PART_DECODE_FAILED -> settle_again()
        :: state == PART_SETTLE && event == PART_DECODE_REFUSED -> strand()
        :: else /* an event without an action changes nothing */
        fi;
        event = NOTHING
}

/* ---- what legs say: part_leg.c ------------------------------------------------------------------------------------------- */

inline end_prefill() {
        prefill_leg = false;
        if
        :: as == LEG_BROKEN || as == LEG_TIMEOUT || as == LEG_ABORTED -> excused = true
        :: else
        fi;
        if
        :: state == PART_CLEAR -> event = (PART_CLEARED)
        :: else ->
                last_end = as;
                if
                :: as == LEG_DONE -> if :: ORDER == PULL && state == PART_LET_PREFILL -> params = true; shown = false :: else fi;
                        event = (PART_PREFILLED)
                :: as == LEG_REFUSED -> event = (PART_PREFILL_REFUSED)
                :: else -> event = (PART_PREFILL_FAILED)
                fi
        fi
}

inline end_decode() {
        decode_leg = false;
        if
        :: taken_in -> held = false /* it tells the prefiller */
        :: !taken_in && (as == LEG_BROKEN || as == LEG_TIMEOUT || as == LEG_ERROR) -> shown = true; excused = true
        :: else
        fi;
        if
        :: state == PART_CLEAR -> event = (PART_CLEARED)
        :: else ->
                last_end = as;
                if
                :: as == LEG_DONE -> event = (PART_DECODED)
                :: as == LEG_REFUSED -> event = (PART_DECODE_REFUSED)
                :: else -> event = (PART_DECODE_FAILED)
                fi
        fi
}

#define IS_NEED (state == PART_NEED_PREFILL || state == PART_NEED_PUSH || state == PART_NEED_DECODE || state == PART_NEED_SETTLE)
#define IS_LET  (state == PART_LET_PREFILL || state == PART_LET_BOTH || state == PART_LET_FETCH)
#define HAS_KV  (ORDER == PUSH && written || ORDER != PUSH && held)
#define PREFILL_RUNS (prefill_leg && !prefill_cut)
#define DECODE_RUNS  (decode_leg && !decode_cut)

bool over;

active proctype gateway() {
        do
        :: atomic {
                if
                :: state == PART_END && !prefill_leg && !decode_leg -> break
                :: !gone && !answered && may_leave -> gone = true; may_leave = false; event = PART_STOP
                :: may_leave -> may_leave = false
                :: state == PART_IDLE && !gone -> event = (PART_TRY)
                /* timers */
                :: IS_NEED -> event = (PART_TRY)
                :: IS_NEED -> event = (PART_WAITED_TOO_LONG)
                :: IS_LET ->
                        excused = excused || prefill_leg || decode_leg;
                        event = (PART_GRACE_OVER)
                /* the prefiller */
                :: PREFILL_RUNS && !held && !fetched && ORDER != PUSH -> held = true
                :: PREFILL_RUNS && !written && ORDER == PUSH && DECODE_RUNS -> written = true
                :: PREFILL_RUNS && (HAS_KV || fetched) -> ended = PART_PREFILL; as = LEG_DONE
                :: PREFILL_RUNS && !held && !written && !fetched -> ended = PART_PREFILL; as = LEG_UNSENT
                :: PREFILL_RUNS && !held && !written && !fetched -> ended = PART_PREFILL; as = LEG_OVERLOADED
                :: PREFILL_RUNS && !held && !written && !fetched -> ended = PART_PREFILL; as = LEG_REFUSED
                :: PREFILL_RUNS -> ended = PART_PREFILL; as = LEG_BROKEN
                :: prefill_leg && prefill_cut -> ended = PART_PREFILL; as = LEG_ABORTED
                /* the decoder */
                :: DECODE_RUNS && !taken_in -> taken_in = true; shown = true
                :: DECODE_RUNS && taken_in && !asked && ORDER == PUSH -> asked = true; event = (PART_ASKED)
                :: DECODE_RUNS && taken_in && !fetched && HAS_KV -> fetched = true; held = false
                :: DECODE_RUNS && fetched && !begun -> begun = true; event = (PART_DECODE_BEGAN)
                :: DECODE_RUNS && fetched -> ended = PART_DECODE; as = LEG_DONE
                :: DECODE_RUNS && !taken_in -> ended = PART_DECODE; as = LEG_UNSENT
                :: DECODE_RUNS && !taken_in -> ended = PART_DECODE; as = LEG_OVERLOADED
                :: DECODE_RUNS && !taken_in -> ended = PART_DECODE; as = LEG_REFUSED
                :: DECODE_RUNS && (!taken_in || fetched || state == PART_RESERVE) -> ended = PART_DECODE; as = LEG_BROKEN
                :: decode_leg && decode_cut -> ended = PART_DECODE; as = LEG_ABORTED
                fi;
                if
                :: ended == PART_PREFILL -> ended = NOTHING; end_prefill()
                :: ended == PART_DECODE -> ended = NOTHING; end_decode()
                :: else
                fi;
                if
                :: event != NOTHING -> part_step()
                :: else
                fi
        }
        od;
        assert(!held || excused);
        assert(answered || gone);
        over = true
}

ltl ends {
        <> over
}
