/* child.c - starting and ending processes through pidfds, so that a signal never reaches a stranger. */
#include "os/os.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

void os_ignore_sigpipe(void) {
        signal(SIGPIPE, SIG_IGN);
}

/* This process's environment with `over` put on it. The strings are borrowed; free the array. */
static char **merge_environment(const char *const *over) {
        size_t own = 0, more = 0, n = 0;
        char **merged;

        while (environ && environ[own])
                own++;
        while (over && over[more])
                more++;
        merged = calloc(own + more + 1, sizeof(*merged));
        if (!merged)
                return NULL;
        for (size_t i = 0; i < own; i++) {
                size_t name = strcspn(environ[i], "=");
                bool replaced = false;

                for (size_t j = 0; j < more && !replaced; j++)
                        replaced =
                            strncmp(environ[i], over[j], name) == 0 && (over[j][name] == '=' || over[j][name] == 0);
                if (!replaced)
                        merged[n++] = environ[i];
        }
        for (size_t j = 0; j < more; j++)
                if (strchr(over[j], '='))
                        merged[n++] = (char *)(uintptr_t)over[j];
        return merged;
}

/* ---- between fork and exec: only async-signal-safe calls --------------------------------------------------------------- */

struct child_plan {
        const struct os_child_options *options;
        char **env;
        int report_fd; /* errno of a failure goes to the parent here; closed by a successful exec */
        pid_t parent;
};

static void child_fail(const struct child_plan *p) {
        int error = errno;
        ssize_t n = write(p->report_fd, &error, sizeof(error));

        (void)n;
        _exit(127);
}

static void child_stdio(const struct child_plan *p) {
        const int given[3] = {p->options->stdin_fd, p->options->stdout_fd, p->options->stderr_fd};
        int at[3];

        /* First out of the way of 0, 1, 2, so that no dup2 overwrites one that is still needed. */
        for (int i = 0; i < 3; i++) {
                int fd = given[i] >= 0 ? given[i] : open("/dev/null", i ? O_WRONLY : O_RDONLY);

                at[i] = fd < 0 ? -1 : fcntl(fd, F_DUPFD, 10);
                if (at[i] < 0)
                        child_fail(p);
        }
        for (int i = 0; i < 3; i++)
                if (dup2(at[i], i) < 0)
                        child_fail(p);
}

/* keep is 20 or more, see start(). A kernel before 5.9 has no close_range(2), and the start fails rather than hand
 * descriptors to a stranger. */
static void child_close_others(const struct child_plan *p) {
        unsigned keep = (unsigned)p->report_fd;

        if (syscall(SYS_close_range, 3u, keep - 1, 0u) < 0 || syscall(SYS_close_range, keep + 1, ~0u, 0u) < 0)
                child_fail(p);
}

static void child_run(const struct child_plan *p) {
        const struct os_child_options *o = p->options;
        struct sigaction action = {.sa_handler = SIG_DFL};
        sigset_t none;

        for (int s = 1; s < NSIG; s++)
                sigaction(s, &action, NULL);
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        if (o->own_session ? setsid() < 0 : o->own_group && setpgid(0, 0) < 0)
                child_fail(p);
        if (o->death_signal) {
                if (prctl(PR_SET_PDEATHSIG, o->death_signal) < 0)
                        child_fail(p);
                if (getppid() != p->parent) /* the parent ended before the prctl: nobody will send it */
                        _exit(127);
        }
        if (o->directory && chdir(o->directory) < 0)
                child_fail(p);
        child_stdio(p);
        child_close_others(p);
        execvpe(o->argv[0], (char *const *)(uintptr_t)o->argv, p->env);
        child_fail(p);
}

/* ---- the parent's side ---------------------------------------------------------------------------------------------- */

static int start(const struct os_child_options *o, char **env, struct os_child *ret_child) {
        int report[2], error = 0;
        sigset_t all, before;
        struct child_plan plan = {.options = o, .env = env, .parent = getpid()};
        struct os_child child;
        ssize_t n;

        if (pipe2(report, O_CLOEXEC) < 0)
                return -errno;
        plan.report_fd = fcntl(report[1], F_DUPFD_CLOEXEC, 20); /* above the numbers that child_stdio uses */
        if (plan.report_fd < 0) {
                error = errno;
                goto fail;
        }
        /* No signal may run a handler of ours in the child before it has put them back to their defaults: an event loop's
         * would write into the pipe that both then share. */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        child.pid = fork();
        if (child.pid == 0)
                child_run(&plan);
        error = child.pid < 0 ? errno : 0;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (child.pid < 0) {
                close(plan.report_fd);
                goto fail;
        }
        close(report[1]);
        close(plan.report_fd);
        child.pidfd = (int)syscall(SYS_pidfd_open, child.pid, 0);
        if (child.pidfd < 0)
                error = errno;
        do
                n = read(report[0], &error, sizeof(error));
        while (n < 0 && errno == EINTR);
        close(report[0]);
        if (error) {
                if (child.pidfd < 0)
                        kill(child.pid, SIGKILL); /* ours and not yet reaped, so the number is its own */
                else
                        close(child.pidfd);
                while (waitpid(child.pid, NULL, 0) < 0 && errno == EINTR)
                        ;
                return -error;
        }
        *ret_child = child;
        return 0;
fail:
        close(report[0]);
        close(report[1]);
        return -error;
}

int os_child_start(const struct os_child_options *options, struct os_child *ret_child, struct error *e) {
        char **env = merge_environment(options->env);
        int r;

        if (!env)
                return error_set(e, -ENOMEM, "cannot start %s: out of memory", options->argv[0]);
        r = start(options, env, ret_child);
        free(env);
        return r < 0 ? error_set(e, r, "cannot start %s: %s", options->argv[0], strerror(-r)) : 0;
}

int os_child_reap(struct os_child *child, bool wait, struct os_child_exit *ret_exit) {
        siginfo_t info = {0};

        for (;;) {
                if (waitid(P_PIDFD, (id_t)child->pidfd, &info, WEXITED | (wait ? 0 : WNOHANG)) == 0)
                        break;
                if (errno != EINTR)
                        return -errno;
        }
        if (info.si_pid == 0)
                return -EAGAIN;
        ret_exit->signaled = info.si_code != CLD_EXITED;
        ret_exit->code = info.si_status;
        close(child->pidfd);
        child->pidfd = -1;
        return 0;
}

int os_child_signal(const struct os_child *child, int signal) {
        if (child->pidfd < 0)
                return -ESRCH;
        return syscall(SYS_pidfd_send_signal, child->pidfd, signal, NULL, 0) < 0 ? -errno : 0;
}

int os_child_kill_group(const struct os_child *child, int signal) {
        /* Until the leader is reaped its pid, and so the group's number, cannot be given to others. */
        if (child->pidfd < 0)
                return -ESRCH;
        return kill(-child->pid, signal) < 0 ? -errno : 0;
}

void os_child_exit_text(const struct os_child_exit *exit, char *ret_text, size_t size) {
        const char *name = exit->signaled ? sigabbrev_np(exit->code) : NULL;

        if (!exit->signaled)
                snprintf(ret_text, size, "exit status %d", exit->code);
        else if (name)
                snprintf(ret_text, size, "killed by SIG%s", name);
        else
                snprintf(ret_text, size, "killed by signal %d", exit->code);
}

int os_process_start_time(pid_t pid, uint64_t *ret_ticks) {
        char path[64], text[1024], *at;
        unsigned long long ticks;
        FILE *f;
        size_t n;

        snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
        f = fopen(path, "re");
        if (!f)
                return -ESRCH;
        n = fread(text, 1, sizeof(text) - 1, f);
        fclose(f);
        text[n] = 0;
        at = strrchr(text, ')'); /* the name before it may hold anything */
        if (!at || sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
                       &ticks) != 1)
                return -ESRCH;
        *ret_ticks = ticks;
        return 0;
}
