/* collect.c - what is asked of every node, in what order, and the facts that come of it; see verify.h. */
#include "verify/core.h"
#include <errno.h>
#include <stdlib.h>

const struct topic_row topic_rows[TOPIC_COUNT] = {
    [TOPIC_HEALTH] = {"npu_health", {"npu-smi", "info", "-t", "health", "-i", "C", "-c", "H"},
        {"npu-smi", "info", "-t", "health", "-i", "C", "-c", "H"}},
    [TOPIC_BOARD] = {"npu_board", {"npu-smi", "info", "-t", "board", "-i", "C"},
        {"npu-smi", "info", "-t", "board", "-i", "C"}, .first_chip = true},
    [TOPIC_SPOD] = {"spod", {"npu-smi", "info", "-t", "spod-info", "-i", "C", "-c", "H"},
        {"npu-smi", "info", "-t", "spod-info", "-i", "C", "-c", "H"}, .a3_only = true},
    [TOPIC_LINK] = {"link", {"hccn_tool", "-i", "D", "-link", "-g"}, {"hccn_tool", "-g", "-dev_info", "-i", "L"}},
    [TOPIC_NET_HEALTH] = {"net_health", {"hccn_tool", "-i", "D", "-net_health", "-g"},
        {"hccn_tool", "-g", "-net_health", "-i", "L"}},
    [TOPIC_NETDETECT] = {"netdetect", {"hccn_tool", "-i", "D", "-netdetect", "-g"},
        {"hccn_tool", "-g", "-netdetect", "-i", "L"}},
    [TOPIC_GATEWAY] = {"gateway", {"hccn_tool", "-i", "D", "-gateway", "-g"},
        {"hccn_tool", "-g", "-gateway", "-i", "L"}},
    [TOPIC_IP] = {"ip", {"hccn_tool", "-i", "D", "-ip", "-g"}, {"hccn_tool", "-g", "-ip", "-i", "L"}},
    [TOPIC_VNIC] = {"vnic", {"hccn_tool", "-i", "D", "-vnic", "-g"}, {"hccn_tool", "-g", "-vnic", "-i", "L"},
        .a3_only = true},
    [TOPIC_TLS] = {"tls", {"hccn_tool", "-i", "D", "-tls", "-g"}, {"hccn_tool", "-g", "-tls", "-i", "L"}},
    [TOPIC_OPTICAL] = {"optical", {"hccn_tool", "-i", "D", "-optical", "-g"}, {0}},
    [TOPIC_LLDP] = {"lldp", {"hccn_tool", "-i", "D", "-lldp", "-g"}, {0}},
    [TOPIC_SPEED] = {"speed", {"hccn_tool", "-i", "D", "-speed", "-g"}, {0}},
    [TOPIC_LINK_STAT] = {"link_stat", {"hccn_tool", "-i", "D", "-link_stat", "-g"}, {0}},
    [TOPIC_STAT] = {"stat", {"hccn_tool", "-i", "D", "-stat", "-g"}, {0}},
    [TOPIC_STAT_LATER] = {"stat", {"hccn_tool", "-i", "D", "-stat", "-g"}, {0}},
};

/* A tool that is busy is asked again, each time after a longer while: 0.2 s, 0.4 s, 0.8 s. */
#define BUSY_RETRIES    3
#define BUSY_WAIT_MS    200u
#define LANE_OF_DEVICES 16u /* + device: the commands of one NPU are put one after the other, or they meet as busy */

/* ---- asking, and asking again --------------------------------------------------------------------------------------- */

/* The questions of `from` whose answer is that the tool is busy, and where their answers go. */
static bool busy_ones(struct collector *c, const struct batch *from, uint32_t wait_ms, struct batch *ret_batch,
    struct answer ***ret_places) {
        struct batch b = {.node = from->node};
        struct slice said;

        b.questions = arena_array(c->arena, from->count, sizeof(*b.questions));
        b.answers = arena_array(c->arena, from->count, sizeof(*b.answers));
        *ret_places = arena_array(c->arena, from->count, sizeof(**ret_places));
        if (!b.questions || !b.answers || !*ret_places) {
                c->failed = true;
                return false;
        }
        for (size_t i = 0; i < from->count; i++)
                if (answer_trouble(&from->answers[i], &said) == TROUBLE_BUSY) {
                        b.questions[b.count] = from->questions[i];
                        b.questions[b.count].wait_ms = wait_ms;
                        (*ret_places)[b.count++] = &from->answers[i];
                }
        *ret_batch = b;
        return b.count > 0;
}

static void note_answered(void *context, size_t questions, int64_t waiting) {
        struct collector *c = context;

        c->done += questions;
        if (c->progress)
                c->progress->say(c->progress->context, c->what, c->done, c->all > c->done ? c->all : c->done,
                    waiting < 0 ? SLICE_LIT("") : c->facts->nodes[waiting].name);
}

void collector_ask(struct collector *c, struct batch *batches, size_t count, const char *what) {
        const struct listener listener = {c, note_answered};
        struct batch *again = arena_array(c->arena, count, sizeof(*again));
        struct answer ***places = arena_array(c->arena, count, sizeof(*places));

        if (!again || !places) {
                c->failed = true;
                return;
        }
        c->what = what;
        c->asker->ask(c->asker->context, batches, count, &listener, c->arena);
        for (unsigned round = 0; round < BUSY_RETRIES && !c->failed; round++) {
                size_t n = 0;

                for (size_t i = 0; i < count; i++)
                        n += busy_ones(c, &batches[i], BUSY_WAIT_MS << round, &again[n], &places[n]);
                if (!n)
                        break;
                c->asker->ask(c->asker->context, again, n, NULL, c->arena);
                for (size_t i = 0; i < n; i++)
                        for (size_t k = 0; k < again[i].count; k++)
                                *places[i][k] = again[i].answers[k];
        }
}

bool batch_init(struct collector *c, struct batch *b, uint32_t node, size_t capacity) {
        *b = (struct batch){0};
        b->node = node;
        b->questions = arena_array(c->arena, capacity, sizeof(*b->questions));
        b->answers = arena_array(c->arena, capacity, sizeof(*b->answers));
        if (!b->questions || !b->answers)
                c->failed = true;
        return !c->failed;
}

/* ---- the command line of a topic ------------------------------------------------------------------------------------ */

static const char *const *topic_words(const struct facts *f, enum topic topic) {
        const struct topic_row *row = &topic_rows[topic];

        if (f->platform == PLATFORM_ASCEND_A5)
                return row->words_a5[0] ? row->words_a5 : NULL;
        return row->words;
}

static bool fill_question(const struct facts *f, const struct npu_facts *npu, enum topic topic, struct arena *arena,
    struct question *ret_question) {
        const char *const *words = topic_words(f, topic);

        for (size_t i = 0; i < QUESTION_WORDS && words[i]; i++) {
                const char *w = words[i];
                const uint32_t *number = !strcmp(w, "D")   ? &npu->device
                                         : !strcmp(w, "L") ? &npu->logic
                                         : !strcmp(w, "C") ? &npu->card
                                         : !strcmp(w, "H") ? &npu->chip
                                                           : NULL;

                ret_question->words[i] = number ? arena_printf(arena, "%u", *number) : w;
                if (!ret_question->words[i])
                        return false;
        }
        ret_question->lane = LANE_OF_DEVICES + npu->device;
        return true;
}

const char *question_text(
    const struct facts *facts, const struct npu_facts *npu, enum topic topic, struct arena *arena) {
        struct question q = {0};
        struct buf b = {0};
        const char *text;

        if (!topic_words(facts, topic) || !fill_question(facts, npu, topic, arena, &q))
                return topic_rows[topic].check;
        for (size_t i = 0; q.words[i]; i++)
                buf_printf(&b, "%s%s", i ? " " : "", q.words[i]);
        text = arena_copy(arena, buf_slice(&b)).ptr;
        buf_free(&b);
        return text ? text : topic_rows[topic].check;
}

/* ---- the node: which NPUs it has ------------------------------------------------------------------------------------ */

static void ask_nodes(struct collector *c) {
        static const struct question questions[] = {
            {{"npu-smi", "info", "-l"}, LANE_OF_NODE, 0},
            {{"npu-smi", "info", "-m"}, LANE_OF_NODE + 1, 0},
            {{"hccn.conf"}, LANE_OF_NODE + 2, 0},
            {{"npu-smi", "info"}, LANE_OF_NODE + 3, 0},
        };
        struct facts *f = c->facts;
        size_t count = f->table_asked ? 4 : 3;
        struct batch *batches = arena_array(c->arena, f->node_count, sizeof(*batches));
        size_t asked = 0;

        if (!batches) {
                c->failed = true;
                return;
        }
        for (size_t i = 0; i < f->node_count; i++) {
                if (f->nodes[i].host_only)
                        continue;
                if (!batch_init(c, &batches[asked], (uint32_t)i, count))
                        return;
                memcpy(batches[asked].questions, questions, count * sizeof(*questions));
                batches[asked++].count = count;
        }
        collector_ask(c, batches, asked, "nodes");
        for (size_t i = 0; i < asked; i++) {
                struct node_facts *n = &f->nodes[batches[i].node];

                n->list = batches[i].answers[0];
                n->map = batches[i].answers[1];
                n->conf = batches[i].answers[2];
                if (f->table_asked)
                        n->table = batches[i].answers[3];
        }
}

static int compare_rows(const void *a, const void *b) {
        const struct map_row *x = a, *y = b;

        return (x->device > y->device) - (x->device < y->device);
}

static void list_npus(struct collector *c, struct node_facts *n) {
        struct map_row rows[MAP_ROWS_MAX];
        struct slice said;
        size_t count;

        if (answer_trouble(&n->map, &said) != TROUBLE_NONE || parse_map(n->map.out, rows, &count) < 0)
                return;
        qsort(rows, count, sizeof(*rows), compare_rows);
        n->npus = arena_array(c->arena, count, sizeof(*n->npus));
        if (!n->npus) {
                c->failed = true;
                return;
        }
        n->npu_count = count;
        for (size_t i = 0; i < count; i++)
                n->npus[i] = (struct npu_facts){
                    .device = rows[i].device, .card = rows[i].card, .chip = rows[i].chip, .logic = rows[i].logic};
}

/* ---- the NPUs ------------------------------------------------------------------------------------------------------- */

static bool is_asked(const struct facts *f, const struct node_facts *n, size_t npu, enum topic topic) {
        const struct topic_row *row = &topic_rows[topic];

        if (!topic_words(f, topic))
                return false;
        if (row->first_chip && npu > 0 && n->npus[npu - 1].card == n->npus[npu].card)
                return false;
        /* One NPU of every node tells by it what machine this is. */
        if (topic == TOPIC_SPOD && npu == 0)
                return true;
        return !row->a3_only || f->platform == PLATFORM_ASCEND_A3 || f->platform == PLATFORM_ASCEND_A5;
}

static void ask_topics(struct collector *c, uint32_t topics, const char *what) {
        struct facts *f = c->facts;
        struct batch *batches = arena_array(c->arena, f->node_count, sizeof(*batches));
        size_t count = 0;

        if (!batches) {
                c->failed = true;
                return;
        }
        for (size_t i = 0; i < f->node_count; i++) {
                struct node_facts *n = &f->nodes[i];
                struct batch *b = &batches[count];

                if (!n->npu_count)
                        continue;
                if (!batch_init(c, b, (uint32_t)i, n->npu_count * TOPIC_COUNT))
                        return;
                for (size_t k = 0; k < n->npu_count; k++)
                        for (unsigned t = 0; t < TOPIC_COUNT; t++) {
                                if (!(topics >> t & 1) || !is_asked(f, n, k, t)) {
                                        n->npus[k].asked |= topics & topic_rows[t].first_chip << t;
                                        continue;
                                }
                                if (!fill_question(f, &n->npus[k], t, c->arena, &b->questions[b->count++])) {
                                        c->failed = true;
                                        return;
                                }
                                n->npus[k].asked |= 1u << t;
                                c->all++;
                        }
                count += b->count > 0;
        }
        collector_ask(c, batches, count, what);
        for (size_t i = 0; i < count; i++) {
                struct node_facts *n = &f->nodes[batches[i].node];
                size_t at = 0;

                for (size_t k = 0; k < n->npu_count; k++)
                        for (unsigned t = 0; t < TOPIC_COUNT; t++) {
                                if (!(topics >> t & 1))
                                        continue;
                                if (is_asked(f, n, k, t))
                                        n->npus[k].answers[t] = batches[i].answers[at++];
                                else if (topic_rows[t].first_chip)
                                        n->npus[k].answers[t] = n->npus[k - 1].answers[t];
                        }
        }
}

static bool answered(const struct npu_facts *npu, enum topic topic) {
        struct slice said;

        return npu->asked >> topic & 1 && answer_trouble(&npu->answers[topic], &said) == TROUBLE_NONE;
}

static void read_npu(struct npu_facts *npu) {
        struct slice text, spod = npu->answers[TOPIC_SPOD].out;

        if (answered(npu, TOPIC_IP))
                parse_address(npu->answers[TOPIC_IP].out, "ipaddr", "netmask", &npu->ip, &text);
        if (answered(npu, TOPIC_VNIC))
                parse_address(npu->answers[TOPIC_VNIC].out, "vnic ipaddr", "vnic netmask", &npu->vnic, &text);
        if (!answered(npu, TOPIC_SPOD) || parse_number(spod, "Super Pod ID", &npu->spod.pod) < 0 ||
            parse_number(spod, "Server Index", &npu->spod.server) < 0)
                return;
        npu->spod.known = true;
        npu->spod.has_sdid = parse_number(spod, "SDID", &npu->spod.sdid) == 0;
}

/* What a node is shows in its first NPU: A2 knows no super pod, A5 knows one without SDIDs. */
static void tell_platform(struct node_facts *n) {
        const struct npu_facts *npu = n->npu_count ? &n->npus[0] : NULL;
        struct slice said;

        if (!npu || !(npu->asked >> TOPIC_SPOD & 1))
                return;
        if (answer_trouble(&npu->answers[TOPIC_SPOD], &said) == TROUBLE_UNSUPPORTED)
                n->platform = PLATFORM_ASCEND_A2;
        else if (npu->spod.known)
                n->platform = npu->spod.has_sdid ? PLATFORM_ASCEND_A3 : PLATFORM_ASCEND_A5;
        else
                return;
        n->platform_known = true;
}

int collect(struct facts *facts, uint32_t topics, const struct asker *asker, const struct progress *progress,
    struct arena *arena) {
        struct collector c = {.facts = facts, .asker = asker, .progress = progress, .arena = arena};

        facts->topics = topics;
        facts->table_asked = topics == TOPICS_ALL;
        ask_nodes(&c);
        for (size_t i = 0; i < facts->node_count && !c.failed; i++)
                if (!facts->nodes[i].host_only)
                        list_npus(&c, &facts->nodes[i]);
        if (!c.failed)
                ask_topics(&c, topics & ~(1u << TOPIC_STAT_LATER), "NPUs");
        for (size_t i = 0; i < facts->node_count && !c.failed; i++) {
                struct node_facts *n = &facts->nodes[i];

                for (size_t k = 0; k < n->npu_count; k++)
                        read_npu(&n->npus[k]);
                tell_platform(n);
        }
        return c.failed ? -ENOMEM : 0;
}

/* ---- pings ---------------------------------------------------------------------------------------------------------- */

/* Each round pairs every NPU with one other, so this many rounds reach this many others: of more, not all are tried. */
#define PING_ROUNDS_MAX 1024u
/* So often an NPU may hang or stay busy before it is not asked any more. */
#define PING_PATIENCE 2

struct player {
        uint32_t node, npu;
        bool silent;   /* will not be asked any more */
        unsigned hung; /* times it, or who asked it, had no answer */
};

static const struct npu_address *ping_address(const struct facts *f, const struct npu_facts *npu) {
        return f->platform == PLATFORM_ASCEND_A3 ? &npu->vnic : &npu->ip;
}

static bool fill_ping(
    struct collector *c, const struct player *from, const struct player *to, struct question *ret_question) {
        const struct facts *f = c->facts;
        const struct npu_facts *a = &f->nodes[from->node].npus[from->npu], *b = &f->nodes[to->node].npus[to->npu];
        const char *self = arena_printf(c->arena, "%u", f->platform == PLATFORM_ASCEND_A5 ? a->logic : a->device);

        if (!self)
                return false;
        if (f->platform == PLATFORM_ASCEND_A5)
                *ret_question = (struct question){
                    {"hccn_tool", "-t", "-ping", "-i", self, "-src_address", a->ip.text, "-dst_address", b->ip.text}};
        else
                *ret_question = (struct question){
                    {"hccn_tool", "-i", self, f->platform == PLATFORM_ASCEND_A3 ? "-hccs_ping" : "-ping", "-g",
                        "address", ping_address(f, b)->text}};
        ret_question->lane = LANE_OF_DEVICES + a->device;
        return true;
}

static void note_answer(struct player *from, const struct answer *a) {
        struct slice said;

        switch (answer_trouble(a, &said)) {
        case TROUBLE_LATE:
        case TROUBLE_BUSY:
                from->silent = ++from->hung >= PING_PATIENCE;
                break;
        case TROUBLE_PERMISSION:
        case TROUBLE_UNSUPPORTED:
        case TROUBLE_HEALTH:
        case TROUBLE_NO_NODE:
        case TROUBLE_NO_TOOL:
                from->silent = true;
                break;
        default:
                break;
        }
}

/* One probe from the first to the second of every pair, all pairs at once. */
static void ask_pairs(struct collector *c, struct player *(*pairs)[2], size_t count) {
        struct facts *f = c->facts;
        struct batch *batches = arena_array(c->arena, f->node_count, sizeof(*batches));
        struct player **askers = arena_array(c->arena, count, sizeof(*askers));
        size_t first = f->probe_count, n = 0;

        if (!batches || !askers) {
                c->failed = true;
                return;
        }
        for (uint32_t node = 0; node < f->node_count; node++) {
                struct batch *b = &batches[n];

                if (!f->nodes[node].npu_count)
                        continue;
                if (!batch_init(c, b, node, f->nodes[node].npu_count))
                        return;
                for (size_t i = 0; i < count; i++) {
                        struct player *from = pairs[i][0], *to = pairs[i][1];

                        if (from->node != node || from->silent)
                                continue;
                        if (!fill_ping(c, from, to, &b->questions[b->count++])) {
                                c->failed = true;
                                return;
                        }
                        askers[f->probe_count - first] = from;
                        f->probes[f->probe_count++] = (struct probe){from->node, from->npu, to->node, to->npu, {0}};
                }
                n += b->count > 0;
        }
        if (!n)
                return;
        collector_ask(c, batches, n, "pings");
        for (size_t i = 0, at = first; i < n; i++)
                for (size_t k = 0; k < batches[i].count; k++, at++) {
                        f->probes[at].answer = batches[i].answers[k];
                        note_answer(askers[at - first], &f->probes[at].answer);
                }
}

/* Who can be pinged: an NPU with an address on a node that is what it should be. */
static struct player *list_players(struct collector *c, size_t *ret_count) {
        struct facts *f = c->facts;
        struct player *players;
        size_t all = 0, n = 0;

        for (size_t i = 0; i < f->node_count; i++)
                all += f->nodes[i].npu_count;
        players = arena_array(c->arena, all + 1, sizeof(*players));
        if (!players) {
                c->failed = true;
                return NULL;
        }
        for (uint32_t i = 0; i < f->node_count; i++) {
                const struct node_facts *node = &f->nodes[i];

                if (node->platform_known && node->platform != f->platform)
                        continue;
                for (uint32_t k = 0; k < node->npu_count; k++)
                        if (ping_address(f, &node->npus[k])->known)
                                players[n++] = (struct player){i, k, false, 0};
        }
        *ret_count = n;
        return players;
}

/* Rounds of the circle method: every player meets every other once, and nobody two at a time. */
static void ping_all(struct collector *c, struct player *players, size_t count) {
        size_t seats = count + count % 2, rounds = seats ? seats - 1 : 0;
        struct player *(*pairs)[2] = arena_array(c->arena, seats + 1, sizeof(*pairs));

        if (!pairs) {
                c->failed = true;
                return;
        }
        if (rounds > PING_ROUNDS_MAX)
                rounds = PING_ROUNDS_MAX;
        for (size_t r = 0; r < rounds && !c->failed; r++) {
                size_t n = 0;

                for (size_t i = 0; i < seats / 2; i++) {
                        size_t a = i ? (r + i) % (seats - 1) : seats - 1, b = (r + seats - 1 - i) % (seats - 1);

                        if (a >= count || b >= count || players[a].node == players[b].node)
                                continue;
                        pairs[n][0] = &players[a];
                        pairs[n++][1] = &players[b];
                }
                ask_pairs(c, pairs, n);
                for (size_t i = 0; i < n; i++) {
                        struct player *first = pairs[i][0];

                        pairs[i][0] = pairs[i][1];
                        pairs[i][1] = first;
                }
                if (!c->failed)
                        ask_pairs(c, pairs, n);
        }
}

int collect_pings(
    struct facts *facts, const struct asker *asker, const struct progress *progress, struct arena *arena) {
        struct collector c = {.facts = facts, .asker = asker, .progress = progress, .arena = arena};
        size_t count = 0, rounds;
        struct player *players = list_players(&c, &count);

        if (!players)
                return -ENOMEM;
        rounds = count < PING_ROUNDS_MAX ? count : PING_ROUNDS_MAX;
        facts->probes = arena_array(arena, count * rounds + 1, sizeof(*facts->probes));
        if (!facts->probes)
                return -ENOMEM;
        for (size_t i = 0; i < count; i++)
                for (size_t k = 0; k < rounds; k++)
                        c.all += players[i].node != players[k].node;
        ping_all(&c, players, count);
        if (!c.failed)
                ask_topics(&c, facts->topics & 1u << TOPIC_STAT_LATER, "counters");
        return c.failed ? -ENOMEM : 0;
}
