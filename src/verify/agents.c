/* agents.c - the end of the agents that asks: one process per node, started here or by ssh, kept until the end. */
#include "base/json.h"
#include "os/os.h"
#include "verify/agent.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct link {
        struct agent_target target;
        bool started;
        struct os_child child;
        int to, from;    /* -1: the agent is gone */
        struct buf said; /* what it wrote, up to a whole line */
        struct buf line; /* what is still to be written to it */
        char *why;       /* it is gone because of that; NULL: it is not */
        uint64_t due_ms;
        bool pending;
};
struct agents {
        char *self;
        struct link *links;
        size_t count;
};

int agents_new(const char *self, const struct agent_target *targets, size_t count, struct agents **ret_agents) {
        struct agents *a = calloc(1, sizeof(*a));

        if (a) {
                a->self = strdup(self);
                a->links = calloc(count + 1, sizeof(*a->links));
        }
        if (!a || !a->self || !a->links) {
                agents_free(a);
                return -ENOMEM;
        }
        a->count = count;
        for (size_t i = 0; i < count; i++)
                a->links[i] = (struct link){.target = targets[i], .to = -1, .from = -1};
        *ret_agents = a;
        return 0;
}

static void lose(struct link *l, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void lose(struct link *l, const char *format, ...) {
        va_list args;

        if (l->to >= 0)
                close(l->to);
        if (l->from >= 0)
                close(l->from);
        l->to = l->from = -1;
        l->pending = false;
        if (l->why)
                return;
        va_start(args, format);
        if (vasprintf(&l->why, format, args) < 0)
                l->why = NULL;
        va_end(args);
}

static void start_link(struct agents *a, struct link *l) {
        /* The words of the command are constant. */
        const char *const command[] = {l->target.binary ? l->target.binary : "baton", "verify", "--agent", NULL};
        const char *remote[OS_SSH_ARGV_MAX], *const local[] = {a->self, "verify", "--agent", NULL},
                                                    *const none[] = {NULL};
        int in[2] = {-1, -1}, out[2] = {-1, -1}, r;
        struct error e = {0};
        struct os_child_options o = {.argv = l->target.ssh ? remote : local,
            .stderr_fd = STDERR_FILENO,
            .own_group = true,
            .death_signal = SIGTERM};

        l->started = true;
        if (l->target.ssh)
                os_ssh_argv(remote, none, l->target.ssh, command);
        if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
                r = error_set(&e, -errno, "no pipe: %s", strerror(errno));
        else {
                o.stdin_fd = in[0];
                o.stdout_fd = out[1];
                r = os_child_start(&o, &l->child, &e);
        }
        if (in[0] >= 0)
                close(in[0]);
        if (out[1] >= 0)
                close(out[1]);
        l->to = in[1];
        l->from = out[0];
        if (r < 0) {
                l->child.pid = 0;
                lose(l, "%s", e.text);
                return;
        }
        fcntl(l->to, F_SETFL, O_NONBLOCK);
        fcntl(l->from, F_SETFL, O_NONBLOCK);
}

static void write_questions(const struct batch *b, struct buf *out) {
        struct json_writer w = {.out = out};

        json_open(&w, '[');
        for (size_t i = 0; i < b->count; i++) {
                json_open(&w, '{');
                json_key(&w, "words");
                json_open(&w, '[');
                for (size_t k = 0; b->questions[i].words[k]; k++)
                        json_str(&w, b->questions[i].words[k]);
                json_close(&w, ']');
                json_key(&w, "lane");
                json_u64(&w, b->questions[i].lane);
                json_key(&w, "wait_ms");
                json_u64(&w, b->questions[i].wait_ms);
                json_close(&w, '}');
        }
        json_close(&w, ']');
        buf_add_char(out, '\n');
}

/* Longer than the agent can take: its longest lane, each command of it up to its deadline until patience ends, and the way. */
static uint64_t batch_ms(const struct batch *b) {
        size_t rounds = b->count / RUNNING_MAX + 1;

        return 20000 + (uint64_t)(LANE_PATIENCE + 1 + rounds) * ANSWER_DEADLINE_MS;
}

static bool read_answers(struct slice line, const struct batch *b, struct arena *arena) {
        yyjson_doc *doc;
        yyjson_val *v;
        size_t i, n;
        bool good;

        if (json_parse(line, &doc, NULL) < 0)
                return false;
        good = yyjson_arr_size(yyjson_doc_get_root(doc)) == b->count;
        yyjson_arr_foreach(yyjson_doc_get_root(doc), i, n, v) {
                int64_t state = json_get_i64(v, "state", -1);

                good = good && state >= ANSWER_GIVEN && state <= ANSWER_NO_TOOL;
                if (!good)
                        break;
                b->answers[i] = (struct answer){(enum answer_state)state, (int)json_get_i64(v, "status", -1),
                    arena_copy(arena, json_get_slice(v, "out")), arena_copy(arena, json_get_slice(v, "err"))};
        }
        yyjson_doc_free(doc);
        return good;
}

static void begin(struct agents *a, struct batch *b) {
        struct link *l = &a->links[b->node];

        if (!l->started)
                start_link(a, l);
        if (l->why || l->to < 0)
                return;
        buf_reset(&l->line);
        write_questions(b, &l->line);
        if (!buf_ok(&l->line)) {
                lose(l, "out of memory");
                return;
        }
        l->pending = true;
        l->due_ms = now_ms() + batch_ms(b);
}

static void push(struct link *l, struct batch *b) {
        ssize_t n;

        if (!b->sent_ns)
                b->sent_ns = clock_wall_ns();
        n = write(l->to, l->line.ptr, l->line.len);

        if (n > 0)
                buf_consume(&l->line, (size_t)n);
        else if (n < 0 && errno != EAGAIN && errno != EINTR)
                lose(l, "%s ended before it was asked", l->target.ssh ? "ssh or baton over there" : "the agent");
}

static void pull(struct link *l, struct batch *b, struct arena *arena) {
        char *room = l->said.len < BATCH_LINE_MAX ? buf_reserve(&l->said, 65536) : NULL;
        ssize_t n = room ? read(l->from, room, 65536) : -1;
        size_t end;

        if (!room) {
                lose(l, "it answers more than fits");
                return;
        }
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return;
        if (n <= 0) {
                lose(l,
                    l->target.ssh ? "ssh %s baton verify --agent ended without an answer; what it said stands above"
                                  : "%s: the agent ended without an answer",
                    l->target.ssh ? l->target.ssh : l->target.name);
                return;
        }
        buf_commit(&l->said, (size_t)n);
        end = slice_find(buf_slice(&l->said), '\n', 0);
        if (end == l->said.len)
                return;
        b->back_ns = clock_wall_ns();
        l->pending = false;
        if (!read_answers(slice_sub(buf_slice(&l->said), 0, end), b, arena))
                lose(l, "its answer is not an agent's; is baton over there of this version?");
        buf_consume(&l->said, end + 1);
}

/* Tell of a batch that is done, and of the first that is not. */
static void tell(
    const struct agents *a, const struct batch *batches, size_t count, size_t done, const struct listener *listener) {
        int64_t waiting = -1;

        for (size_t i = 0; i < count && waiting < 0; i++)
                if (a->links[batches[i].node].pending)
                        waiting = batches[i].node;
        if (listener)
                listener->answered(listener->context, batches[done].count, waiting);
}

static void ask_agents(
    void *context, struct batch *batches, size_t count, const struct listener *listener, struct arena *arena) {
        struct agents *a = context;
        struct pollfd *fds = calloc(2 * count + 1, sizeof(*fds));

        for (size_t i = 0; i < count; i++) {
                begin(a, &batches[i]);
                batches[i].sent_ns = batches[i].back_ns = 0;
                for (size_t k = 0; k < batches[i].count; k++)
                        batches[i].answers[k] = (struct answer){.state = ANSWER_NO_NODE};
        }
        for (size_t i = 0; i < count; i++)
                if (!a->links[batches[i].node].pending)
                        tell(a, batches, count, i, listener);
        for (bool pending = fds != NULL; pending;) {
                pending = false;
                for (size_t i = 0; i < count; i++) {
                        struct link *l = &a->links[batches[i].node];

                        fds[2 * i] = (struct pollfd){l->pending ? l->from : -1, POLLIN, 0};
                        fds[2 * i + 1] = (struct pollfd){l->pending && l->line.len ? l->to : -1, POLLOUT, 0};
                        pending |= l->pending;
                }
                if (!pending)
                        break;
                poll(fds, 2 * count, 200);
                for (size_t i = 0; i < count; i++) {
                        struct link *l = &a->links[batches[i].node];
                        bool was_pending = l->pending;

                        if (l->pending && fds[2 * i + 1].revents)
                                push(l, &batches[i]);
                        if (l->pending && fds[2 * i].revents)
                                pull(l, &batches[i], arena);
                        if (l->pending && now_ms() >= l->due_ms)
                                lose(l, "no answer within %llu s", (unsigned long long)batch_ms(&batches[i]) / 1000);
                        if (was_pending && !l->pending)
                                tell(a, batches, count, i, listener);
                }
        }
        free(fds);
        for (size_t i = 0; i < count; i++) {
                /* Answers outlive the agents. */
                struct slice why = arena_copy(arena, slice_str(a->links[batches[i].node].why));

                for (size_t k = 0; k < batches[i].count; k++)
                        if (batches[i].answers[k].state == ANSWER_NO_NODE)
                                batches[i].answers[k].err = why;
        }
}

struct asker agents_asker(struct agents *a) {
        return (struct asker){a, ask_agents};
}

/* How long an agent may take to end once its input is closed. */
#define END_MS 2000

static void end_link(struct link *l) {
        struct os_child_exit x;
        struct pollfd fd;

        lose(l, "ended");
        if (l->started && l->child.pid > 0) {
                fd = (struct pollfd){l->child.pidfd, POLLIN, 0};
                if (poll(&fd, 1, END_MS) <= 0)
                        os_child_kill_group(&l->child, SIGKILL);
                os_child_reap(&l->child, true, &x);
        }
        buf_free(&l->said);
        buf_free(&l->line);
        free(l->why);
}

void agents_free(struct agents *a) {
        if (!a)
                return;
        for (size_t i = 0; i < a->count; i++)
                end_link(&a->links[i]);
        free(a->links);
        free(a->self);
        free(a);
}
