/* os.h - what baton asks of Linux: the machine's size, files, sockets, signals, and child processes.
 *
 * Thin wrappers with contracts; nothing here starts threads or keeps state. Functions may be called from any thread
 * unless said otherwise. Negative errno as everywhere. */
#pragma once
#include "base/buf.h"
#include "base/error.h"
#include <signal.h>
#include <sys/types.h>

/* ---- the machine ---------------------------------------------------------------------------------------------------- */

/* Cores this process may use: its affinity mask cut by the cgroup's CPU quota (v1 or v2), rounded up, at least 1. */
unsigned os_cpu_count(void);
/* The numbers of the cores in the affinity mask, at most `max`. Returns how many were written; 0 when they cannot be known. */
size_t os_cpu_list(unsigned *ret_cpus, size_t max);
/* A core that this process may use, and the memory node that it is next to. */
struct os_cpu {
        unsigned number, node;
};
/* The cores of the affinity mask by node, then by number, at most `max`; all of node 0 where the kernel tells of no nodes.
 * Returns how many were written; 0 when they cannot be known. */
size_t os_cpus(struct os_cpu *ret_cpus, size_t max);
/* "AMD EPYC …" of /proc/cpuinfo into `ret_text`; "unknown" when there is none. */
void os_cpu_model(char *ret_text, size_t size);
/* Bytes that may still be taken without pushing anybody out: MemAvailable, cut by what the limits of the cgroups (v1 or v2,
 * all levels) leave over what counts against them and cannot be dropped. */
uint64_t os_memory_available(void);
/* Bytes of the machine, cut by the limits of the cgroups. */
uint64_t os_memory_total(void);
/* The kernel's id of this boot as text (36 characters); "" when unreadable. */
void os_boot_id(char ret_text[40]);
/* Raise the soft limit of open files to the hard one. Returns the limit that holds now. */
uint64_t os_raise_file_limit(void);

/* ---- files ---------------------------------------------------------------------------------------------------------- */

/* Write a file so that readers see the old or the new contents, never a part, also after a crash: temporary file beside
 * it, fsync, rename, fsync of the directory. `mode` is taken as it is, whatever the umask; a symbolic link at `path` is
 * replaced, not followed. When only the last fsync fails, readers see the new contents though an error is returned. */
int os_write_file_atomic(const char *path, struct slice contents, mode_t mode, struct error *e);
/* mkdir -p with `mode` for those that are made. */
int os_make_dirs(const char *path, mode_t mode, struct error *e);

/* ---- sockets -------------------------------------------------------------------------------------------------------- */

/* Whether a listener could be bound to host:port right now: 0, -EADDRINUSE, -EADDRNOTAVAIL, -EACCES, … A host NULL or ""
 * means all addresses; a name may take a name server's time. */
int os_check_bind(const char *host, uint16_t port);

/* ---- signals -------------------------------------------------------------------------------------------------------- */

/* Ignore SIGPIPE: writes to gone peers return EPIPE. Call once at the start of a command. */
void os_ignore_sigpipe(void);

/* ---- other machines, through ssh(1) --------------------------------------------------------------------------------- */

/* The argv that every use of ssh here has: its options, then `more`, then "--", so that a destination cannot be taken for an option,
 * the destination, and what is to run there; both lists NULL-terminated, all borrowed. No question is ever asked, a dead machine is
 * noticed, forwardings and commands of the user's ssh_config stay out of the way; all else in it holds. */
#define OS_SSH_ARGV_MAX 32
void os_ssh_argv(
    const char *argv[OS_SSH_ARGV_MAX], const char *const *more, const char *destination, const char *const *command);

/* Why ssh did not get through, by what it said on its standard error. `kind` is a stable word ("auth", "host-key", "refused",
 * "timeout", …). Cause and cure may hold one "%s": the destination. Never NULL: what is not known is kind "ssh". */
struct os_ssh_trouble {
        const char *kind, *text, *cause, *cure;
};
const struct os_ssh_trouble *os_ssh_trouble(struct slice said);
/* Whether a remote shell, which reads the words of a command once more, takes this one as it is. */
bool os_ssh_plain_word(const char *word);

/* ---- child processes ------------------------------------------------------------------------------------------------ */

struct os_child_options {
        const char *const
            *argv;              /* NULL-terminated; argv[0] is looked up in this process's PATH unless it holds a '/' */
        const char *const *env; /* NULL-terminated "NAME=value", put over this process's environment; "NAME" alone
                                    removes. NULL: nothing changes */
        const char *directory;  /* NULL: this process's */
        int stdin_fd, stdout_fd, stderr_fd; /* -1: /dev/null */
        bool own_group;   /* a process group of its own, so that os_child_kill_group reaches its children too */
        bool own_session; /* the same, and no terminal: what happens to the caller's does not reach it */
        int death_signal; /* sent to it when the calling *thread* ends (PR_SET_PDEATHSIG), 0: none */
};

struct os_child {
        pid_t pid;
        int pidfd; /* readable when the process has ended; for uv_poll */
};

/* Start a process. All other descriptors are closed in it, signals are at their defaults and none is blocked. Returns 0, or
 * the reason with a text that names the program: -ENOENT, -EACCES, -EAGAIN … also when execve itself failed. */
int os_child_start(const struct os_child_options *options, struct os_child *ret_child, struct error *e);

struct os_child_exit {
        bool signaled;
        int code; /* exit status, or the signal's number */
};
/* Reap the child. 0, or -EAGAIN when it still runs and `wait` is false. pidfd is closed on success. */
int os_child_reap(struct os_child *child, bool wait, struct os_child_exit *ret_exit);
int os_child_signal(const struct os_child *child, int signal);     /* through the pidfd: never another process's */
int os_child_kill_group(const struct os_child *child, int signal); /* needs own_group and a child not yet reaped */
/* "exit status 3", "killed by SIGKILL" into `ret_text`. */
void os_child_exit_text(const struct os_child_exit *exit, char *ret_text, size_t size);
/* Start time of a process in clock ticks since boot (field 22 of /proc/PID/stat): with pid and boot id it names one
 * process for ever. -ESRCH when there is none. */
int os_process_start_time(pid_t pid, uint64_t *ret_ticks);
