/* agent.c - questions to other machines: one process per node that reads batches as lines of JSON and answers with lines of
 * JSON. Here are both ends. What is run over there are the two tools with the words given, started without a shell. */
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "os/os.h"
#include "verify/verify.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

/* So many tools run at once on a node: they are short, and the driver serialises much of it anyway. */
#define RUNNING_MAX 32
/* After so many commands without an answer the rest of a lane is not asked: the NPU hangs, and waiting for each of its
 * commands would take minutes. */
#define LANE_PATIENCE 2
/* A batch of 64 NPUs with 14 questions each takes 100 KiB, its answers, at their largest, 2 * 900 * 64 KiB; honest ones 1 MiB. */
#define BATCH_LINE_MAX (256u << 20)

/* ---- running tools --------------------------------------------------------------------------------------------------- */

struct job {
        struct question question;
        struct answer answer;
        struct buf out, err;
        enum { JOB_WAITING, JOB_RUNNING, JOB_DONE } state;
        struct os_child child;
        int out_fd, err_fd; /* -1: at its end */
        bool ended;         /* the process has, its pipes may hold more */
        uint64_t due_ms;    /* WAITING: not before; RUNNING: ended by then */
        const char *path;   /* of the program */
};

static uint64_t now_ms(void) {
        return clock_mono_ns() / NS_PER_MS;
}

#define HCCN_TOOL_DEFAULT "/usr/local/Ascend/driver/tools/hccn_tool"

/* The generator's own variable, the driver's place, the PATH. */
static const char *tool_path(const char *tool) {
        const char *given = getenv("HCCN_TOOL_PATH");

        if (strcmp(tool, "hccn_tool") != 0)
                return tool;
        if (given && *given)
                return given;
        return access(HCCN_TOOL_DEFAULT, X_OK) == 0 ? HCCN_TOOL_DEFAULT : tool;
}

static void read_conf(struct job *job) {
        const char *path = getenv("HCCN_CONF_PATH");
        struct error e = {0};
        int r = file_read_whole(path && *path ? path : "/etc/hccn.conf", ANSWER_BYTES_MAX, &job->out, &e);

        job->state = JOB_DONE;
        job->answer.state = r == -ENOENT ? ANSWER_NO_TOOL : ANSWER_GIVEN;
        job->answer.status = r < 0;
        if (r < 0)
                buf_add_str(&job->err, e.text);
}

static void fail_job(struct job *job, int r, const struct error *e) {
        job->state = JOB_DONE;
        job->answer.state = r == -ENOENT ? ANSWER_NO_TOOL : ANSWER_GIVEN;
        job->answer.status = 126;
        buf_add_str(&job->err, e->text);
}

static void start_job(struct job *job) {
        const char *argv[QUESTION_WORDS + 1];
        struct os_child_options o = {.argv = argv, .stdin_fd = -1, .own_group = true, .death_signal = SIGKILL};
        int out[2] = {-1, -1}, err[2] = {-1, -1}, r = 0;
        struct error e = {0};

        if (!strcmp(job->question.words[0], "hccn.conf")) {
                read_conf(job);
                return;
        }
        memcpy(argv, job->question.words, sizeof(argv));
        argv[0] = tool_path(argv[0]);
        if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
                r = error_set(&e, -errno, "no pipe for %s: %s", argv[0], strerror(errno));
        o.stdout_fd = out[1];
        o.stderr_fd = err[1];
        if (r == 0)
                r = os_child_start(&o, &job->child, &e);
        if (out[1] >= 0)
                close(out[1]);
        if (err[1] >= 0)
                close(err[1]);
        if (r < 0) {
                if (out[0] >= 0)
                        close(out[0]);
                if (err[0] >= 0)
                        close(err[0]);
                fail_job(job, r, &e);
                return;
        }
        job->out_fd = out[0];
        job->err_fd = err[0];
        fcntl(out[0], F_SETFL, O_NONBLOCK);
        fcntl(err[0], F_SETFL, O_NONBLOCK);
        job->state = JOB_RUNNING;
        job->due_ms = now_ms() + ANSWER_DEADLINE_MS;
}

/* Take what is there; beyond the limit it is read and dropped, so that the tool can end. */
static void drain(int *fd, struct buf *into) {
        char chunk[4096];
        ssize_t n;

        while ((n = read(*fd, chunk, sizeof(chunk))) > 0) {
                size_t room = ANSWER_BYTES_MAX - into->len;

                buf_append(into, chunk, (size_t)n < room ? (size_t)n : room);
        }
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return;
        close(*fd);
        *fd = -1;
}

static void end_job(struct job *job, enum answer_state state) {
        if (job->out_fd >= 0)
                close(job->out_fd);
        if (job->err_fd >= 0)
                close(job->err_fd);
        job->out_fd = job->err_fd = -1;
        job->answer.state = state;
        job->state = JOB_DONE;
}

static void reap_job(struct job *job) {
        struct os_child_exit x;

        if (os_child_reap(&job->child, false, &x) < 0)
                return;
        job->ended = true;
        job->answer.status = x.signaled ? 128 + x.code : x.code;
}

static void check_job(struct job *job) {
        if (!job->ended)
                reap_job(job);
        if (job->out_fd >= 0)
                drain(&job->out_fd, &job->out);
        if (job->err_fd >= 0)
                drain(&job->err_fd, &job->err);
        /* A child that the tool left behind may hold the pipes: the tool's own end is what counts. */
        if (job->ended)
                end_job(job, ANSWER_GIVEN);
        else if (now_ms() >= job->due_ms) {
                struct os_child_exit x;

                os_child_kill_group(&job->child, SIGKILL);
                os_child_reap(&job->child, true, &x);
                end_job(job, ANSWER_LATE);
        }
}

/* Whether the job's lane is free, and whether it has run out of patience with it. */
static bool lane_is_free(const struct job *jobs, size_t at, bool *ret_hopeless) {
        unsigned late = 0;

        for (size_t i = 0; i < at; i++) {
                if (jobs[i].question.lane != jobs[at].question.lane)
                        continue;
                if (jobs[i].state != JOB_DONE)
                        return false;
                late += jobs[i].answer.state == ANSWER_LATE;
        }
        *ret_hopeless = late >= LANE_PATIENCE;
        return true;
}

static size_t start_jobs(struct job *jobs, size_t count, size_t running) {
        size_t left = 0;

        for (size_t i = 0; i < count; i++) {
                bool hopeless;

                if (jobs[i].state != JOB_WAITING)
                        continue;
                left++;
                if (running >= RUNNING_MAX || now_ms() < jobs[i].due_ms || !lane_is_free(jobs, i, &hopeless))
                        continue;
                if (hopeless) {
                        jobs[i].state = JOB_DONE;
                        jobs[i].answer.state = ANSWER_LATE;
                        continue;
                }
                start_job(&jobs[i]);
                running += jobs[i].state == JOB_RUNNING;
        }
        return left;
}

/* Until something of the running jobs happens, or `ms`. */
static void wait_for_jobs(const struct job *jobs, size_t count, int ms) {
        struct pollfd fds[3 * RUNNING_MAX];
        nfds_t n = 0;

        for (size_t i = 0; i < count; i++) {
                if (jobs[i].state != JOB_RUNNING)
                        continue;
                fds[n++] = (struct pollfd){jobs[i].child.pidfd, POLLIN, 0};
                if (jobs[i].out_fd >= 0)
                        fds[n++] = (struct pollfd){jobs[i].out_fd, POLLIN, 0};
                if (jobs[i].err_fd >= 0)
                        fds[n++] = (struct pollfd){jobs[i].err_fd, POLLIN, 0};
        }
        poll(fds, n, ms);
}

static void run_jobs(struct job *jobs, size_t count) {
        for (size_t i = 0; i < count; i++)
                jobs[i].due_ms = now_ms() + jobs[i].question.wait_ms;
        for (;;) {
                size_t running = 0, waiting;

                for (size_t i = 0; i < count; i++)
                        if (jobs[i].state == JOB_RUNNING) {
                                check_job(&jobs[i]);
                                running += jobs[i].state == JOB_RUNNING;
                        }
                waiting = start_jobs(jobs, count, running);
                running = 0;
                for (size_t i = 0; i < count; i++)
                        running += jobs[i].state == JOB_RUNNING;
                if (!running && !waiting)
                        return;
                wait_for_jobs(jobs, count, 50);
        }
}

/* ---- the agent's end -------------------------------------------------------------------------------------------------- */

/* The tools that may be asked for: nothing else is ever started, whatever the line says. */
static bool read_question(yyjson_val *v, struct question *ret_question) {
        yyjson_val *words = yyjson_obj_get(v, "words"), *word;
        size_t i, n;
        struct question q = {
            .lane = (uint32_t)json_get_i64(v, "lane", 0), .wait_ms = (uint32_t)json_get_i64(v, "wait_ms", 0)};

        if (!yyjson_arr_size(words) || yyjson_arr_size(words) > QUESTION_WORDS)
                return false;
        yyjson_arr_foreach(words, i, n, word) {
                q.words[i] = yyjson_get_str(word);
                if (!q.words[i])
                        return false;
        }
        *ret_question = q;
        return !strcmp(q.words[0], "hccn_tool") || !strcmp(q.words[0], "npu-smi") || !strcmp(q.words[0], "hccn.conf");
}

static void write_answers(struct job *jobs, size_t count, struct buf *out) {
        struct json_writer w = {.out = out};

        json_open(&w, '[');
        for (size_t i = 0; i < count; i++) {
                json_open(&w, '{');
                json_key(&w, "state");
                json_i64(&w, jobs[i].answer.state);
                json_key(&w, "status");
                json_i64(&w, jobs[i].answer.status);
                json_key(&w, "out");
                json_string(&w, buf_slice(&jobs[i].out));
                json_key(&w, "err");
                json_string(&w, buf_slice(&jobs[i].err));
                json_close(&w, '}');
                buf_free(&jobs[i].out);
                buf_free(&jobs[i].err);
        }
        json_close(&w, ']');
        buf_add_char(out, '\n');
}

static int answer_line(struct slice line, int out) {
        yyjson_doc *doc;
        yyjson_val *v;
        size_t i, n, count;
        struct job *jobs;
        struct buf answers = {0};
        int r = json_parse(line, &doc, NULL);

        if (r < 0)
                return r;
        count = yyjson_arr_size(yyjson_doc_get_root(doc));
        jobs = calloc(count + 1, sizeof(*jobs));
        r = jobs && count ? 0 : -EINVAL;
        yyjson_arr_foreach(yyjson_doc_get_root(doc), i, n, v) {
                if (r == 0 && !read_question(v, &jobs[i].question))
                        r = -EINVAL;
        }
        if (r == 0) {
                run_jobs(jobs, count);
                write_answers(jobs, count, &answers);
                r = buf_ok(&answers) ? file_write_fd(out, buf_slice(&answers)) : -ENOMEM;
        }
        buf_free(&answers);
        free(jobs);
        yyjson_doc_free(doc);
        return r;
}

int agent_serve(int in, int out) {
        struct buf held = {0};
        int r = 0;

        while (r == 0) {
                size_t end = slice_find(buf_slice(&held), '\n', 0);
                char *room;
                ssize_t n;

                if (end < held.len) {
                        r = answer_line(slice_sub(buf_slice(&held), 0, end), out);
                        buf_consume(&held, end + 1);
                        continue;
                }
                room = held.len < BATCH_LINE_MAX ? buf_reserve(&held, 65536) : NULL;
                if (!room) {
                        r = -ENOMEM;
                        break;
                }
                n = read(in, room, 65536);
                if (n == 0)
                        break;
                if (n < 0 && errno != EINTR)
                        r = -errno;
                if (n > 0)
                        buf_commit(&held, (size_t)n);
        }
        buf_free(&held);
        return r;
}

/* ---- the asker's end -------------------------------------------------------------------------------------------------- */

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
        /* The words of the command are constant; the destination cannot be taken for an option behind "--". */
        const char *remote[] = {"ssh", "-T", "-oBatchMode=yes", "-oConnectTimeout=10", "--", l->target.ssh,
            l->target.binary ? l->target.binary : "baton", "verify", "--agent", NULL};
        const char *local[] = {a->self, "verify", "--agent", NULL};
        int in[2] = {-1, -1}, out[2] = {-1, -1}, r;
        struct error e = {0};
        struct os_child_options o = {.argv = l->target.ssh ? remote : local,
            .stderr_fd = STDERR_FILENO,
            .own_group = true,
            .death_signal = SIGTERM};

        l->started = true;
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

static void push(struct link *l) {
        ssize_t n = write(l->to, l->line.ptr, l->line.len);

        if (n > 0)
                buf_consume(&l->line, (size_t)n);
        else if (n < 0 && errno != EAGAIN && errno != EINTR)
                lose(l, "%s ended before it was asked", l->target.ssh ? "ssh or baton over there" : "the agent");
}

static void pull(struct link *l, const struct batch *b, struct arena *arena) {
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
        l->pending = false;
        if (!read_answers(slice_sub(buf_slice(&l->said), 0, end), b, arena))
                lose(l, "its answer is not an agent's; is baton over there of this version?");
        buf_consume(&l->said, end + 1);
}

static void ask_agents(void *context, struct batch *batches, size_t count, struct arena *arena) {
        struct agents *a = context;
        struct pollfd *fds = calloc(2 * count + 1, sizeof(*fds));

        for (size_t i = 0; i < count; i++) {
                begin(a, &batches[i]);
                for (size_t k = 0; k < batches[i].count; k++)
                        batches[i].answers[k] = (struct answer){.state = ANSWER_NO_NODE};
        }
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

                        if (l->pending && fds[2 * i + 1].revents)
                                push(l);
                        if (l->pending && fds[2 * i].revents)
                                pull(l, &batches[i], arena);
                        if (l->pending && now_ms() >= l->due_ms)
                                lose(l, "no answer within %llu s", (unsigned long long)batch_ms(&batches[i]) / 1000);
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
