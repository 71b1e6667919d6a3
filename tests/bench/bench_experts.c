/* bench_experts.c - a batch that decodes on ranks that share experts, beside the same batch in one process with as many threads in
 * all. Each rank is a process with its part of the checkpoint; all take turns, so that noise meets all alike.
 *
 *     bench_experts [--threads N] [--batch N] [--rounds N] [--dot] DIR RANKS[:tcp]...
 *
 * RANKS is 1 for one process. Per case: milliseconds a step (median), and the throughput as a share of the first case's (median of
 * what rounds gave). Then what an agreement on a step costs. */
#include "base/clock.h"
#include "base/rng.h"
#include "comm/group.h"
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CASES_MAX = 8, ROUNDS_MAX = 64, STEPS = 10, AGREEMENTS = 300, POSITION = 40, BLOCK = 64 };

struct subject {
        char name[64];
        unsigned ranks;
        uint16_t port;
        bool sockets_only;
};

/* In memory of all processes. */
struct board {
        pthread_barrier_t all; /* every rank of every case, and who directs */
        unsigned turn;         /* whose case runs */
        bool ends;
        double step[CASES_MAX][ROUNDS_MAX], agreement[CASES_MAX][ROUNDS_MAX]; /* seconds */
        unsigned round;
};

struct work {
        struct model *model;
        struct compute *compute;
        struct group *group;
        struct kv_cache kv;
        unsigned rows;
        uint32_t *tokens, *blocks, *logit_rows;
        struct model_span *spans;
        float *logits;
        struct rng rng;
};

static struct board *board;
static unsigned threads = 2, batch = 32, rounds = 7;
static enum activation activation;
static const char *dir;

static _Noreturn void die(const char *what, const struct error *e) {
        fprintf(stderr, "bench_experts: %s%s%s\n", what, e ? ": " : "", e ? e->text : "");
        exit(1);
}

static void *need(void *p) {
        return p ? p : (die("no memory", NULL), NULL);
}

/* ---- a rank ------------------------------------------------------------------------------------------------------------- */

static void open_group(struct work *w, const struct subject *s, unsigned rank) {
        struct group_options o = {
            .rank = rank, .size = s->ranks, .host = "127.0.0.1", .port = s->port, .sockets_only = s->sockets_only};
        const struct model_config *config = model_config(w->model);
        struct experts_interface experts;
        struct placement placement;
        struct error e;

        if (placement_new(model_layers(w->model), config->experts, 0, s->ranks, PLACEMENT_LINEAR, &placement) < 0)
                die("no memory", NULL);
        o.placement = &placement; /* that of the model, which is the default */
        if (group_new(&o, &w->group, &e) < 0 || group_form(w->group, 120000, &e) != 1)
                die("the group does not form", NULL);
        placement_free(&placement);
        experts = group_experts(w->group, w->model, w->compute);
        model_set_experts(w->model, &experts);
}

static void open_work(struct work *w, const struct subject *s, unsigned rank) {
        unsigned own = threads / s->ranks;
        struct compute_options c = {.isa = ISA_BEST, .threads = own ? own : 1, .spin_us = 50, .activation = activation};
        struct model_options m = {.dir = dir, .shard = {.ep_rank = rank, .ep_size = s->ranks}};
        struct error e;

        if (compute_new(&c, &w->compute, &e) < 0)
                die("compute_new", &e);
        m.compute = w->compute;
        if (model_load(&m, &w->model, &e) < 0)
                die(dir, &e);
        w->rows = batch / s->ranks + (rank < batch % s->ranks);
        if (kv_cache_new(w->model, KV_F32, BLOCK, w->rows, &w->kv, &e) < 0)
                die("kv_cache_new", &e);
        w->tokens = need(calloc(w->rows, sizeof(*w->tokens)));
        w->blocks = need(calloc(w->rows, sizeof(*w->blocks)));
        w->logit_rows = need(calloc(w->rows, sizeof(*w->logit_rows)));
        w->spans = need(calloc(w->rows, sizeof(*w->spans)));
        w->logits = need(calloc((size_t)w->rows * model_config(w->model)->vocab, sizeof(*w->logits)));
        for (unsigned i = 0; i < w->rows; i++) {
                w->blocks[i] = w->logit_rows[i] = i;
                w->spans[i] = (struct model_span){.blocks = &w->blocks[i], .first = POSITION, .rows = 1};
        }
        rng_seed(&w->rng, 1000 + rank);
        if (s->ranks > 1)
                open_group(w, s, rank);
}

static void agree(struct work *w, bool work) {
        struct error e;
        uint32_t rows;
        bool any;

        if (w->group && group_agree(w->group, work, work ? w->rows : 0, &any, &rows, &e) < 0)
                die("the group broke", &e);
}

static void step(struct work *w) {
        struct model_step s = {.tokens = w->tokens,
            .rows = w->rows,
            .spans = w->spans,
            .span_count = w->rows,
            .logit_rows = w->logit_rows,
            .logit_count = w->rows};

        for (unsigned i = 0; i < w->rows; i++)
                w->tokens[i] = (uint32_t)rng_below(&w->rng, model_config(w->model)->vocab);
        agree(w, true);
        if (model_forward(w->model, &w->kv, &s, w->logits, NULL) < 0)
                die("a step failed", NULL);
}

static double seconds_since(uint64_t begun) {
        return (double)(clock_mono_ns() - begun) * 1e-9;
}

static void run_rank(const struct subject *s, unsigned number, unsigned rank) {
        struct work w = {0};

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        open_work(&w, s, rank);
        for (;;) {
                uint64_t begun;

                pthread_barrier_wait(&board->all); /* the turn is set */
                if (board->ends)
                        break;
                if (board->turn == number) {
                        step(&w);
                        begun = clock_mono_ns();
                        for (int i = 0; i < STEPS; i++)
                                step(&w);
                        if (rank == 0)
                                board->step[number][board->round] = seconds_since(begun) / STEPS;
                        begun = clock_mono_ns();
                        for (int i = 0; i < AGREEMENTS; i++)
                                agree(&w, false);
                        if (rank == 0)
                                board->agreement[number][board->round] = seconds_since(begun) / AGREEMENTS;
                }
                pthread_barrier_wait(&board->all); /* the turn is over */
        }
        group_free(w.group);
        _exit(0);
}

/* ---- all ---------------------------------------------------------------------------------------------------------------- */

static uint16_t free_port(void) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t bytes = sizeof(at);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        if (bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0 || getsockname(fd, (struct sockaddr *)&at, &bytes) < 0)
                die("no free port", NULL);
        close(fd);
        return ntohs(at.sin_port);
}

static void read_case(char *text, struct subject *s) {
        char *end;

        *s = (struct subject){.ranks = (unsigned)strtoul(text, &end, 10), .port = free_port()};
        if (s->ranks == 0 || s->ranks > 64)
                die("a case is RANKS[:WAY]", NULL);
        for (char *word; *end == ':'; end = word + strcspn(word, ":")) {
                word = end + 1;
                if (!strncmp(word, "tcp", 3))
                        s->sockets_only = true;
                else
                        die("a WAY is tcp", NULL);
        }
        snprintf(s->name, sizeof(s->name), "%s", text);
}

static int by_value(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return (x > y) - (x < y);
}

static double median(const double *v) {
        double sorted[ROUNDS_MAX];

        memcpy(sorted, v, rounds * sizeof(*v));
        qsort(sorted, rounds, sizeof(*sorted), by_value);
        return sorted[rounds / 2];
}

static void print_case(const struct subject *s, unsigned i) {
        double shares[ROUNDS_MAX];

        for (unsigned r = 0; r < rounds; r++)
                shares[r] = board->step[0][r] / board->step[i][r];
        printf("| %s | %u x %u | %.2f ms | %.1f tokens/s | %.3f |", s->name, s->ranks,
            threads / s->ranks ? threads / s->ranks : 1, median(board->step[i]) * 1e3, batch / median(board->step[i]),
            median(shares));
        if (s->ranks > 1)
                printf(" %.1f us |\n", median(board->agreement[i]) * 1e6);
        else
                printf(" |\n");
}

int main(int argc, char **argv) {
        struct subject cases[CASES_MAX];
        pthread_barrierattr_t shared;
        unsigned count = 0, all = 1;
        int at = 1;

        for (; at < argc && argv[at][0] == '-'; at++)
                if (!strcmp(argv[at], "--threads") && at + 1 < argc)
                        threads = (unsigned)atoi(argv[++at]);
                else if (!strcmp(argv[at], "--batch") && at + 1 < argc)
                        batch = (unsigned)atoi(argv[++at]);
                else if (!strcmp(argv[at], "--rounds") && at + 1 < argc)
                        rounds = (unsigned)atoi(argv[++at]);
                else if (!strcmp(argv[at], "--dot"))
                        activation = ACTIVATION_BF16;
                else
                        return 2;
        if (argc - at < 2 || argc - at - 1 > CASES_MAX || rounds == 0 || rounds > ROUNDS_MAX || batch == 0)
                return 2;
        dir = argv[at++];
        for (; at < argc; at++)
                read_case(argv[at], &cases[count++]);
        board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (board == MAP_FAILED)
                die("no memory", NULL);
        for (unsigned i = 0; i < count; i++)
                all += cases[i].ranks;
        pthread_barrierattr_init(&shared);
        pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
        pthread_barrier_init(&board->all, &shared, all);
        for (unsigned i = 0; i < count; i++)
                for (unsigned rank = 0; rank < cases[i].ranks; rank++)
                        if (fork() == 0)
                                run_rank(&cases[i], i, rank);
        for (board->round = 0; board->round < rounds; board->round++)
                for (board->turn = 0; board->turn < count; board->turn++) {
                        pthread_barrier_wait(&board->all);
                        pthread_barrier_wait(&board->all);
                }
        board->ends = true;
        pthread_barrier_wait(&board->all);
        while (wait(NULL) > 0 || errno == EINTR)
                ;
        printf("| ranks | threads | a step | throughput | of one process | agreement |\n|---|---|---|---|---|---|\n");
        for (unsigned i = 0; i < count; i++)
                print_case(&cases[i], i);
        return 0;
}
