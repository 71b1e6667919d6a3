/* regroup.pml - three ranks of which two can hold every expert (src/comm/group.c, members.c, moves.c): going on without one, letting
 * it in again between two steps, and switching experts together. Rank 2 may die at any moment and comes back; rank 1, of which it
 * knows nothing that rank 1 would not know of it, has a request, and rank 0 dies in group.pml.
 *
 * Checked: no deadlock and no run that goes on for ever; all take part in the same step, in which all have switched or nobody has;
 * requests of ranks that live are never dropped; and every run ends with all three together, every request answered, and nothing on
 * the move. How long rank 0 waits for those who stay away is left open: it may be too short a few times.
 *
 * Connections are as in group.pml. */
#define N      3
#define DEATHS 1
#define HASTE  1 /* so often rank 0 does not wait for a rank that would come */

mtype = { AGREE, TOKENS };
#define WORK      1
#define READY     2
#define REBALANCE 4
#define REFORM    8

chan link[N * N] = [3] of { mtype, byte /* epoch */, byte /* step */, byte /* AGREE: what is said; TOKENS: switched or not */ };
byte open_for[N * N];

byte epoch_of_zero;
byte life[N];
bool joined[N];      /* at rank 0: waiting for a group, or at the door of one that runs */
byte table[N];       /* epoch that rank 0 has introduced this rank to, 0: none */
byte table_mask[N];  /* and who else is in it, a bit each */
bool introduced[N], go[N];
byte mask[N];        /* who is in the group, as the rank knows; 0: not formed */
bool switched[N];    /* what the rank holds: as at the start, or after a rebalance */
bool moving[N], packed[N];
bool pending[N];
byte asked[N], tokens[N];
byte deaths, haste, rebalances;

#ifdef SWITCH_ALONE
#define ALL_READY packed[me] /* a rank switches as soon as it is ready itself */
#else
#define ALL_READY (all & READY)
#endif
#ifdef NO_DOOR
#define GUEST false /* nobody looks who has come while the group runs */
#else
#define GUEST (me == 0 && (joined[1] || joined[2]))
#endif

#define IN(m, r)     ((m >> r) & 1)
#define CLOSE_ALL(r) open_for[r * N + 0] = 0; open_for[r * N + 1] = 0; open_for[r * N + 2] = 0; mask[r] = 0
#define CALLS(r)     (r != me && IN(mask[me], r) && (nempty(link[r * N + me]) || open_for[r * N + me] != epoch))
#define MAY_DIE(r)                                                                                                     \
        if                                                                                                             \
        :: r == 2 && deaths < DEATHS -> deaths++; goto die                                                             \
        :: true                                                                                                        \
        fi

proctype rank(byte me) {
        byte epoch, step, peer, said_epoch, said_step, word, all, any, said_word, life_of_1, life_of_2, who;
        bool ever;
        mtype kind, said;

form: /* what is under way waits; what was on its way here is dropped */
        skip;
        d_step { CLOSE_ALL(me); moving[me] = false; packed[me] = false }
        if
        :: me == 0 -> goto gather
        :: else -> goto join
        fi;

gather:
        atomic {
                if
                :: joined[1] && joined[2] -> who = 7
                :: ever && joined[1] && !joined[2] && (life[2] != life_of_2 || haste < HASTE) ->
                        haste = haste + (life[2] == life_of_2); who = 3
                :: ever && joined[2] && !joined[1] && (life[1] != life_of_1 || haste < HASTE) ->
                        haste = haste + (life[1] == life_of_1); who = 5
                fi;
                epoch_of_zero++;
                epoch = epoch_of_zero;
                life_of_1 = life[1]; life_of_2 = life[2];
                peer = 1;
                do
                :: peer < N && IN(who, peer) ->
                        open_for[0 * N + peer] = epoch; introduced[peer] = false;
                        table[peer] = epoch; table_mask[peer] = who; peer++
                :: peer < N && !IN(who, peer) -> peer++
                :: peer == N -> break
                od;
                peer = 0
        }
        if
        :: (!IN(who, 1) || (introduced[1] && life[1] == life_of_1)) && (!IN(who, 2) || (introduced[2] && life[2] == life_of_2))
        :: (IN(who, 1) && life[1] != life_of_1) || (IN(who, 2) && life[2] != life_of_2) -> /* somebody went */
                d_step {
                        CLOSE_ALL(0);
                        if :: IN(who, 1) -> joined[1] = false; table[1] = 0 :: else fi;
                        if :: IN(who, 2) -> joined[2] = false; table[2] = 0 :: else fi
                }
                goto gather
        fi;
        d_step {
                if :: IN(who, 1) -> go[1] = true; joined[1] = false :: else fi;
                if :: IN(who, 2) -> go[2] = true; joined[2] = false :: else fi;
                ever = true
        }
        goto formed;

join:
        MAY_DIE(me);
        d_step { table[me] = 0; introduced[me] = false; go[me] = false; joined[me] = true }
        if
        :: atomic { table[me] != 0 -> epoch = table[me]; who = table_mask[me] }
        :: table[me] == 0 && !joined[me] -> goto join /* rank 0 has closed */
        fi;
        MAY_DIE(me);
        d_step {
                open_for[me * N + 0] = epoch; open_for[me * N + 1] = epoch; open_for[me * N + 2] = epoch;
                switched[me] = switched[0]; /* rank 0 says who holds what; what is lacking is fetched */
                introduced[me] = true
        }
        if
        :: go[me]
        :: !go[me] && table[me] != epoch -> goto form
        fi;

formed:
        step = 0;
        mask[me] = who;

idle:
end_sleep:
        atomic { if
        :: asked[me] < 1 && me == 1 -> d_step { asked[me]++; pending[me] = true }
        :: pending[me]
        :: moving[me] && !packed[me] -> packed[me] = true
        :: me == 0 && rebalances < 1 && !moving[0] -> rebalances++; any = REBALANCE
        :: GUEST
        :: CALLS(0)
        :: CALLS(1)
        :: CALLS(2)
        fi;
        if
        :: me == 0 && joined[1] && IN(mask[0], 1) -> any = 0; goto form /* it has come again before its end was seen */
        :: me == 0 && joined[2] && IN(mask[0], 2) -> any = 0; goto form
        :: else
        fi;
        d_step {
                word = (any & REBALANCE) | (pending[me] -> WORK : 0) | (moving[me] && packed[me] -> READY : 0) |
                       (GUEST -> REFORM : 0);
                any = word; all = word; kind = AGREE
        } }

exchange:
        atomic {
                peer = 0;
                do
                :: peer < N && peer != me && IN(mask[me], peer) ->
                        MAY_DIE(me);
                        if
                        :: open_for[peer * N + me] == epoch ->
                                link[me * N + peer]!kind, epoch, step, (kind == AGREE -> word : switched[me])
                        :: else
                        fi;
                        peer++
                :: peer == me || (peer < N && !IN(mask[me], peer)) -> peer++
                :: peer == N -> break
                od;
                MAY_DIE(me);
                peer = 0
        }
        do
        :: peer == me || (peer < N && !IN(mask[me], peer)) -> peer++
        :: atomic { peer < N && peer != me && IN(mask[me], peer) && nempty(link[peer * N + me]) ->
                link[peer * N + me]?said, said_epoch, said_step, said_word;
                if
                :: said_epoch != epoch /* of a socket that is gone */
                :: else ->
                        assert(said_step == step && said == kind);
                        if
                        :: kind == AGREE -> any = any | said_word; all = all & said_word
                        :: else -> assert(said_word == switched[me])
                        fi;
                        peer++
                fi;
                said_epoch = 0; said_step = 0; said_word = 0; said = AGREE /* what is forgotten makes no states */ }
        :: peer < N && peer != me && IN(mask[me], peer) && empty(link[peer * N + me]) && open_for[peer * N + me] != epoch ->
                atomic { any = 0; all = 0; word = 0; peer = 0; step = 0; kind = AGREE; goto form }
        :: peer == N -> break
        od;
        atomic {
                if
                :: kind == AGREE && (any & REFORM) -> any = 0; all = 0; word = 0; peer = 0; step = 0; goto form /* all, between two steps */
                :: kind == AGREE && !(any & REFORM) ->
                        if
                        :: moving[me] && ALL_READY ->
                                switched[me] = !switched[me]; moving[me] = false; packed[me] = false
                        :: else ->
                                if
                                :: (any & REBALANCE) && !moving[me] -> moving[me] = true
                                :: else
                                fi
                        fi;
                        if
                        :: any & WORK -> kind = TOKENS; goto exchange
                        :: else
                        fi
                :: else
                fi;
                any = 0; all = 0; word = 0; peer = 0;
                step = 1 - step; /* nothing depends on steps but that they are equal */
                if
                :: pending[me] && kind == TOKENS ->
                        if
                        :: pending[me] = false
                        :: tokens[me] < 1 -> tokens[me]++
                        fi
                :: else
                fi;
                kind = AGREE
        }
        goto idle;

die:
        skip;
        d_step {
                CLOSE_ALL(me);
                pending[me] = false; /* its clients are told so */
                switched[me] = false;
                any = 0; all = 0; word = 0; peer = 0; step = 0; who = 0; kind = AGREE;
                life[me]++;
                joined[me] = false
        }
        goto form
}

proctype judge() {
end_judge:
        timeout -> assert(mask[0] == 7 && mask[1] == 7 && mask[2] == 7 && !pending[0] && !pending[1] && !pending[2] &&
                          !moving[0] && !moving[1] && !moving[2] && asked[1] == 1)
}

init {
        atomic { run rank(0); run rank(1); run rank(2); run judge() }
}
