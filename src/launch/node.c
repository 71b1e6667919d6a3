/* node.c - a node's end of remote.h: what `baton node` answers on its standard input and output.
 *
 * It keeps no state but what "open" told it: everything else is asked of the supervisor, its files and its ranks. */
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "http/fetch.h"
#include "launch/launch.h"
#include "launch/remote.h"
#include "os/os.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#define CALL_MS       5000u
#define LOAD_MS       1000u
#define UP_MS         20000u /* to its first answer: reading the file, checking ports, opening the socket */
#define GATEWAY_MS    10000u
#define LOGS_WAIT_MAX 10000
#define LOG_PIECE_MAX 65536
#define LOG_LINES_MAX 100000

struct node_end {
        const char *self;
        struct arena arena; /* of the open file */
        struct cluster *cluster;
        struct plan *plan;
        struct slice node, text; /* node: empty: all of the file */
        struct launch_paths paths;
        struct http_fetcher *fetcher;
};

/* What an operation answers: members of the answer's object. */
typedef int (*operation)(struct node_end *n, yyjson_val *request, struct json_writer *answer, struct error *e);

/* ---- open --------------------------------------------------------------------------------------------------------------- */

static int make_plan(struct node_end *n, const char *file, struct error *e) {
        struct findings findings = {.arena = &n->arena};
        int r = cluster_parse(file, n->text, &n->arena, &n->cluster, &findings);

        if (r == 0)
                r = plan_make(n->cluster, n->self, &n->arena, &n->plan, &findings);
        if (r < 0 && findings.count)
                return error_set(e, r, "the cluster file has errors: %s", findings.items[0].cause);
        if (r < 0)
                return error_set(e, r, "cannot read the cluster file: %s", strerror(-r));
        if (n->node.len && cluster_find_node(n->cluster, n->node) < 0)
                return error_set(e, -EINVAL, "the cluster file has no node `%.*s`", SLICE_ARG(n->node));
        return 0;
}

static int op_open(struct node_end *n, yyjson_val *request, struct json_writer *answer, struct error *e) {
        const char *directory, *file;
        int r;

        (void)answer;
        arena_free(&n->arena);
        n->plan = NULL;
        n->node = arena_copy(&n->arena, json_get_slice(request, "node"));
        n->text = arena_copy(&n->arena, json_get_slice(request, "text"));
        file = arena_copy(&n->arena, json_get_slice(request, "file")).ptr;
        directory = arena_copy(&n->arena, json_get_slice(request, "directory")).ptr;
        if (!n->node.ptr || !n->text.ptr || !file || !directory)
                return error_set(e, -ENOMEM, "out of memory");
        /* Relative paths of the file mean the same as over there where that folder exists; else the user's own. */
        if (*directory && chdir(directory) < 0 && errno != ENOENT && errno != EACCES && errno != ENOTDIR)
                return error_set(e, -errno, "cannot go to %s: %s", directory, strerror(errno));
        r = make_plan(n, file, e);
        if (r == 0)
                r = launch_paths(n->cluster, n->node, false, &n->paths, e);
        if (r < 0)
                n->plan = NULL;
        return r;
}

/* ---- up, stop ----------------------------------------------------------------------------------------------------------- */

static int start_supervisor(struct node_end *n, struct os_child *ret_child, struct error *e) {
        const char *name = arena_copy(&n->arena, n->node).ptr;
        const char *argv[] = {n->self, "supervise", n->paths.copy, "--node", name, "--state-dir", n->paths.dir, NULL};
        struct os_child_options o = {.argv = argv, .stdin_fd = -1, .own_session = true};
        int fd, r;

        if (!name)
                return error_set(e, -ENOMEM, "out of memory");
        fd = open(n->paths.supervisor_log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
                return error_set(e, -errno, "cannot write %s: %s", n->paths.supervisor_log, strerror(errno));
        o.stdout_fd = o.stderr_fd = fd;
        r = os_child_start(&o, ret_child, e);
        close(fd);
        return r;
}

/* It ended before it answered: its last line tells why. */
static int explain_supervisor(const struct node_end *n, struct os_child *child, struct error *e) {
        struct os_child_exit ended;
        struct buf words = {0};
        struct slice rest, line, last = SLICE_NONE;
        char how[64];

        os_child_reap(child, true, &ended);
        os_child_exit_text(&ended, how, sizeof(how));
        file_read_whole(n->paths.supervisor_log, 1 << 20, &words, NULL);
        for (rest = slice_trim(buf_slice(&words)); slice_split(&rest, '\n', &line);)
                last = line;
        if (slice_starts(last, SLICE_LIT("baton: ")))
                last = slice_sub(last, 7, last.len);
        if (last.len)
                error_set(e, 0, "%.*s", SLICE_ARG(last));
        else
                error_set(e, 0, "the supervisor ended (%s) and said nothing", how);
        buf_free(&words);
        return !ended.signaled && ended.code == 2 ? -EINVAL : -ECANCELED; /* 2: wrong use, or up already */
}

/* Whether the supervisor that answers is this one: of two started at once, the one that has the lock does. */
static bool answers_itself(const struct node_end *n, const struct os_child *child) {
        struct launch_status status = {0};
        struct arena arena = {0};
        struct buf answer = {0};
        bool itself = launch_call(&n->paths, "GET", "/status", CALL_MS, &answer, NULL) == 0 &&
                      launch_status_parse(buf_slice(&answer), &arena, &status, NULL) == 0 && status.pid == child->pid;

        buf_free(&answer);
        arena_free(&arena);
        return itself;
}

static int await_supervisor(const struct node_end *n, struct os_child *child, struct error *e) {
        uint64_t end = clock_mono_ns() + UP_MS * NS_PER_MS;

        for (;;) {
                struct pollfd fd = {child->pidfd, POLLIN, 0};

                if (poll(&fd, 1, 20) > 0)
                        return explain_supervisor(n, child, e);
                if (answers_itself(n, child))
                        return 0;
                if (clock_mono_ns() > end) {
                        os_child_signal(child, SIGTERM);
                        return error_set(e, -ETIMEDOUT, "the supervisor did not answer within 20 s; see %s",
                            n->paths.supervisor_log);
                }
        }
}

static int op_up(struct node_end *n, yyjson_val *request, struct json_writer *answer, struct error *e) {
        struct os_child child;
        struct buf now = {0};
        int r;

        (void)request;
        (void)answer;
        if (!n->node.len)
                return error_set(e, -EINVAL, "`up` is for one node");
        r = launch_paths(n->cluster, n->node, true, &n->paths, e);
        if (r < 0)
                return r;
        if (launch_call(&n->paths, "GET", "/status", CALL_MS, &now, NULL) == 0)
                r = error_set(e, -EALREADY, "this cluster file is up already");
        buf_free(&now);
        if (r == 0)
                r = os_write_file_atomic(n->paths.copy, n->text, 0600, e);
        if (r == 0)
                r = start_supervisor(n, &child, e);
        if (r == 0)
                r = await_supervisor(n, &child, e);
        return r;
}

/* The supervisor's lock is free when it has ended, and not before. */
static bool wait_unlocked(const char *lock, uint64_t ms) {
        uint64_t end = clock_mono_ns() + ms * NS_PER_MS;
        int fd = open(lock, O_RDWR | O_CLOEXEC);
        bool free_now;

        if (fd < 0)
                return true;
        while (!(free_now = flock(fd, LOCK_EX | LOCK_NB) == 0) && clock_mono_ns() < end)
                poll(NULL, 0, 20);
        close(fd);
        return free_now;
}

static bool is_not_up(int r) {
        return r == -ENOENT || r == -ECONNREFUSED;
}

static int op_stop(struct node_end *n, yyjson_val *request, struct json_writer *answer, struct error *e) {
        struct buf b = {0};
        int r = launch_call(&n->paths, "POST", "/stop", CALL_MS, &b, e);

        (void)request;
        buf_free(&b);
        json_key(answer, "was_up");
        json_bool(answer, !is_not_up(r));
        if (is_not_up(r))
                return 0;
        if (r == 0 && !wait_unlocked(n->paths.lock, launch_stop_ms(n->cluster)))
                r = error_set(e, -ETIMEDOUT, "the supervisor has not ended in time; see %s", n->paths.supervisor_log);
        return r;
}

/* ---- status ------------------------------------------------------------------------------------------------------------- */

/* The first sample of a metric, whatever its labels. */
static bool find_sample(struct slice text, const char *name, double *ret_value) {
        struct slice line, rest = text;
        size_t len = strlen(name);

        while (slice_split(&rest, '\n', &line)) {
                size_t space = line.len;

                if (!slice_starts(line, slice_str(name)) || line.len <= len ||
                    (line.ptr[len] != '{' && line.ptr[len] != ' '))
                        continue;
                while (space && line.ptr[space - 1] != ' ')
                        space--;
                return slice_to_double(slice_sub(line, space, line.len), ret_value) == 0;
        }
        return false;
}

/* GET of a rank; empty when it does not answer with 200. */
static struct buf get_of(struct node_end *n, struct slice url, const char *path) {
        struct http_fetched fetched;
        struct buf body = {0};
        char address[300];

        snprintf(address, sizeof(address), "%.*s", SLICE_ARG(url));
        if (http_fetch_url(n->fetcher, address, path, SLICE_NONE, NULL, LOAD_MS, &body, &fetched, NULL) < 0 ||
            fetched.status != 200)
                buf_reset(&body);
        return body;
}

static void write_load(struct node_end *n, const struct process_status *p, struct json_writer *w) {
        static const struct {
                const char *key, *metric;
        } figures[] = {{"running", "vllm:num_requests_running"}, {"waiting", "vllm:num_requests_waiting"},
            {"kv", "vllm:kv_cache_usage_perc"}};
        struct buf metrics = get_of(n, p->url, "/metrics"), version = {0};
        yyjson_doc *doc = NULL;
        double value;

        if (metrics.len) /* one that hangs is waited for once */
                version = get_of(n, p->url, "/version");
        json_key_slice(w, p->name);
        json_open(w, '{');
        for (size_t i = 0; i < sizeof(figures) / sizeof(*figures); i++)
                if (find_sample(buf_slice(&metrics), figures[i].metric, &value)) {
                        json_key(w, figures[i].key);
                        json_double(w, value);
                }
        if (json_parse(buf_slice(&version), &doc, NULL) == 0) {
                struct slice text = json_get_slice(yyjson_doc_get_root(doc), "version");

                if (text.len) {
                        json_key(w, "version");
                        json_string(w, text);
                }
                yyjson_doc_free(doc);
        }
        json_close(w, '}');
        buf_free(&metrics);
        buf_free(&version);
}

static void write_loads(struct node_end *n, struct slice status, struct json_writer *w) {
        struct launch_status s = {0};
        struct arena arena = {0};

        json_key(w, "load");
        json_open(w, '{');
        if (launch_status_parse(status, &arena, &s, NULL) == 0)
                for (size_t i = 0; i < s.count; i++)
                        if (s.processes[i].state == PROCESS_READY && !slice_is(s.processes[i].role, "gateway"))
                                write_load(n, &s.processes[i], w);
        json_close(w, '}');
        arena_free(&arena);
}

static int op_status(struct node_end *n, yyjson_val *request, struct json_writer *answer, struct error *e) {
        struct buf status = {0};
        int r = launch_call(&n->paths, "GET", "/status", CALL_MS, &status, e);

        json_key(answer, "up");
        json_bool(answer, !is_not_up(r));
        if (r == 0) {
                json_key(answer, "status");
                json_raw(answer, buf_slice(&status));
                if (json_get_bool(request, "load", false))
                        write_loads(n, buf_slice(&status), answer);
        }
        buf_free(&status);
        return is_not_up(r) ? 0 : r;
}

/* ---- one process -------------------------------------------------------------------------------------------------------- */

static int op_process(struct node_end *n, yyjson_val *request, struct json_writer *answer, struct error *e) {
        struct slice verb = json_get_slice(request, "op"), name = json_get_slice(request, "name");
        struct buf b = {0};
        char path[200];
        int r;

        (void)answer;
        snprintf(path, sizeof(path), "/%.*s/%.*s", SLICE_ARG(verb), SLICE_ARG(slice_sub(name, 0, 150)));
        for (const char *c = path; *c; c++)
                if (*c <= ' ' || *c == '?' || *c == '#' || *c > '~')
                        return error_set(e, -EINVAL, "no process has such a name");
        r = launch_call(&n->paths, "POST", path, CALL_MS, &b, e);
        buf_free(&b);
        return r;
}

/* ---- logs --------------------------------------------------------------------------------------------------------------- */

struct log_wish {
        struct slice name;
        int64_t at; /* -1: `lines` from the end */
        unsigned lines;
};

static off_t log_size(const struct node_end *n, struct slice name) {
        char path[400];
        struct stat st;

        snprintf(path, sizeof(path), "%s/%.*s.log", n->paths.logs, SLICE_ARG(name));
        return stat(path, &st) == 0 ? st.st_size : -1;
}

/* What came behind `at`, whole lines of it, unless one is longer than a piece. */
static void read_news(const struct node_end *n, struct log_wish *w, struct buf *out) {
        char path[400], *room = buf_reserve(out, LOG_PIECE_MAX), *last;
        int fd;
        ssize_t got;

        snprintf(path, sizeof(path), "%s/%.*s.log", n->paths.logs, SLICE_ARG(w->name));
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 || !room) {
                if (fd >= 0)
                        close(fd);
                return;
        }
        if (lseek(fd, 0, SEEK_END) < w->at) /* a new file: the old one was moved on */
                w->at = 0;
        got = pread(fd, room, LOG_PIECE_MAX, w->at);
        close(fd);
        last = got > 0 ? memrchr(room, '\n', (size_t)got) : NULL;
        if (last || got == LOG_PIECE_MAX) {
                size_t whole = last ? (size_t)(last - room) + 1 : (size_t)got;

                buf_commit(out, whole);
                w->at += (int64_t)whole;
        }
}

static void write_log(const struct node_end *n, struct log_wish *w, struct json_writer *answer) {
        struct buf text = {0};

        if (w->at >= 0)
                read_news(n, w, &text);
        else if (log_size(n, w->name) >= 0) {
                w->at = log_size(n, w->name);
                if (w->lines)
                        launch_last_words(&n->paths, w->name, w->lines, &text);
        }
        json_open(answer, '{');
        json_key(answer, "name");
        json_string(answer, w->name);
        json_key(answer, "at");
        json_i64(answer, w->at);
        json_key(answer, "text");
        json_string(answer, buf_slice(&text));
        json_close(answer, '}');
        buf_free(&text);
}

static bool is_name(const struct node_end *n, struct slice name) {
        for (size_t i = 0; i < n->plan->rank_count; i++)
                if (slice_eq(n->plan->ranks[i].name, name))
                        return true;
        return slice_is(name, "gateway");
}

/* A line that is not ended yet (a progress bar) is none: whoever asks would be answered, and ask, without a pause. */
static bool has_news(const struct node_end *n, struct log_wish w) {
        int64_t at = w.at;
        struct buf text = {0};
        bool news = at < 0;

        if (!news && log_size(n, w.name) != at) {
                read_news(n, &w, &text);
                news = text.len > 0 || w.at != at;
        }
        buf_free(&text);
        return news;
}

static void wait_for_news(const struct node_end *n, const struct log_wish *wishes, size_t count, int64_t ms) {
        struct pollfd fd = {inotify_init1(IN_CLOEXEC), POLLIN, 0};

        if (fd.fd < 0)
                return;
        /* Watch first, then look: what comes in between is not missed. */
        if (inotify_add_watch(fd.fd, n->paths.logs, IN_MODIFY | IN_CREATE | IN_MOVED_TO) >= 0) {
                bool news = false;

                for (size_t i = 0; i < count; i++)
                        news |= has_news(n, wishes[i]);
                if (!news)
                        poll(&fd, 1, (int)ms);
        } else
                poll(NULL, 0, (int)ms); /* nothing was ever written here */
        close(fd.fd);
}

static int op_logs(struct node_end *n, yyjson_val *request, struct json_writer *answer, struct error *e) {
        yyjson_val *of = json_get(request, "of"), *item;
        struct log_wish *wishes = calloc(yyjson_arr_size(of) + 1, sizeof(*wishes));
        int64_t wait = json_get_i64(request, "wait_ms", 0);
        size_t i, max, count = 0;

        if (!wishes)
                return error_set(e, -ENOMEM, "out of memory");
        yyjson_arr_foreach(of, i, max, item) {
                int64_t lines = json_get_i64(item, "lines", 0);

                wishes[count] = (struct log_wish){json_get_slice(item, "name"), json_get_i64(item, "at", -1),
                    lines > 0 && lines <= LOG_LINES_MAX ? (unsigned)lines : 0};
                if (is_name(n, wishes[count].name))
                        count++;
        }
        if (wait > 0)
                wait_for_news(n, wishes, count, wait < LOGS_WAIT_MAX ? wait : LOGS_WAIT_MAX);
        json_key(answer, "logs");
        json_open(answer, '[');
        for (i = 0; i < count; i++)
                write_log(n, &wishes[i], answer);
        json_close(answer, ']');
        free(wishes);
        return 0;
}

/* ---- the gateway -------------------------------------------------------------------------------------------------------- */

static const char *admin_key(const struct plan *p) {
        for (const char *const *a = p->gateway_argv; a && a[0] && a[1]; a++)
                if (!strcmp(*a, "--admin-key"))
                        return a[1];
        return NULL;
}

static int op_gateway(struct node_end *n, yyjson_val *request, struct json_writer *answer, struct error *e) {
        struct slice path = json_get_slice(request, "path"), body = json_get_slice(request, "body");
        struct http_fetched fetched;
        struct buf text = {0};
        char url[300], target[200];
        int r;

        if (!n->plan->gateway_argv)
                return error_set(e, -ENOENT, "the cluster file has no gateway");
        snprintf(url, sizeof(url), "%.*s", SLICE_ARG(n->plan->gateway_url));
        snprintf(target, sizeof(target), "%.*s", SLICE_ARG(path));
        r = http_fetch_url(n->fetcher, url, target, body, admin_key(n->plan), GATEWAY_MS, &text, &fetched, e);
        if (r == 0) {
                json_key(answer, "status");
                json_i64(answer, fetched.status);
                json_key(answer, "answer");
                json_string(answer, buf_slice(&text));
        }
        buf_free(&text);
        return r;
}

/* ---- requests ----------------------------------------------------------------------------------------------------------- */

static const struct {
        const char *name;
        operation run;
} operations[] = {{"open", op_open}, {"up", op_up}, {"status", op_status}, {"stop", op_stop}, {"restart", op_process},
    {"halt", op_process}, {"start", op_process}, {"logs", op_logs}, {"gateway", op_gateway}};

static int perform(struct node_end *n, yyjson_val *request, struct json_writer *answer, struct error *e) {
        struct slice op = json_get_slice(request, "op");

        for (size_t i = 0; i < sizeof(operations) / sizeof(*operations); i++) {
                if (!slice_is(op, operations[i].name))
                        continue;
                if (!n->plan && operations[i].run != op_open)
                        return error_set(e, -EINVAL, "no cluster file is open");
                return operations[i].run(n, request, answer, e);
        }
        return error_set(e, -EINVAL, "unknown operation `%.*s`", SLICE_ARG(slice_sub(op, 0, 40)));
}

static void answer_line(struct node_end *n, struct slice line, struct buf *out) {
        struct json_writer w = {.out = out};
        struct error e = {0};
        yyjson_doc *doc = NULL;
        int r = json_parse(line, &doc, &e);

        json_open(&w, '{');
        json_key(&w, "id");
        json_i64(&w, json_get_i64(yyjson_doc_get_root(doc), "id", -1));
        if (r == 0)
                r = perform(n, yyjson_doc_get_root(doc), &w, &e);
        if (r < 0) {
                json_key(&w, "error");
                json_str(&w, error_text(&e, r));
                json_key(&w, "code");
                json_i64(&w, r);
        }
        json_close(&w, '}');
        buf_add_char(out, '\n');
        yyjson_doc_free(doc);
}

/* Answer every whole line that has come, in order. */
static int answer_lines(struct node_end *n, struct buf *held, int out) {
        size_t end;

        while ((end = slice_find(buf_slice(held), '\n', 0)) < held->len) {
                struct buf answer = {0};
                int r;

                answer_line(n, slice_sub(buf_slice(held), 0, end), &answer);
                r = buf_ok(&answer) ? file_write_fd(out, buf_slice(&answer)) : -ENOMEM;
                buf_free(&answer);
                if (r < 0)
                        return r;
                buf_consume(held, end + 1);
        }
        return held->len > REMOTE_LINE_MAX ? -EMSGSIZE : 0;
}

int launch_node(int in, int out, const char *self) {
        struct http_client_options client = {.idle_per_endpoint = 1};
        struct node_end n = {.self = self};
        struct buf held = {0};
        struct error e = {0};
        int r = http_fetcher_new(&client, &n.fetcher, &e);

        if (r == 0)
                r = file_write_fd(out, SLICE_LIT("{\"baton\":\"" BATON_VERSION "\"}\n"));
        while (r == 0) {
                char *room = buf_reserve(&held, 65536);
                ssize_t got = room ? read(in, room, 65536) : -1;

                if (got < 0 && room && errno == EINTR)
                        continue;
                if (got <= 0) {
                        r = !room ? -ENOMEM : got < 0 ? -errno : 0;
                        break;
                }
                buf_commit(&held, (size_t)got);
                r = answer_lines(&n, &held, out);
        }
        buf_free(&held);
        http_fetcher_free(n.fetcher);
        arena_free(&n.arena);
        return r;
}
