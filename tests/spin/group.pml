/* group.pml - three ranks that share experts: forming, agreeing on steps, breaking, forming anew (src/comm/group.c, dispatch.c,
 * and the engine thread around them). Any one rank may die at any moment and comes back.
 *
 * Checked: no deadlock; no rank takes part in another step than its peers; and no run goes on for ever (there is no cycle), so that
 * every run ends where the judge looks: the group is complete, every request has ended, and all sleep.
 *
 * A connection is its two ends: open_for[a*N+b] is the epoch for which a holds its end to b open, 0: closed. What a sends is in
 * link[a*N+b]; b reads what is there before it sees the end. Messages of former epochs went to sockets that are gone. */
#define N      3
#define DEATHS 1

/* What ranks say in a step: at its beginning (AGREE) whether there is work; in a layer (TOKENS) all there is to say. */
mtype = { AGREE, TOKENS };

chan link[N * N] = [3] of { mtype, byte /* epoch */, byte /* step */, bool /* work */ };
byte open_for[N * N];

byte epoch_of_zero;      /* rank 0's: the last one it began */
byte life[N];            /* counts deaths: a rank that has come again is not the one that joined */
bool joined[N];          /* at rank 0 */
byte table[N];           /* epoch that rank 0 has introduced this rank to, 0: none */
bool ready[N], go[N];
bool complete[N];        /* the rank knows that its group is formed */
bool pending[N];         /* a request under way */
byte asked[N];           /* requests so far */
byte tokens[N];          /* of the request, so far */
byte deaths;

/* Rules that may be taken out, to see that the model then fails. */
#ifdef NO_END
#define SEES_ENDS false /* a rank that waits does not notice that a peer has gone */
#else
#define SEES_ENDS true
#endif

#define REQUESTS 1
#define ASKING   2 /* ranks that clients ask; the third has experts only */
#define CLOSE_ALL(r) open_for[r * N + 0] = 0; open_for[r * N + 1] = 0; open_for[r * N + 2] = 0; complete[r] = false

/* The process ends here, perhaps. Its clients see that, too. */
#define MAY_DIE(r)                                                                                                     \
        if                                                                                                             \
        :: deaths < DEATHS -> deaths++; goto die                                                                       \
        :: true                                                                                                        \
        fi

proctype rank(byte me) {
        byte epoch, step, peer, said_epoch, said_step, old_life, life_of_1, life_of_2;
        bool work, any, said_work;
        mtype kind, said;

form:
        skip;
        /* Clients are told that what was under way is lost. */
        d_step { CLOSE_ALL(me); pending[me] = false }
        if
        :: me == 0 -> goto gather
        :: else -> goto join
        fi;

        /* ---- rank 0: all must come, be introduced, and be there still ---------------------------------------------- */
gather:
        MAY_DIE(me);
        if
        :: joined[1] && joined[2]
        fi;
        d_step {
                epoch_of_zero++;
                epoch = epoch_of_zero;
                open_for[0 * N + 1] = epoch; open_for[0 * N + 2] = epoch;
                ready[1] = false; ready[2] = false;
                table[1] = epoch; table[2] = epoch;
                life_of_1 = life[1]; life_of_2 = life[2]
        }
        MAY_DIE(me);
        if
        :: ready[1] && ready[2] && life[1] == life_of_1 && life[2] == life_of_2
        :: life[1] != life_of_1 || life[2] != life_of_2 -> /* somebody went: the others come again */
                d_step { CLOSE_ALL(0); joined[1] = false; joined[2] = false; table[1] = 0; table[2] = 0 }
                goto gather
        fi;
        MAY_DIE(me);
        d_step { go[1] = true; go[2] = true; joined[1] = false; joined[2] = false }
        goto formed;

        /* ---- the others ----------------------------------------------------------------------------------------------- */
join:
        MAY_DIE(me);
        d_step { table[me] = 0; ready[me] = false; go[me] = false; joined[me] = true; old_life = life[0] }
        if
        :: atomic { table[me] != 0 -> epoch = table[me] }
        :: table[me] == 0 && (!joined[me] || life[0] != old_life) -> goto join /* rank 0 has closed, or died */
        fi;
        MAY_DIE(me);
        d_step {
                open_for[me * N + 0] = epoch; open_for[me * N + 1] = epoch; open_for[me * N + 2] = epoch;
                ready[me] = true
        }
        if
        :: go[me]
        :: !go[me] && (table[me] != epoch || life[0] != old_life) -> goto form
        fi;

        /* ---- together ------------------------------------------------------------------------------------------------- */
formed:
        step = 0;
        complete[me] = true;

idle:
end_sleep:
        if
        :: asked[me] < REQUESTS && me < ASKING -> d_step { asked[me]++; pending[me] = true }
        :: pending[me]
        :: me != 0 && (nempty(link[0 * N + me]) || open_for[0 * N + me] != epoch)
        :: me != 1 && (nempty(link[1 * N + me]) || open_for[1 * N + me] != epoch)
        :: me != 2 && (nempty(link[2 * N + me]) || open_for[2 * N + me] != epoch)
        fi;
        d_step { work = pending[me]; any = work; kind = AGREE }

exchange: /* all send, then all receive: sockets take what is sent */
        atomic {
                peer = 0;
                do
                :: peer < N && peer != me ->
                        MAY_DIE(me); /* one peer has heard of it, the other has not */
                        if
                        :: open_for[peer * N + me] == epoch -> link[me * N + peer]!kind, epoch, step, work
                        :: else /* the write fails, or goes nowhere; the read says so */
                        fi;
                        peer++
                :: peer == me -> peer++
                :: peer == N -> break
                od;
                MAY_DIE(me);
                peer = 0
        }
        do
        :: peer == me -> peer++
        :: atomic { peer < N && peer != me && nempty(link[peer * N + me]) ->
                link[peer * N + me]?said, said_epoch, said_step, said_work;
                if
                :: said_epoch != epoch /* of a socket that is gone */
                :: else ->
                        assert(said_step == step && said == kind);
                        any = any || said_work;
                        peer++
                fi }
        :: SEES_ENDS && peer < N && peer != me && empty(link[peer * N + me]) && open_for[peer * N + me] != epoch -> goto form
        :: peer == N -> break
        od;
        atomic {
                if
                :: kind == AGREE && any -> kind = TOKENS; goto exchange
                :: else
                fi;
                step = (step + 1) % 3; /* nothing depends on steps but that they are equal */
                if
                :: pending[me] -> /* a token; perhaps the last one */
                        if
                        :: pending[me] = false
                        :: tokens[me] < 1 -> tokens[me]++
                        fi
                :: else
                fi
        }
        goto idle;

die:
        skip;
        d_step {
                CLOSE_ALL(me);
                pending[me] = false;
                life[me]++;
                joined[me] = false;
                if
                :: me == 0 -> joined[1] = false; joined[2] = false; table[1] = 0; table[2] = 0; go[1] = false; go[2] = false
                :: else -> skip
                fi
        }
        goto form
}

/* When nothing moves any more, the group is complete and nobody waits for anything. */
proctype judge() {
end_judge:
        timeout -> assert(complete[0] && complete[1] && complete[2] && !pending[0] && !pending[1] && !pending[2])
}

init {
        atomic { run rank(0); run rank(1); run rank(2); run judge() }
}
