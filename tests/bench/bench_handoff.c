/* How fast KV goes from one engine's cache to another's: between two processes of this machine, out of memory and over TCP, beside
 * memcpy of as many bytes. The shapes are DeepSeek-V2-Lite's cache (27 layers, 1152 bytes a row), one prompt a fetch.
 *
 *   bench_handoff [SECONDS]
 *
 * One line per case: tokens, MiB, GiB/s of the median fetch, its ratio to memcpy's, microseconds from asking to the event. For
 * pushes: microseconds from the last layer of the last chunk being there to the event, the rest having gone before. */
#include "base/clock.h"
#include "comm/comm.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pthread.h>

#define LAYERS       27u
#define ROW          1152u
#define BLOCK_TOKENS 64u
#define BLOCKS       128u
#define ROUNDS_MAX   4096u

static const uint32_t lengths[] = {1, 64, 512, 2048, 8192};

struct side {
        pthread_mutex_t lock;
        pthread_cond_t woken;
        struct comm *comm;
};

static void on_wake(void *context) {
        struct side *s = context;

        pthread_mutex_lock(&s->lock);
        pthread_cond_signal(&s->woken);
        pthread_mutex_unlock(&s->lock);
}

static char *map_pool(const struct kv_pool *p) {
        size_t bytes = (size_t)p->blocks * p->layers * p->block_tokens * p->row_bytes;
        char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (at == MAP_FAILED)
                abort();
        madvise(at, bytes, MADV_HUGEPAGE);
        memset(at, 1, bytes);
        return at;
}

static struct kv_pool pool_of(uint32_t block_tokens) {
        struct kv_pool p = {.row_bytes = ROW,
            .layers = LAYERS,
            .block_tokens = block_tokens,
            .blocks = BLOCKS * BLOCK_TOKENS / block_tokens};

        p.base = map_pool(&p);
        return p;
}

static struct comm_event *next_event(struct side *s) {
        struct comm_event *e;

        pthread_mutex_lock(&s->lock);
        while (!(e = comm_take(s->comm)))
                pthread_cond_wait(&s->woken, &s->lock);
        pthread_mutex_unlock(&s->lock);
        return e;
}

/* The producer: exports whatever it is asked for over a pipe. */
static void produce(int commands, int answers, enum comm_way way) {
        struct side s = {.lock = PTHREAD_MUTEX_INITIALIZER, .woken = PTHREAD_COND_INITIALIZER};
        struct comm_options o = {.pool = pool_of(BLOCK_TOKENS),
            .engine_id = "p",
            .host = "127.0.0.1",
            .way = way,
            .wake = on_wake,
            .wake_context = &s};
        uint32_t blocks[BLOCKS], tokens;
        struct error e;
        uint16_t port;
        uint64_t id = 0;
        char name[32];

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (uint32_t i = 0; i < BLOCKS; i++)
                blocks[i] = (i * 37) % BLOCKS;
        if (comm_new(&o, &s.comm, &e) < 0)
                abort();
        port = comm_port(s.comm);
        if (write(answers, &port, sizeof(port)) != sizeof(port))
                abort();
        while (read(commands, &tokens, sizeof(tokens)) == sizeof(tokens)) {
                snprintf(name, sizeof(name), "%llu", (unsigned long long)id++);
                if (comm_export(s.comm, slice_str(name), blocks, BLOCKS, tokens, NULL) < 0 ||
                    write(answers, "", 1) != 1)
                        abort();
                comm_event_free(next_event(&s));
        }
        comm_free(s.comm);
}

static int compare(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return x < y ? -1 : x > y;
}

static double median(double *v, size_t n) {
        qsort(v, n, sizeof(*v), compare);
        return v[n / 2];
}

/* Nanoseconds of copying that many bytes between two pools, in pieces of a block. */
static double time_memcpy(const struct kv_pool *from, const struct kv_pool *to, size_t bytes, double seconds) {
        size_t block = (size_t)LAYERS * BLOCK_TOKENS * ROW, n = 0;
        static double times[ROUNDS_MAX];
        uint64_t end = clock_mono_ns() + (uint64_t)(seconds * NS_PER_S);

        do {
                uint64_t begun = clock_mono_ns();

                for (size_t at = 0; at < bytes; at += block) {
                        size_t i = at / block * 37 % BLOCKS * block;

                        memcpy(to->base + at, from->base + i, bytes - at < block ? bytes - at : block);
                }
                times[n++] = (double)(clock_mono_ns() - begun);
        } while (n < ROUNDS_MAX && clock_mono_ns() < end);
        return median(times, n);
}

struct producer {
        int commands, answers;
        uint16_t port;
        uint64_t id;
};

static double time_fetch(
    struct side *s, struct producer *p, const uint32_t *blocks, size_t count, uint32_t tokens, double seconds) {
        static double times[ROUNDS_MAX];
        uint64_t end = clock_mono_ns() + (uint64_t)(seconds * NS_PER_S);
        size_t n = 0;

        do {
                struct comm_source from = {
                    .host = SLICE_LIT("127.0.0.1"), .port = p->port, .engine_id = SLICE_LIT("p")};
                struct comm_fetch *f;
                struct comm_event *event;
                char name[32], ready;
                uint64_t begun;

                snprintf(name, sizeof(name), "%llu", (unsigned long long)p->id++);
                from.id = slice_str(name);
                if (write(p->commands, &tokens, sizeof(tokens)) != sizeof(tokens) || read(p->answers, &ready, 1) != 1)
                        abort();
                begun = clock_mono_ns();
                if (comm_announce(s->comm, &from, NULL, &f) < 0)
                        abort();
                comm_fetch(f, blocks, count, 0, tokens);
                event = next_event(s);
                times[n++] = (double)(clock_mono_ns() - begun);
                if (event->result < 0) {
                        fprintf(stderr, "bench_handoff: %s\n", event->text);
                        abort();
                }
                comm_event_free(event);
        } while (n < ROUNDS_MAX && clock_mono_ns() < end);
        return median(times, n);
}

static pid_t start_producer(struct producer *p, enum comm_way way) {
        int commands[2], answers[2];
        pid_t child;

        if (pipe(commands) < 0 || pipe(answers) < 0 || (child = fork()) < 0)
                abort();
        if (child == 0) {
                close(commands[1]);
                produce(commands[0], answers[1], way);
                exit(0);
        }
        close(commands[0]);
        close(answers[1]);
        *p = (struct producer){.commands = commands[1], .answers = answers[0]};
        if (read(p->answers, &p->port, sizeof(p->port)) != sizeof(p->port))
                abort();
        return child;
}

/* ---- push ---------------------------------------------------------------------------------------------------------------- */

#define CHUNK 512u /* tokens that are computed together */

struct push_command {
        uint32_t tokens;
        uint16_t port;
        uint64_t id;
};

/* Layer by layer and chunk by chunk as a model would, with a pause before the last layer of the last chunk, which is what is left to
 * be handed over when the prompt is computed. */
static void push_prompt(struct side *s, const struct push_command *c, const uint32_t *blocks, int answers) {
        const struct timespec pause = {.tv_nsec = 300000000};
        struct comm_source to = {.host = SLICE_LIT("127.0.0.1"), .port = c->port, .engine_id = SLICE_LIT("d")};
        uint32_t last = (c->tokens - 1) / CHUNK * CHUNK;
        struct comm_push *push;
        uint64_t begun;
        char name[32];

        snprintf(name, sizeof(name), "%llu", (unsigned long long)c->id);
        to.id = slice_str(name);
        if (comm_push(s->comm, &to, 0, c->tokens, NULL, &push) < 0 || comm_push_blocks(push, blocks, BLOCKS) < 0)
                abort();
        comm_push_open(push);
        for (uint32_t first = 0; first < c->tokens; first += CHUNK)
                for (uint32_t layer = 0; layer + (first == last) < LAYERS; layer++)
                        comm_push_rows(push, layer, first, first == last ? c->tokens : first + CHUNK);
        nanosleep(&pause, NULL);
        begun = clock_mono_ns();
        comm_push_rows(push, LAYERS - 1, last, c->tokens);
        if (write(answers, &begun, sizeof(begun)) != sizeof(begun))
                abort();
        comm_event_free(next_event(s));
}

static void produce_pushes(int commands, int answers, enum comm_way way) {
        struct side s = {.lock = PTHREAD_MUTEX_INITIALIZER, .woken = PTHREAD_COND_INITIALIZER};
        struct comm_options o = {
            .pool = pool_of(BLOCK_TOKENS), .engine_id = "p", .way = way, .wake = on_wake, .wake_context = &s};
        uint32_t blocks[BLOCKS];
        struct push_command c;
        struct error e;

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (uint32_t i = 0; i < BLOCKS; i++)
                blocks[i] = (i * 37) % BLOCKS;
        if (comm_new(&o, &s.comm, &e) < 0)
                abort();
        while (read(commands, &c, sizeof(c)) == sizeof(c))
                push_prompt(&s, &c, blocks, answers);
        comm_free(s.comm);
}

static void run_push_case(const char *what, enum comm_way way, double seconds) {
        int commands[2], answers[2];
        struct side s = {.lock = PTHREAD_MUTEX_INITIALIZER, .woken = PTHREAD_COND_INITIALIZER};
        struct comm_options o = {
            .engine_id = "d", .host = "127.0.0.1", .way = way, .wake = on_wake, .wake_context = &s};
        uint32_t blocks[BLOCKS];
        struct push_command c = {0};
        struct error e;
        pid_t child;

        if (pipe(commands) < 0 || pipe(answers) < 0 || (child = fork()) < 0)
                abort();
        if (child == 0) {
                close(commands[1]);
                produce_pushes(commands[0], answers[1], way);
                exit(0);
        }
        close(commands[0]);
        close(answers[1]);
        o.pool = pool_of(BLOCK_TOKENS);
        for (uint32_t i = 0; i < BLOCKS; i++)
                blocks[i] = i;
        if (comm_new(&o, &s.comm, &e) < 0)
                abort();
        c.port = comm_port(s.comm);
        for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
                uint64_t until = clock_mono_ns() + (uint64_t)(seconds * NS_PER_S), begun, ended;
                static double times[ROUNDS_MAX];
                size_t n = 0;

                do {
                        struct comm_receipt *receipt;
                        struct comm_event *event;
                        char name[32];

                        c.tokens = lengths[i];
                        c.id++;
                        snprintf(name, sizeof(name), "%llu", (unsigned long long)c.id);
                        if (comm_expect(s.comm, slice_str(name), blocks, BLOCKS, 0, c.tokens, NULL, &receipt) < 0 ||
                            write(commands[1], &c, sizeof(c)) != sizeof(c))
                                abort();
                        event = next_event(&s);
                        ended = clock_mono_ns();
                        if (event->result < 0 || read(answers[0], &begun, sizeof(begun)) != sizeof(begun)) {
                                fprintf(stderr, "bench_handoff: %s\n", event->text);
                                abort();
                        }
                        times[n++] = (double)(ended - begun);
                        comm_event_free(event);
                } while (n < ROUNDS_MAX && clock_mono_ns() < until);
                printf("%-34s %6u tokens %8.2f MiB   after the last layer %10.0f us\n", what, c.tokens,
                    (double)c.tokens * LAYERS * ROW / (1 << 20), median(times, n) / 1000);
        }
        comm_free(s.comm);
        munmap(o.pool.base, (size_t)o.pool.blocks * LAYERS * BLOCK_TOKENS * ROW);
        close(commands[1]);
        close(answers[0]);
        waitpid(child, NULL, 0);
}

/* ---- pull ---------------------------------------------------------------------------------------------------------------- */

static void run_case(const char *what, uint32_t block_tokens, enum comm_way way, double seconds) {
        struct producer p;
        pid_t child = start_producer(&p, way);
        struct side s = {.lock = PTHREAD_MUTEX_INITIALIZER, .woken = PTHREAD_COND_INITIALIZER};
        struct comm_options o = {
            .pool = pool_of(block_tokens), .engine_id = "d", .way = way, .wake = on_wake, .wake_context = &s};
        struct kv_pool other = pool_of(BLOCK_TOKENS);
        uint32_t *blocks = malloc(o.pool.blocks * sizeof(*blocks));
        struct error e;

        for (uint32_t i = 0; i < o.pool.blocks; i++)
                blocks[i] = i;
        if (comm_new(&o, &s.comm, &e) < 0)
                abort();
        for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
                size_t bytes = (size_t)lengths[i] * LAYERS * ROW;
                double copy = time_memcpy(&other, &o.pool, bytes, seconds),
                       fetch = time_fetch(&s, &p, blocks, o.pool.blocks, lengths[i], seconds);

                printf("%-34s %6u tokens %8.2f MiB %8.2f GiB/s   %.2f of memcpy   %10.0f us\n", what, lengths[i],
                    (double)bytes / (1 << 20), (double)bytes / fetch * 1e9 / (1 << 30), copy / fetch, fetch / 1000);
        }
        comm_free(s.comm);
        munmap(o.pool.base, (size_t)o.pool.blocks * LAYERS * block_tokens * ROW);
        munmap(other.base, (size_t)other.blocks * LAYERS * BLOCK_TOKENS * ROW);
        free(blocks);
        close(p.commands);
        close(p.answers);
        waitpid(child, NULL, 0);
}

int main(int argc, char **argv) {
        double seconds = argc > 1 ? atof(argv[1]) : 1;

        setvbuf(stdout, NULL, _IOLBF, 0);
        run_case("out of memory", BLOCK_TOKENS, COMM_WAY_BEST, seconds);
        run_case("over TCP (loopback)", BLOCK_TOKENS, COMM_WAY_STREAM, seconds);
        run_case("by UCX, without RDMA", BLOCK_TOKENS, COMM_WAY_UCX, seconds);
        run_case("out of memory, blocks 64 to 16", 16, COMM_WAY_BEST, seconds);
        run_case("over TCP, blocks 64 to 16", 16, COMM_WAY_STREAM, seconds);
        run_push_case("pushed, out of memory", COMM_WAY_BEST, 3 * seconds);
        run_push_case("pushed, over TCP", COMM_WAY_STREAM, 3 * seconds);
        return 0;
}
