/* group.c - see group.h: rendezvous, and agreeing on steps.
 *
 *     rank r                          rank 0
 *       JOIN rank, size, port, facts ─────>  waits for all; REFUSE what does not fit
 *       HOLDS its experts ────────────────>  or, after an epoch, for those who can hold every expert
 *       <───── TABLE epoch, an address for each rank that is there
 *       <───── PLACE who holds what
 *       connects to the ranks below it (HELLO epoch, rank), accepts those above; fetches experts that it lacks (BUSY)
 *       READY ────────────────────────────>  waits for all
 *       <───── GO
 */
#include "comm/group_core.h"
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { JOIN = 0x62740001, REFUSE, TABLE, HELLO, READY, GO, HOLDS, PLACE, BUSY }; /* "bt": no other protocol begins so */

/* Introductions are small and both sides are there. */
#define INTRODUCE_MS 5000u
/* How often a person is told who is missing. */
#define TELL_MS 5000u
/* One who comes while the group runs says who it is at once: a step waits for it. */
#define DOOR_MS  500u
#define RETRY_MS 100u

/* ---- life -------------------------------------------------------------------------------------------------------------- */

static int make_facts(struct group *g) {
        for (size_t i = 0; i < g->options.fact_count; i++)
                buf_printf(&g->facts, "%s=%s\n", g->options.facts[i].name, g->options.facts[i].value);
        return buf_ok(&g->facts) ? 0 : -ENOMEM;
}

static int listen_here(struct group *g, struct error *e) {
        const struct group_options *o = &g->options;
        int fd = o->rank == 0 ? links_listen(o->host, o->port, &g->port) : links_listen(NULL, 0, &g->port);

        if (fd < 0)
                return error_set(e, fd, "rank %u cannot listen at %s port %u: %s", o->rank,
                    o->rank == 0 ? o->host : "any address", o->rank == 0 ? o->port : 0, strerror(-fd));
        g->listener = fd;
        return 0;
}

int group_new(const struct group_options *options, struct group **ret_group, struct error *e) {
        struct group *g = calloc(1, sizeof(*g));
        int r;

        if (!g)
                return error_set(e, -ENOMEM, "out of memory");
        assert(options->rank < options->size && options->size >= 2);
        assert(!options->balance || (options->placement && options->placement->slots % options->size == 0));
        g->options = *options;
        if (!g->options.silence_ms)
                g->options.silence_ms = GROUP_SILENCE_MS;
        g->listener = -1;
        g->links = malloc(options->size * sizeof(*g->links));
        g->near = calloc(options->size, sizeof(struct near_link *));
        g->jobs = calloc(options->size, sizeof(*g->jobs));
        g->said = calloc(options->size, sizeof(*g->said));
        r = members_new(g) == 0 && moves_new(g) == 0 && g->links && g->near && g->jobs && g->said &&
                    options->size <= GROUP_SIZE_MAX
                ? make_facts(g)
                : -ENOMEM;
        for (uint32_t i = 0; g->links && i < options->size; i++)
                g->links[i] = -1;
        r = r < 0 ? error_set(e, r, "out of memory") : listen_here(g, e);
        if (r < 0) {
                group_free(g);
                return r;
        }
        *ret_group = g;
        return 0;
}

static void drop_link(struct group *g, uint32_t rank) {
        if (g->links[rank] >= 0)
                close(g->links[rank]);
        g->links[rank] = -1;
}

/* The epoch, or an attempt at one, is over. */
static void drop_links(struct group *g) {
        group_drop_near(g);
        for (uint32_t i = 0; g->links && i < g->options.size; i++)
                drop_link(g, i);
        g->formed = false;
}

static void close_door(struct group *g) {
        if (g->door >= 0)
                close(g->door);
        g->door = -1;
}

void group_free(struct group *g) {
        if (!g)
                return;
        drop_links(g);
        close_door(g);
        if (g->guest >= 0)
                close(g->guest);
        if (g->listener >= 0)
                close(g->listener);
        dispatch_free(g->dispatch);
        moves_free(g);
        members_free(g);
        buf_free(&g->facts);
        free(g->links);
        free(g->near);
        free(g->jobs);
        free(g->said);
        free(g);
}

bool group_is_formed(const struct group *g) {
        return g->formed;
}

uint64_t group_epoch(const struct group *g) {
        return g->epoch;
}

void group_break(struct group *g, const char *why) {
        if (!g->formed)
                return;
        snprintf(g->why, sizeof(g->why), "%s", why);
        log_warn(g->options.log, "rank %u leaves epoch %llu of its group: %s", g->options.rank,
            (unsigned long long)g->epoch, why);
        drop_links(g);
        members_part(g, false);
}

/* All leave between two steps, to come together again at once. */
static void reform(struct group *g) {
        log_info(g->options.log, "rank %u ends epoch %llu: a rank comes back", g->options.rank,
            (unsigned long long)g->epoch);
        drop_links(g);
        members_part(g, true);
}

/* ---- forming: what all do ---------------------------------------------------------------------------------------------- */

/* The value of "name=" in lines; SLICE_NONE when there is none. */
static struct slice value_of(struct slice lines, struct slice name) {
        struct slice line;

        while (slice_split(&lines, '\n', &line))
                if (line.len > name.len && slice_starts(line, name) && line.ptr[name.len] == '=')
                        return slice_sub(line, name.len + 1, line.len);
        return SLICE_NONE;
}

static bool number_of(struct slice lines, const char *name, uint64_t most, uint64_t *ret_value) {
        return slice_to_u64(value_of(lines, slice_str(name)), ret_value) == 0 && *ret_value <= most;
}

/* Say who is missing, now and then. */
static void tell(struct group *g, const char *what) {
        uint64_t now = links_now();

        if (g->told && now - g->told < TELL_MS)
                return;
        g->told = now;
        log_info(g->options.log, "rank %u of %u: %s", g->options.rank, g->options.size, what);
}

static int send_to(struct group *g, uint32_t rank, uint32_t kind, struct slice body) {
        int r = links_send(g->links[rank], kind, body, links_now() + INTRODUCE_MS);

        if (r < 0)
                drop_link(g, rank);
        return r;
}

static int receive_from(struct group *g, uint32_t rank, uint32_t kind, struct buf *body) {
        uint32_t got;
        int r = links_receive(g->links[rank], &got, body, links_now() + INTRODUCE_MS);

        if (r == 0 && got != kind)
                r = -EPROTO;
        if (r < 0)
                drop_link(g, rank);
        return r;
}

static void begin_epoch(struct group *g) {
        g->formed = true;
        g->step = 0;
        g->why[0] = '\0';
        g->told = 0;
        g->hold_until = 0;
        group_settle_near(g);
        pthread_mutex_lock(&g->shown);
        g->shown_epoch = g->epoch;
        pthread_mutex_unlock(&g->shown);
        if (g->present_count == g->options.size)
                log_info(g->options.log, "rank %u of %u: the group is complete (epoch %llu)", g->options.rank,
                    g->options.size, (unsigned long long)g->epoch);
        else
                log_warn(g->options.log,
                    "rank %u of %u: the group goes on with %u ranks, which hold every expert (epoch %llu)",
                    g->options.rank, g->options.size, g->present_count, (unsigned long long)g->epoch);
}

/* ---- forming: rank 0 --------------------------------------------------------------------------------------------------- */

/* What of a JOIN is not as it must be; "" when all is. */
static void compare(const struct group *g, struct slice lines, char text[256]) {
        struct slice mine = buf_slice(&g->facts), line;
        uint64_t size;

        text[0] = '\0';
        if (!number_of(lines, "size", GROUP_SIZE_MAX, &size) || size != g->options.size) {
                snprintf(text, 256, "its group has %.*s ranks, rank 0's has %u",
                    SLICE_ARG(slice_sub(value_of(lines, SLICE_LIT("size")), 0, 20)), g->options.size);
                return;
        }
        while (slice_split(&mine, '\n', &line)) {
                struct slice name = slice_sub(line, 0, slice_find(line, '=', 0)), theirs = value_of(lines, name),
                             own = value_of(buf_slice(&g->facts), name);

                if (name.len && !slice_eq(theirs, own)) {
                        snprintf(text, 256, "its %.*s is %.*s, rank 0's is %.*s", SLICE_ARG(slice_sub(name, 0, 40)),
                            SLICE_ARG(slice_sub(theirs, 0, 80)), SLICE_ARG(slice_sub(own, 0, 80)));
                        return;
                }
        }
}

/* One who has come. Strangers and those who say nothing are shown the door: 0. The number of a rank that fits, whose link fd is
 * then; -EPROTO for one that does not. */
static int welcome(struct group *g, int fd, uint64_t until, struct error *e) {
        struct buf body = {0};
        struct newcomer *come;
        uint32_t kind;
        uint64_t rank, port;
        char why[256], offer[NEAR_OFFER_MAX];
        int r = links_receive(fd, &kind, &body, until);

        if (r < 0 || kind != JOIN || !number_of(buf_slice(&body), "rank", GROUP_SIZE_MAX, &rank) ||
            !number_of(buf_slice(&body), "port", 65535, &port)) {
                close(fd);
                buf_free(&body);
                return 0;
        }
        compare(g, buf_slice(&body), why);
        snprintf(offer, sizeof(offer), "%.*s", SLICE_ARG(value_of(buf_slice(&body), SLICE_LIT("near"))));
        buf_free(&body);
        if (!why[0] && (rank == 0 || rank >= g->options.size))
                snprintf(why, sizeof(why), "there is no rank %llu in a group of %u", (unsigned long long)rank,
                    g->options.size);
        if (why[0]) {
                links_send(fd, REFUSE, slice_str(why), links_now() + INTRODUCE_MS);
                close(fd);
                return error_set(e, -EPROTO, "rank %llu does not fit: %s", (unsigned long long)rank, why);
        }
        come = &g->come[rank];
        if (links_receive(fd, &kind, &come->holds, until) < 0 || kind != HOLDS ||
            !members_are_holds(g, (uint32_t)rank, buf_slice(&come->holds))) {
                close(fd);
                return 0;
        }
        come->port = (uint16_t)port;
        memcpy(come->offer, offer, sizeof(offer));
        return (int)rank;
}

/* Those of `there` are connected. */
static bool all_linked(const struct group *g, const bool *there) {
        for (uint32_t i = 0; i < g->options.size; i++)
                if (there[i] && i != g->options.rank && g->links[i] < 0)
                        return false;
        return true;
}

static void tell_missing(struct group *g) {
        char text[256];
        size_t used = (size_t)snprintf(text, sizeof(text), "waiting for rank");

        for (uint32_t i = 1; i < g->options.size && used < 230; i++)
                if (g->links[i] < 0)
                        used += (size_t)snprintf(text + used, sizeof(text) - used, " %u", i);
        tell(g, text);
}

/* Those who wait and have gone. Nothing is said to us while they wait: whatever is readable is an end. */
static void drop_gone(struct group *g, const struct pollfd *p, const uint32_t *ranks, size_t n) {
        for (size_t i = 1; i < n; i++)
                if (p[i].revents)
                        drop_link(g, ranks[i]);
}

static int gather(struct group *g, uint64_t until, struct error *e) {
        struct pollfd p[GROUP_SIZE_MAX + 1];
        uint32_t ranks[GROUP_SIZE_MAX + 1];

        for (;;) {
                uint64_t now = links_now();
                size_t n = 1;
                int r;

                if (members_may_begin(g, now))
                        return 1;
                p[0] = (struct pollfd){g->listener, POLLIN, 0};
                for (uint32_t i = 1; i < g->options.size; i++)
                        if (g->links[i] >= 0) {
                                ranks[n] = i;
                                p[n++] = (struct pollfd){g->links[i], POLLIN, 0};
                        }
                tell_missing(g);
                if (now >= until)
                        return 0;
                if (poll(p, n, (int)(until - now)) <= 0)
                        continue;
                drop_gone(g, p, ranks, n);
                if (!p[0].revents)
                        continue;
                r = links_accept(g->listener);
                if (r >= 0) {
                        int fd = r;

                        r = welcome(g, fd, links_now() + INTRODUCE_MS, e);
                        if (r > 0) {
                                drop_link(g, (uint32_t)r); /* it has come again: that was of its life before */
                                g->links[r] = fd;
                        }
                }
                if (r == -EPROTO)
                        return r;
        }
}

/* Who fetches experts keeps the others waiting, and says so. */
static void say_busy(struct group *g) {
        for (uint32_t i = 0; i < g->options.size; i++)
                if (g->links[i] >= 0 && (i == 0 || g->options.rank == 0))
                        (void)links_send(g->links[i], BUSY, SLICE_NONE, links_now() + INTRODUCE_MS);
}

/* Wait for a word of a rank that may be busy; others who wait for this rank hear of it. */
static int receive_when_done(struct group *g, uint32_t rank, uint32_t kind) {
        unsigned silence = g->options.silence_ms > INTRODUCE_MS ? g->options.silence_ms : INTRODUCE_MS;
        struct buf body = {0};
        uint32_t got = BUSY;
        int r = 0;

        while (r == 0 && got == BUSY) {
                r = links_receive(g->links[rank], &got, &body, links_now() + silence);
                if (r == 0 && got == BUSY && g->options.rank == 0)
                        say_busy(g);
        }
        if (r == 0 && got != kind)
                r = -EPROTO;
        if (r < 0)
                drop_link(g, rank);
        buf_free(&body);
        return r;
}

/* Is a peer of this host? Its address is then what it is reached from. */
static bool is_near(const struct group *g, uint32_t rank, const char *host) {
        char own[64];

        return links_own(g->links[rank], own) == 0 && strcmp(own, host) == 0;
}

/* Nodes on which ranks lie evenly and in order, as vLLM numbers them; 1 when they do not. `node` is told by the first rank that
 * is there. */
static void count_nodes(struct group *g, const uint32_t *node) {
        uint32_t size = g->options.size, nodes = 1, each;

        for (uint32_t i = 1; i < size; i++)
                nodes += node[i] == i;
        each = size / nodes;
        for (uint32_t i = 0; i < size; i++)
                if (size % nodes || node[i] != i / each * each)
                        nodes = 1;
        g->nodes = nodes;
}

/* Addresses of those who are there. */
static int make_table(struct group *g, const bool *there, struct buf *table) {
        char hosts[GROUP_SIZE_MAX][64];
        uint32_t node[GROUP_SIZE_MAX] = {0};
        int r = 0;

        buf_printf(table, "epoch=%llu\n", (unsigned long long)g->epoch + 1);
        group_offer_near(g, table, "near0");
        for (uint32_t i = 1; r == 0 && i < g->options.size; i++) {
                node[i] = UINT32_MAX; /* not there: on no node */
                if (!there[i])
                        continue;
                r = links_peer(g->links[i], hosts[i]);
                if (r < 0)
                        break;
                buf_printf(table, "%u=%s %u\nnear%u=%s\n", i, hosts[i], g->come[i].port, i, g->come[i].offer);
                group_open_near(g, i, slice_str(g->come[i].offer));
                node[i] = is_near(g, i, hosts[i]) ? 0 : i;
                for (uint32_t k = 1; k < i && node[i] == i; k++)
                        if (there[k] && strcmp(hosts[k], hosts[i]) == 0)
                                node[i] = node[k];
        }
        count_nodes(g, node);
        return r == 0 && !buf_ok(table) ? -ENOMEM : r;
}

static int introduce(struct group *g, const bool *there, struct error *e) {
        struct placement next = {0};
        struct buf table = {0};
        int r = make_table(g, there, &table);

        if (r == 0)
                r = members_compose(g, there, &next);
        for (uint32_t i = 1; r == 0 && i < g->options.size; i++) {
                if (there[i])
                        r = send_to(g, i, TABLE, buf_slice(&table));
                if (r == 0 && there[i])
                        r = send_to(g, i, PLACE,
                            slice_of(next.expert_of, (size_t)next.layers * next.slots * sizeof(*next.expert_of)));
        }
        if (r == 0)
                r = members_settle(g, &next, there, say_busy, e);
        for (uint32_t i = 1; r == 0 && i < g->options.size; i++)
                if (there[i])
                        r = receive_when_done(g, i, READY);
        for (uint32_t i = 1; r == 0 && i < g->options.size; i++)
                if (there[i])
                        r = send_to(g, i, GO, SLICE_NONE);
        placement_free(&next);
        buf_free(&table);
        return r;
}

static int form_first(struct group *g, uint64_t until, struct error *e) {
        bool there[GROUP_SIZE_MAX] = {true};
        int r;

        close_door(g);
        if (g->guest >= 0) {
                drop_link(g, g->guest_rank);
                g->links[g->guest_rank] = g->guest;
                g->guest = -1;
        }
        r = gather(g, until, e);
        if (r <= 0)
                return r;
        for (uint32_t i = 1; i < g->options.size; i++)
                there[i] = g->links[i] >= 0;
        if (introduce(g, there, e) < 0) { /* somebody went: the others come again */
                if (e->text[0])
                        log_error(g->options.log, "rank 0 cannot take its place: %s", e->text);
                drop_links(g);
                return 0;
        }
        g->epoch++;
        begin_epoch(g);
        return 1;
}

/* Has a rank come back while the group runs? It is of the next epoch then. */
static bool has_guest(struct group *g) {
        struct pollfd p;
        struct error e = {0};
        int fd, r;

        if (g->options.rank != 0 || g->guest >= 0)
                return g->guest >= 0;
        if (g->door < 0) {
                g->door = links_accept(g->listener);
                g->door_until = links_now() + INTRODUCE_MS;
        }
        p = (struct pollfd){g->door, POLLIN, 0};
        if (g->door < 0 || poll(&p, 1, 0) <= 0) {
                if (g->door >= 0 && links_now() >= g->door_until)
                        close_door(g);
                return false;
        }
        fd = g->door;
        g->door = -1;
        r = welcome(g, fd, links_now() + DOOR_MS, &e);
        if (r < 0)
                log_warn(g->options.log, "%s", e.text);
        if (r <= 0)
                return false;
        g->guest = fd;
        g->guest_rank = (uint32_t)r;
        if (g->links[r] >= 0) /* its link has not said so yet */
                group_break(g, "a rank has come again");
        return true;
}

/* ---- forming: the others ------------------------------------------------------------------------------------------------ */

static int join(struct group *g, uint64_t until) {
        const struct group_options *o = &g->options;
        struct buf body = {0};
        int r = links_connect(o->host, o->port, until);

        if (r < 0)
                return r;
        g->links[0] = r;
        buf_printf(&body, "rank=%u\nsize=%u\nport=%u\n", o->rank, o->size, g->port);
        group_offer_near(g, &body, "near");
        buf_add(&body, buf_slice(&g->facts));
        r = buf_ok(&body) ? send_to(g, 0, JOIN, buf_slice(&body)) : -ENOMEM;
        buf_reset(&body);
        if (r == 0)
                r = members_say_holds(g, &body);
        if (r == 0)
                r = send_to(g, 0, HOLDS, buf_slice(&body));
        buf_free(&body);
        return r;
}

static int connect_below(struct group *g, uint32_t rank, struct slice table) {
        char key[16], host[64], hello[64];
        struct slice address, host_text;
        uint64_t port;
        int r;

        snprintf(key, sizeof(key), "%u", rank);
        address = value_of(table, slice_str(key));
        if (!slice_split(&address, ' ', &host_text) || slice_to_u64(address, &port) < 0 || port > 65535 ||
            host_text.len >= sizeof(host))
                return -EPROTO;
        memcpy(host, host_text.ptr, host_text.len);
        host[host_text.len] = '\0';
        r = links_connect(host, (uint16_t)port, links_now() + INTRODUCE_MS);
        if (r < 0)
                return r;
        g->links[rank] = r;
        snprintf(hello, sizeof(hello), "epoch=%llu\nrank=%u\n", (unsigned long long)g->epoch, g->options.rank);
        return send_to(g, rank, HELLO, slice_str(hello));
}

static int accept_above(struct group *g) {
        uint64_t until = links_now() + INTRODUCE_MS, rank, epoch;
        struct pollfd p = {g->listener, POLLIN, 0};
        struct buf body = {0};
        uint32_t kind;
        int fd, r;

        if (poll(&p, 1, INTRODUCE_MS) <= 0)
                return -ETIMEDOUT;
        fd = links_accept(g->listener);
        if (fd < 0)
                return fd == -EAGAIN ? 0 : fd;
        r = links_receive(fd, &kind, &body, until);
        if (r == 0 && kind == HELLO && number_of(buf_slice(&body), "rank", g->options.size - 1, &rank) &&
            rank > g->options.rank && number_of(buf_slice(&body), "epoch", UINT64_MAX, &epoch) && epoch == g->epoch) {
                drop_link(g, (uint32_t)rank);
                g->links[rank] = fd;
        } else
                close(fd); /* a stranger, or of an epoch that came to nothing */
        buf_free(&body);
        return 0;
}

static int meet(struct group *g, struct slice table, struct error *e) {
        bool there[GROUP_SIZE_MAX] = {true};
        struct placement next = {0};
        struct buf place = {0};
        char key[16];
        int r = number_of(table, "epoch", UINT64_MAX, &g->epoch) ? receive_from(g, 0, PLACE, &place) : -EPROTO;

        for (uint32_t i = 1; i < g->options.size; i++) {
                snprintf(key, sizeof(key), "%u", i);
                there[i] = value_of(table, slice_str(key)).len > 0;
        }
        if (r == 0)
                r = there[g->options.rank] ? members_take_placement(g, buf_slice(&place), &next) : -EPROTO;
        for (uint32_t i = 1; r == 0 && i < g->options.rank; i++)
                if (there[i])
                        r = connect_below(g, i, table);
        while (r == 0 && !all_linked(g, there))
                r = accept_above(g);
        for (uint32_t i = 0; r == 0 && i < g->options.size; i++) {
                snprintf(key, sizeof(key), "near%u", i);
                if (there[i] && i != g->options.rank)
                        group_open_near(g, i, value_of(table, slice_str(key)));
        }
        if (r == 0)
                r = members_settle(g, &next, there, say_busy, e);
        if (r == 0)
                r = send_to(g, 0, READY, SLICE_NONE);
        if (r == 0)
                r = receive_when_done(g, 0, GO);
        placement_free(&next);
        buf_free(&place);
        return r;
}

/* Rank 0's word, when all are there. */
static int take_word(struct group *g, struct error *e) {
        struct buf body = {0};
        uint32_t kind;
        int r = links_receive(g->links[0], &kind, &body, links_now() + INTRODUCE_MS);

        if (r == 0 && kind == REFUSE)
                r = error_set(e, -EPROTO, "rank 0 does not take this rank, %u: %.*s", g->options.rank,
                    SLICE_ARG(slice_sub(buf_slice(&body), 0, 250)));
        else if (r == 0 && kind == TABLE)
                r = meet(g, buf_slice(&body), e) == 0 ? 1 : -ECONNRESET;
        else
                r = -ECONNRESET;
        buf_free(&body);
        return r;
}

static int form_other(struct group *g, uint64_t until, struct error *e) {
        for (;;) {
                struct pollfd p = {g->links[0], POLLIN, 0};
                uint64_t now = links_now();
                int r;

                if (now >= until)
                        return 0;
                if (g->links[0] < 0) {
                        r = join(g, until);
                        if (r == -ECONNREFUSED)
                                g->hold_until = 0; /* rank 0 itself is gone: there is no other to form a group */
                        if (r < 0) {
                                tell(g, "rank 0 is not there yet");
                                now = links_now();
                                if (now < until)
                                        poll(NULL, 0, (int)(until - now < RETRY_MS ? until - now : RETRY_MS));
                        }
                        continue;
                }
                tell(g, "waiting for the others");
                if (poll(&p, 1, (int)(until - now)) <= 0)
                        continue;
                r = take_word(g, e);
                if (r == 1) {
                        begin_epoch(g);
                        return 1;
                }
                if (r == -ECONNRESET && e->text[0])
                        log_error(g->options.log, "rank %u cannot take its place: %s", g->options.rank, e->text);
                drop_links(g);
                if (r == -EPROTO)
                        return r;
        }
}

int group_form(struct group *g, unsigned ms, struct error *e) {
        uint64_t until = links_now() + ms;

        if (g->formed)
                return 1;
        moves_stop(g); /* what this rank holds is told now, and must stay */
        e->text[0] = '\0';
        return g->options.rank == 0 ? form_first(g, until, e) : form_other(g, until, e);
}

/* ---- steps -------------------------------------------------------------------------------------------------------------- */

int group_exchange(struct group *g, bool once) {
        char text[160];
        size_t at = 0;
        int r = links_exchange(g->jobs, g->options.size, g->inbox, g->options.silence_ms, once, &at);

        if (r == 0)
                return 0;
        if (r == -ETIMEDOUT)
                snprintf(text, sizeof(text), "rank %zu has said nothing for %u ms", at, g->options.silence_ms);
        else
                snprintf(text, sizeof(text), "rank %zu: %s", at, r == -ECONNRESET ? "it has gone" : strerror(-r));
        group_break(g, text);
        return r;
}

static size_t list_links(const struct group *g, struct pollfd *p) {
        size_t n = 0;

        for (uint32_t i = 0; i < g->options.size; i++)
                if (g->links[i] >= 0)
                        p[n++] = (struct pollfd){g->links[i], POLLIN, 0};
        return n;
}

void group_sleep(struct group *g, int fd) {
        struct pollfd p[GROUP_SIZE_MAX + 2];
        size_t n = list_links(g, p);
        int ms = -1;

        if (moves_has_word(g) || g->guest >= 0)
                return;
        p[n++] = (struct pollfd){fd, POLLIN, 0};
        if (g->options.rank == 0)
                p[n++] = (struct pollfd){g->door >= 0 ? g->door : g->listener, POLLIN, 0};
        if (g->door >= 0)
                ms = (int)INTRODUCE_MS;
        if (g->inbox)
                inbox_doze(g->inbox); /* what is written from here on is told on a socket */
        while (!group_near_calls(g) && poll(p, n, ms) < 0 && errno == EINTR)
                ;
        if (g->inbox)
                inbox_rouse(g->inbox);
}

bool group_is_called(struct group *g) {
        struct pollfd p[GROUP_SIZE_MAX];
        size_t n = 0;

        for (uint32_t i = 0; i < g->options.size; i++)
                if (g->links[i] >= 0 && !g->near[i]) /* a near rank's socket may have but a wake in it */
                        p[n++] = (struct pollfd){g->links[i], POLLIN, 0};
        return has_guest(g) || moves_has_word(g) || group_near_calls(g) || (n > 0 && poll(p, n, 0) > 0);
}

void group_clear_jobs(struct group *g) {
        for (uint32_t i = 0; i < g->options.size; i++)
                g->jobs[i] = (struct link_job){.fd = g->links[i], .near = g->near[i]};
}

static int check_said(struct group *g, const struct step_message *mine) {
        char text[160];

        for (uint32_t i = 0; i < g->options.size; i++) {
                const struct step_message *s = &g->said[i];

                if (g->links[i] < 0 || (s->epoch == mine->epoch && s->step == mine->step))
                        continue;
                snprintf(text, sizeof(text), "rank %u is at step %llu of epoch %llu, this one at %llu of %llu", i,
                    (unsigned long long)s->step, (unsigned long long)s->epoch, (unsigned long long)mine->step,
                    (unsigned long long)mine->epoch);
                group_break(g, text);
                return -EPROTO;
        }
        return 0;
}

/* Tell all and hear all. */
static int exchange_messages(struct group *g, const struct step_message *mine) {
        int r;

        for (uint32_t i = 0; i < g->options.size; i++)
                g->jobs[i] = (struct link_job){.fd = g->links[i],
                    .near = g->near[i],
                    .out = (const char *)mine,
                    .out_bytes = sizeof(*mine),
                    .in = (char *)&g->said[i],
                    .in_bytes = sizeof(g->said[i])};
        r = group_exchange(g, false);
        return r == 0 ? check_said(g, mine) : r;
}

int group_agree(struct group *g, bool work, uint32_t rows, bool *ret_any, uint32_t *ret_rows, struct error *e) {
        struct step_message mine = {g->epoch, g->step + 1, rows, work ? SAY_WORK : 0};
        uint32_t any, all;
        int r;

        if (g->formed && has_guest(g))
                mine.flags |= SAY_REFORM;
        if (!g->formed)
                return error_set(e, -ENOTCONN, "the group is not complete");
        mine.flags |= moves_say(g);
        r = exchange_messages(g, &mine);
        if (r < 0)
                return error_set(e, r, "%s", g->why);
        g->step++;
        any = all = mine.flags;
        g->most_rows = rows;
        for (uint32_t i = 0; i < g->options.size; i++) {
                if (g->links[i] < 0)
                        continue;
                any |= g->said[i].flags;
                all &= g->said[i].flags;
                if (g->said[i].rows > g->most_rows)
                        g->most_rows = g->said[i].rows;
        }
        if (any & SAY_REFORM) {
                reform(g);
                return error_set(e, -ESTALE, "the group is formed anew");
        }
        r = moves_at_step(g, any, all);
        if (r < 0)
                return error_set(e, r, "%s", g->why);
        *ret_any = any & SAY_WORK;
        *ret_rows = g->most_rows;
        return 0;
}
