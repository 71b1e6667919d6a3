/* agent.c - the end of an agent that runs on the node: reads batches as lines of JSON, answers with lines of JSON. What it
 * runs are the two tools with the words given, two fixed commands that list firewall rules, and this program for what the host
 * tells about itself; all started without a shell. */
#include "verify/agent.h"
#include "base/file.h"
#include "base/json.h"
#include "os/os.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

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
        size_t bytes_max;   /* of its output */
};

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

/* What is answered here and at once (an attempt at ports takes as long as its deadlines). False: by a process. */
static bool answer_here(struct job *job, struct doors *doors) {
        const char *const *words = job->question.words;
        int r = 0;

        if (!strcmp(words[0], "hccn.conf")) {
                read_conf(job);
                return true;
        }
        if (strcmp(words[0], "host") != 0 || !strcmp(words[1], "facts") || !strcmp(words[1], "model"))
                return false;
        if (!strcmp(words[1], "clock"))
                buf_add_u64(&job->out, clock_wall_ns());
        else if (!strcmp(words[1], "open"))
                r = doors_open(doors, words[2], words[3], &job->out);
        else if (!strcmp(words[1], "try"))
                r = doors_try(words[2], words[3], &job->out);
        else
                doors_shut(doors);
        job->state = JOB_DONE;
        job->answer.status = r < 0;
        if (r < 0)
                buf_add_str(&job->err, strerror(-r));
        return true;
}

/* This program once more, for the answers that may hang. */
static void fill_self(const char **argv) {
        static const char *const head[] = {"/proc/self/exe", "verify", "--agent-answer", "--"};
        const char *words[QUESTION_WORDS + 1];

        memcpy(words, argv, sizeof(words));
        memcpy(argv, head, sizeof(head));
        memcpy(argv + 4, words + 1, QUESTION_WORDS * sizeof(*argv));
}

static void start_job(struct job *job, struct doors *doors) {
        const char *argv[QUESTION_WORDS + 5] = {0};
        struct os_child_options o = {.argv = argv, .stdin_fd = -1, .own_group = true, .death_signal = SIGKILL};
        int out[2] = {-1, -1}, err[2] = {-1, -1}, r = 0;
        struct error e = {0};

        if (answer_here(job, doors))
                return;
        memcpy(argv, job->question.words, sizeof(job->question.words));
        if (!strcmp(argv[0], "host"))
                fill_self(argv);
        else
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
static void drain(int *fd, struct buf *into, size_t bytes_max) {
        char chunk[4096];
        ssize_t n;

        while ((n = read(*fd, chunk, sizeof(chunk))) > 0) {
                size_t room = bytes_max - into->len;

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
                drain(&job->out_fd, &job->out, job->bytes_max);
        if (job->err_fd >= 0)
                drain(&job->err_fd, &job->err, ANSWER_BYTES_MAX);
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

static size_t start_jobs(struct job *jobs, size_t count, size_t running, struct doors *doors) {
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
                start_job(&jobs[i], doors);
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

static void run_jobs(struct job *jobs, size_t count, struct doors *doors) {
        for (size_t i = 0; i < count; i++) {
                jobs[i].due_ms = now_ms() + jobs[i].question.wait_ms;
                jobs[i].bytes_max = strcmp(jobs[i].question.words[0], "host") ? ANSWER_BYTES_MAX : HOST_BYTES_MAX;
        }
        for (;;) {
                size_t running = 0, waiting;

                for (size_t i = 0; i < count; i++)
                        if (jobs[i].state == JOB_RUNNING) {
                                check_job(&jobs[i]);
                                running += jobs[i].state == JOB_RUNNING;
                        }
                waiting = start_jobs(jobs, count, running, doors);
                running = 0;
                for (size_t i = 0; i < count; i++)
                        running += jobs[i].state == JOB_RUNNING;
                if (!running && !waiting)
                        return;
                wait_for_jobs(jobs, count, 50);
        }
}

/* ---- the agent's end -------------------------------------------------------------------------------------------------- */

/* What may be asked for: nothing else is ever started, whatever the line says. `words`: how many, 0: as many as there are. */
static const struct {
        const char *first, *second;
        size_t words;
} questions[] = {
    {"hccn_tool", NULL, 0},
    {"npu-smi", NULL, 0},
    {"hccn.conf", NULL, 1},
    {"host", "facts", 4},
    {"host", "model", 3},
    {"host", "clock", 2},
    {"host", "open", 4},
    {"host", "try", 4},
    {"host", "shut", 2},
    {"nft", "list", 3}, /* list ruleset */
    {"iptables", "-S", 2},
};

static bool may_be_asked(const char *const *words, size_t count) {
        for (size_t i = 0; i < sizeof(questions) / sizeof(*questions); i++) {
                if (strcmp(words[0], questions[i].first) != 0 || (questions[i].words && questions[i].words != count) ||
                    (questions[i].second && strcmp(words[1], questions[i].second) != 0))
                        continue;
                return strcmp(words[0], "nft") != 0 || !strcmp(words[2], "ruleset");
        }
        return false;
}

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
        return may_be_asked(q.words, n);
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

static int answer_line(struct slice line, int out, struct doors *doors) {
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
                run_jobs(jobs, count, doors);
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
        struct doors doors = {0};
        int r = 0;

        while (r == 0) {
                size_t end = slice_find(buf_slice(&held), '\n', 0);
                char *room;
                ssize_t n;

                if (end < held.len) {
                        r = answer_line(slice_sub(buf_slice(&held), 0, end), out, &doors);
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
        doors_shut(&doors);
        buf_free(&held);
        return r;
}
