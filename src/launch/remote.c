/* remote.c - connecting to the nodes of a cluster and asking all of them at once; see remote.h.
 *
 * A link goes through the stages below, driven by one poll loop. Its ssh master has proved itself when the control socket is
 * there, which ssh makes after it has logged in; from then on what fails is baton's, not ssh's. */
#include "launch/remote.h"
#include "base/clock.h"
#include "base/json.h"
#include "os/os.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* ssh's own ConnectTimeout is 10 s for each address of a host, and logging in takes its time on a busy one. */
#define CONNECT_MS 40000u
#define HELLO_MS   20000u
/* Logins under way at once: more only fight for this machine's cores. */
#define CONNECTING_MAX 64
#define SAID_MAX       (8u << 10)
/* What a shell over there may print before baton does (a message of its start files). */
#define NOISE_MAX (64u << 10)
/* How long ssh and baton may take to end once their input is closed. */
#define END_MS 3000

enum stage {
        STAGE_NEW,
        STAGE_LOGIN, /* its master logs in */
        STAGE_HELLO, /* baton node is started, its first line awaited */
        STAGE_OPEN,  /* takes requests */
        STAGE_LOST,
};

struct link {
        const struct remote_target *target;
        enum stage stage;
        size_t master; /* index of the link whose ssh master it goes through: of the first one with its destination */
        struct os_child ssh, session; /* pidfd -1: none */
        int ssh_err, to, from, err;   /* -1: closed */
        struct buf ssh_said, said;    /* on standard error */
        struct buf in, out;           /* what has come, up to a whole line; what is still to be written */
        uint64_t due_ms;
        int64_t id, answered;     /* of the last request, and of the last answer */
        struct remote_call *call; /* what is asked now; NULL: nothing, though the last request may still be worked on */
        bool sent;
        size_t noise;                  /* bytes that came before it named itself */
        struct remote_trouble trouble; /* STAGE_LOST */
};
struct remote {
        const struct remote_options *options;
        struct link *links;
        struct pollfd *fds; /* five a link, and one for the interruption */
        char dir[64];       /* control sockets; empty: not made yet */
        int64_t last_id;
};

static uint64_t now_ms(void) {
        return clock_mono_ns() / NS_PER_MS;
}

int remote_new(const struct remote_options *options, struct remote **ret_remote, struct error *e) {
        struct remote *r = calloc(1, sizeof(*r));

        if (r) {
                r->options = options;
                r->links = calloc(options->count + 1, sizeof(*r->links));
                r->fds = calloc(5 * options->count + 1, sizeof(*r->fds));
        }
        if (!r || !r->links || !r->fds) {
                if (r)
                        free(r->links);
                free(r);
                return error_set(e, -ENOMEM, "out of memory");
        }
        for (size_t i = 0; i < options->count; i++) {
                struct link *l = &r->links[i];

                *l = (struct link){.target = &options->targets[i], .master = i, .ssh = {.pidfd = -1}};
                l->session.pidfd = l->ssh_err = l->to = l->from = l->err = -1;
                for (size_t k = 0; l->target->ssh && k < i; k++)
                        if (options->targets[k].ssh && !strcmp(options->targets[k].ssh, l->target->ssh)) {
                                l->master = k;
                                break;
                        }
        }
        os_raise_file_limit();
        *ret_remote = r;
        return 0;
}

/* ---- losing a node ------------------------------------------------------------------------------------------------------ */

static void close_fd(int *fd) {
        if (*fd >= 0)
                close(*fd);
        *fd = -1;
}

static void lose(struct link *l, const char *kind, const char *cure, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static void lose(struct link *l, const char *kind, const char *cure, const char *format, ...) {
        va_list args;

        close_fd(&l->to);
        close_fd(&l->from);
        l->call = NULL;
        if (l->stage == STAGE_LOST)
                return;
        l->stage = STAGE_LOST;
        l->trouble.kind = kind;
        snprintf(l->trouble.cure, sizeof(l->trouble.cure), "%s", cure);
        va_start(args, format);
        vsnprintf(l->trouble.cause, sizeof(l->trouble.cause), format, args);
        va_end(args);
}

/* The last line of what was said, for the end of a cause. */
static struct slice last_line(const struct buf *said) {
        struct slice rest = slice_trim(buf_slice(said)), line, last = SLICE_NONE;

        while (slice_split(&rest, '\n', &line))
                last = slice_trim(line);
        return slice_sub(last, 0, 300);
}

static void lose_to_ssh(struct link *l, const struct link *master) {
        const struct os_ssh_trouble *t = os_ssh_trouble(buf_slice(&master->ssh_said));
        struct slice said = last_line(&master->ssh_said);
        char cure[400];

        snprintf(cure, sizeof(cure), t->cure, l->target->ssh); /* at most one %s, see os.h */
        lose(l, t->kind, cure, "ssh %s: %s%s%.*s%s", l->target->ssh, t->cause, said.len ? " (" : "", SLICE_ARG(said),
            said.len ? ")" : "");
}

/* baton over there has not come up, or has ended. */
static void lose_session(const struct remote *r, struct link *l) {
        struct slice said = last_line(&l->said);
        struct os_child_exit ended = {.code = -1};
        struct pollfd fd = {l->session.pidfd, POLLIN, 0};
        char how[64] = "it hung up", cure[400];

        if (l->session.pidfd >= 0 && poll(&fd, 1, END_MS) > 0 && os_child_reap(&l->session, true, &ended) == 0)
                os_child_exit_text(&ended, how, sizeof(how));
        if (l->target->ssh && !ended.signaled && (ended.code == 127 || ended.code == 126)) {
                snprintf(cure, sizeof(cure),
                    "install baton %s there, in the PATH of `ssh %s`, or say where it is: supervise.baton or "
                    "--remote-baton",
                    BATON_VERSION, l->target->ssh);
                lose(l, "missing", cure, "`%s` cannot be started there (%.*s)", r->options->binary, SLICE_ARG(said));
        } else if (l->target->ssh && !ended.signaled && ended.code == 255)
                lose(l, "closed", "is the machine up? `baton status` asks anew", "the connection broke (%.*s)",
                    SLICE_ARG(said));
        else
                lose(l, "node", "", "`%s node` ended (%s)%s%.*s", l->target->ssh ? r->options->binary : "baton", how,
                    said.len ? ": " : "", SLICE_ARG(said));
}

/* ---- connecting --------------------------------------------------------------------------------------------------------- */

static void control_path(const struct remote *r, size_t master, char ret_path[100]) {
        snprintf(ret_path, 100, "%s/%zu", r->dir, master);
}

static int make_dir(struct remote *r) {
        if (r->dir[0])
                return 0;
        strcpy(r->dir, "/tmp/baton-ssh-XXXXXX"); /* short: a socket's path has 107 bytes */
        if (!mkdtemp(r->dir)) {
                r->dir[0] = 0;
                return -errno;
        }
        return 0;
}

/* Pipes for what is asked for (not NULL), the child's ends in o. The parent's are non-blocking. */
static int start_piped(
    struct os_child_options *o, int *ret_in, int *ret_out, int *ret_err, struct os_child *ret_child, struct error *e) {
        int pipes[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}}, *const ret[3] = {ret_in, ret_out, ret_err};
        int *const given[3] = {&o->stdin_fd, &o->stdout_fd, &o->stderr_fd}, r = 0;

        for (int i = 0; r == 0 && i < 3; i++) {
                *given[i] = -1;
                if (!ret[i])
                        continue;
                if (pipe2(pipes[i], O_CLOEXEC) < 0)
                        r = error_set(e, -errno, "no pipe: %s", strerror(errno));
                *given[i] = pipes[i][i > 0];
        }
        if (r == 0)
                r = os_child_start(o, ret_child, e);
        for (int i = 0; i < 3; i++) {
                close_fd(&pipes[i][i > 0]);
                if (r < 0)
                        close_fd(&pipes[i][i == 0]);
                else if (ret[i]) {
                        *ret[i] = pipes[i][i == 0];
                        fcntl(*ret[i], F_SETFL, O_NONBLOCK);
                }
        }
        return r;
}

static void start_master(struct remote *r, struct link *l) {
        char path[100];
        const char *argv[OS_SSH_ARGV_MAX], *const nothing[] = {NULL};
        const char *const master[] = {"-N", "-oControlMaster=yes", "-oControlPersist=no", "-S", path, NULL};
        struct os_child_options o = {.argv = argv, .own_group = true, .death_signal = SIGTERM};
        struct error e = {0};
        int fault = make_dir(r);

        if (fault < 0) {
                lose(l, "node", "free room in /tmp", "cannot make a directory in /tmp: %s", strerror(-fault));
                return;
        }
        control_path(r, l->master, path);
        os_ssh_argv(argv, master, l->target->ssh, nothing);
        if (start_piped(&o, NULL, NULL, &l->ssh_err, &l->ssh, &e) < 0) {
                l->ssh.pidfd = -1;
                lose(l, "ssh", "is openssh-client installed here?", "%s", e.text);
                return;
        }
        l->stage = STAGE_LOGIN;
        l->due_ms = now_ms() + CONNECT_MS;
}

static void start_session(struct remote *r, struct link *l) {
        char path[100];
        const char *remote[OS_SSH_ARGV_MAX], *const command[] = {r->options->binary, "node", NULL};
        const char *const local[] = {r->options->self, "node", NULL};
        const char *const through[] = {"-oControlMaster=no", "-S", path, NULL};
        struct os_child_options o = {
            .argv = l->target->ssh ? remote : local, .own_group = true, .death_signal = SIGTERM};
        struct error e = {0};

        if (l->target->ssh) {
                control_path(r, l->master, path);
                os_ssh_argv(remote, through, l->target->ssh, command);
        }
        if (start_piped(&o, &l->to, &l->from, &l->err, &l->session, &e) < 0) {
                l->session.pidfd = -1;
                lose(l, "node", "", "%s", e.text);
                return;
        }
        l->stage = STAGE_HELLO;
        l->due_ms = now_ms() + HELLO_MS;
}

/* Is the master of this link logged in? 1, 0 not yet, -1 it never will be. */
static int look_at_master(const struct remote *r, const struct link *master) {
        struct pollfd fd = {master->ssh.pidfd, POLLIN, 0};
        struct stat st;
        char path[100];

        if (master->ssh.pidfd < 0)
                return master->stage == STAGE_LOST ? -1 : 0;
        if (poll(&fd, 1, 0) > 0)
                return -1;
        control_path(r, master->master, path);
        return stat(path, &st) == 0;
}

static void drain(int *fd, struct buf *into) {
        char piece[4096];
        ssize_t n;

        while (*fd >= 0 && (n = read(*fd, piece, sizeof(piece))) != 0) {
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return;
                if (into->len < SAID_MAX)
                        buf_append(into, piece, (size_t)n);
        }
        close_fd(fd);
}

static void connect_link(struct remote *r, struct link *l, size_t *connecting) {
        struct link *master = &r->links[l->master];
        int logged_in;

        if (l->stage == STAGE_NEW) {
                if (*connecting >= CONNECTING_MAX)
                        return;
                ++*connecting;
                if (!l->target->ssh)
                        start_session(r, l);
                else if (l != master && master->stage != STAGE_NEW) {
                        l->stage = STAGE_LOGIN;
                        l->due_ms = now_ms() + CONNECT_MS;
                } else if (master->stage == STAGE_NEW)
                        start_master(r, master);
        }
        if (l->stage != STAGE_LOGIN)
                return;
        logged_in = look_at_master(r, master);
        if (logged_in > 0)
                start_session(r, l);
        else if (logged_in < 0) {
                drain(&master->ssh_err, &master->ssh_said);
                lose_to_ssh(l, master);
        }
}

/* ---- talking ------------------------------------------------------------------------------------------------------------ */

static void take_hello(struct remote *r, struct link *l, struct slice line) {
        yyjson_doc *doc = NULL;
        struct slice version;

        if (line.len == 0 || line.ptr[0] != '{' || json_parse(line, &doc, NULL) < 0)
                return; /* a shell's greeting */
        version = json_get_slice(yyjson_doc_get_root(doc), "baton");
        if (slice_is(version, BATON_VERSION))
                l->stage = STAGE_OPEN;
        else if (version.len) {
                char cure[400];

                snprintf(cure, sizeof(cure),
                    "install %s there too, or say where it is: supervise.baton or --remote-baton", BATON_VERSION);
                lose(l, "version", cure, "`%s` there is version %.*s, and this is %s", r->options->binary,
                    SLICE_ARG(slice_sub(version, 0, 40)), BATON_VERSION);
        }
        yyjson_doc_free(doc);
}

static void take_answer(struct link *l, struct slice line) {
        yyjson_doc *doc = NULL;

        if (json_parse(line, &doc, NULL) < 0) {
                lose(l, "node", "", "its answer is not baton's");
                return;
        }
        l->answered = json_get_i64(yyjson_doc_get_root(doc), "id", -1);
        /* That of a request which was given up is not waited for any more. */
        if (l->answered == l->id && l->call && l->sent) {
                buf_add(&l->call->answer, line);
                l->call = NULL;
        }
        yyjson_doc_free(doc);
}

static void take_lines(struct remote *r, struct link *l) {
        size_t end;

        while (l->stage != STAGE_LOST && (end = slice_find(buf_slice(&l->in), '\n', 0)) < l->in.len) {
                struct slice line = slice_sub(buf_slice(&l->in), 0, end);

                if (l->stage == STAGE_HELLO) {
                        l->noise += end;
                        take_hello(r, l, line);
                } else
                        take_answer(l, line);
                buf_consume(&l->in, end + 1);
        }
        if (l->stage == STAGE_HELLO ? l->noise + l->in.len > NOISE_MAX : l->in.len > REMOTE_LINE_MAX)
                lose(l, "node", "", "it says more than baton would");
}

static void pull(struct remote *r, struct link *l) {
        char *room = buf_reserve(&l->in, 65536);
        ssize_t n = room ? read(l->from, room, 65536) : -1;

        if (!room)
                lose(l, "node", "", "memory is out here");
        else if (n > 0) {
                buf_commit(&l->in, (size_t)n);
                take_lines(r, l);
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
                drain(&l->err, &l->said);
                lose_session(r, l);
        }
}

static void push(struct remote *r, struct link *l) {
        ssize_t n = write(l->to, l->out.ptr, l->out.len);

        if (n > 0)
                buf_consume(&l->out, (size_t)n);
        else if (n < 0 && errno != EAGAIN && errno != EINTR) {
                drain(&l->err, &l->said);
                lose_session(r, l);
        }
}

/* Put the request on its way, {"id":N,…. */
static void begin(struct remote *r, struct link *l) {
        struct slice request = l->call->request;

        l->id = ++r->last_id;
        buf_printf(&l->out, "{\"id\":%lld,", (long long)l->id);
        buf_add(&l->out, slice_sub(request, 1, request.len)); /* behind its bracket */
        buf_add_char(&l->out, '\n');
        if (!buf_ok(&l->out))
                lose(l, "node", "", "memory is out here");
        l->sent = true;
}

static void check_due(struct link *l, uint64_t now) {
        if (!l->call || now < l->due_ms)
                return;
        if (l->stage == STAGE_LOGIN)
                lose(l, "timeout", "is the machine overloaded, or asks ssh for something?",
                    "ssh %s: not logged in within %u s", l->target->ssh, CONNECT_MS / 1000);
        else if (l->stage == STAGE_HELLO)
                lose(l, "timeout", "is the machine overloaded?", "baton over there does not answer within %u s",
                    HELLO_MS / 1000);
}

static void fill_fds(struct remote *r, struct link *l, struct pollfd fds[5]) {
        fds[0] = (struct pollfd){l->from, POLLIN, 0};
        fds[1] = (struct pollfd){l->out.len ? l->to : -1, POLLOUT, 0};
        fds[2] = (struct pollfd){l->err, POLLIN, 0};
        fds[3] = (struct pollfd){l->ssh_err, POLLIN, 0};
        fds[4] = (struct pollfd){l->stage == STAGE_LOGIN ? r->links[l->master].ssh.pidfd : -1, POLLIN, 0};
}

static void handle_fds(struct remote *r, struct link *l, const struct pollfd fds[5]) {
        if (fds[2].revents)
                drain(&l->err, &l->said);
        if (fds[3].revents)
                drain(&l->ssh_err, &l->ssh_said);
        if (fds[1].revents && l->to >= 0)
                push(r, l);
        if (fds[0].revents && l->from >= 0)
                pull(r, l);
}

static bool is_connecting(const struct link *l) {
        return l->call && (l->stage == STAGE_LOGIN || l->stage == STAGE_HELLO);
}

struct outlook {
        bool waiting, connecting, login; /* for any answer; for any node; for any master */
};

/* One round for all links. */
static struct outlook step(struct remote *r) {
        struct outlook o = {0};
        size_t connecting = 0;

        for (size_t i = 0; i < r->options->count; i++)
                connecting += is_connecting(&r->links[i]);
        for (size_t i = 0; i < r->options->count; i++) {
                struct link *l = &r->links[i];

                if (l->call)
                        connect_link(r, l, &connecting);
                if (l->stage == STAGE_OPEN && l->call && !l->sent)
                        begin(r, l);
                check_due(l, now_ms());
                o.waiting |= l->call != NULL;
                o.connecting |= is_connecting(l) || (l->call && l->stage == STAGE_NEW);
                o.login |= l->call && l->stage == STAGE_LOGIN;
        }
        return o;
}

int remote_ask(struct remote *r, struct remote_call *calls, size_t count, unsigned timeout_ms, int interrupt_fd) {
        size_t n = r->options->count;
        struct outlook o;
        uint64_t end = 0;
        int result = 0;

        for (size_t i = 0; i < count; i++) {
                struct link *l = &r->links[calls[i].node];

                l->call = l->stage == STAGE_LOST ? NULL : &calls[i];
                l->sent = false;
        }
        while ((o = step(r)).waiting) {
                /* The time for answers begins when nobody is being connected to. */
                if (o.connecting)
                        end = 0;
                else if (!end)
                        end = now_ms() + timeout_ms;
                if (end && now_ms() >= end) {
                        result = -ETIMEDOUT;
                        break;
                }
                for (size_t i = 0; i < n; i++)
                        fill_fds(r, &r->links[i], &r->fds[5 * i]);
                r->fds[5 * n] = (struct pollfd){interrupt_fd, POLLIN, 0};
                if (poll(r->fds, 5 * n + 1, o.login ? 10 : 100) < 0)
                        continue;
                if (r->fds[5 * n].revents) {
                        result = -EINTR;
                        break;
                }
                for (size_t i = 0; i < n; i++)
                        handle_fds(r, &r->links[i], &r->fds[5 * i]);
        }
        for (size_t i = 0; i < n; i++)
                r->links[i].call = NULL;
        return result;
}

const struct remote_trouble *remote_trouble(const struct remote *r, size_t node) {
        return r->links[node].stage == STAGE_LOST ? &r->links[node].trouble : NULL;
}

void remote_write_trouble(const struct remote *r, size_t node, struct buf *out) {
        const struct remote_trouble *t = &r->links[node].trouble;

        buf_printf(out, "%s: %s\n", r->links[node].target->name, t->cause);
        if (t->cure[0])
                buf_printf(out, "    cure: %s\n", t->cure);
}

/* ---- the end ------------------------------------------------------------------------------------------------------------ */

static void end_child(struct os_child *child, uint64_t end) {
        struct pollfd fd = {child->pidfd, POLLIN, 0};
        struct os_child_exit x;
        uint64_t now = now_ms();

        if (child->pidfd < 0)
                return;
        if (poll(&fd, 1, end > now ? (int)(end - now) : 0) <= 0)
                os_child_kill_group(child, SIGKILL);
        os_child_reap(child, true, &x);
}

void remote_free(struct remote *r) {
        size_t count = r ? r->options->count : 0;
        uint64_t end = now_ms() + END_MS;
        char path[100];

        if (!r)
                return;
        for (size_t i = 0; i < count; i++) {
                struct link *l = &r->links[i];

                /* A node ends with its input, but for one that is busy with what nobody waits for any more. */
                close_fd(&l->to);
                close_fd(&l->from);
                if (l->id != l->answered && l->session.pidfd >= 0)
                        os_child_signal(&l->session, SIGTERM);
        }
        for (size_t i = 0; i < count; i++)
                end_child(&r->links[i].session, end);
        for (size_t i = 0; i < count; i++)
                if (r->links[i].ssh.pidfd >= 0)
                        os_child_signal(&r->links[i].ssh, SIGTERM);
        for (size_t i = 0; i < count; i++) {
                struct link *l = &r->links[i];

                end_child(&l->ssh, end);
                close_fd(&l->err);
                close_fd(&l->ssh_err);
                if (r->dir[0] && l->target->ssh) {
                        control_path(r, l->master, path);
                        unlink(path);
                }
                buf_free(&l->ssh_said);
                buf_free(&l->said);
                buf_free(&l->in);
                buf_free(&l->out);
        }
        if (r->dir[0])
                rmdir(r->dir);
        free(r->links);
        free(r->fds);
        free(r);
}
