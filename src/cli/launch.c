/* launch.c - `baton down`, `status`, `logs`, `restart`: talking to the supervisor; and `supervise`, which is it. */
#include "launch/launch.h"
#include "base/clock.h"
#include "base/json.h"
#include "cli/cli.h"
#include "cluster/cluster.h"
#include "http/fetch.h"
#include "os/os.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <unistd.h>

#define CALL_MS 5000u

struct file_command {
        struct options_result parsed;
        struct arena arena;
        struct cluster *cluster;
        struct launch_paths paths;
};

/* Options, then the cluster file's form, then the paths. Returns -1 to go on; free with file_command_done in any case. */
static int file_command(struct file_command *f, const struct option_set *set, int argc, char **argv, void *target) {
        struct findings findings = {.arena = &f->arena};
        struct error e = {0};
        int r;

        *f = (struct file_command){0};
        r = cli_file_options(set, argc, argv, target, &f->parsed);
        if (r >= 0)
                return r;
        r = cluster_read(f->parsed.positional[0], &f->arena, &f->cluster, &findings, &e);
        if (r < 0 && findings.count) {
                cli_say_findings(&findings, f->parsed.positional[0]);
                return EXIT_USAGE;
        }
        if (r == 0)
                r = launch_paths(f->cluster, false, &f->paths, &e);
        return r < 0 ? cli_fail(r, &e) : -1;
}

static void file_command_done(struct file_command *f) {
        options_result_free(&f->parsed);
        arena_free(&f->arena);
}

/* ---- down ------------------------------------------------------------------------------------------------------------ */

/* The supervisor's lock is free when it has ended, and not before. */
static bool wait_unlocked(const char *lock, unsigned ms) {
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

static const struct option_set down_set = {"baton down FILE",
    "Stops the gateway, then decode, then prefill ranks, and the supervisor. Returns when all have ended.", NULL, 0, 1};

int cmd_down(int argc, char **argv) {
        struct file_command f;
        struct error e = {0};
        struct buf answer = {0};
        int r = file_command(&f, &down_set, argc, argv, NULL);

        if (r < 0) {
                r = launch_call(&f.paths, "POST", "/stop", CALL_MS, &answer, &e);
                if (r == -ENOENT || r == -ECONNREFUSED) {
                        fprintf(stderr, "%s is not up\n", f.parsed.positional[0]);
                        r = EXIT_FINE;
                } else if (r < 0)
                        r = cli_fail(r, &e);
                else if (wait_unlocked(f.paths.lock, cli_stop_ms(f.cluster)))
                        r = EXIT_FINE;
                else {
                        fprintf(stderr, "baton down: the supervisor has not ended in time; see %s\n",
                            f.paths.supervisor_log);
                        r = EXIT_UNKNOWN;
                }
        }
        buf_free(&answer);
        file_command_done(&f);
        return r;
}

/* ---- status ---------------------------------------------------------------------------------------------------------- */

struct rank_load {
        bool known;
        double running, waiting, kv;
};

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

static struct rank_load ask_load(struct http_fetcher *fetcher, const struct process_status *p) {
        struct rank_load load = {0};
        struct http_fetched fetched;
        struct buf text = {0};
        char url[300];

        snprintf(url, sizeof(url), "%.*s", SLICE_ARG(p->url));
        if (http_fetch_url(fetcher, url, "/metrics", SLICE_NONE, NULL, 1000, &text, &fetched, NULL) == 0 &&
            fetched.status == 200)
                load.known = find_sample(buf_slice(&text), "vllm:num_requests_running", &load.running) &&
                             find_sample(buf_slice(&text), "vllm:num_requests_waiting", &load.waiting) &&
                             find_sample(buf_slice(&text), "vllm:kv_cache_usage_perc", &load.kv);
        buf_free(&text);
        return load;
}

static void write_duration(struct buf *b, int64_t ms) {
        int64_t s = ms / 1000;

        if (s < 60)
                buf_printf(b, "%lld s", (long long)s);
        else if (s < 3600)
                buf_printf(b, "%lld min", (long long)(s / 60));
        else if (s < 86400)
                buf_printf(b, "%lld h %02lld", (long long)(s / 3600), (long long)(s / 60 % 60));
        else
                buf_printf(b, "%lld d %02lld h", (long long)(s / 86400), (long long)(s / 3600 % 24));
}

static void write_row(struct buf *b, const struct process_status *p, const struct rank_load *load, bool color) {
        bool good = p->state == PROCESS_READY, bad = p->state == PROCESS_FAILED || p->state == PROCESS_SILENT;
        struct buf since = {0};

        write_duration(&since, p->since_ms);
        buf_printf(b, "%-10.*s %-8.*s %s%-9s%s %-9s ", SLICE_ARG(p->name), SLICE_ARG(p->role),
            color ? (good     ? "\033[32m"
                        : bad ? "\033[31m"
                              : "\033[33m")
                  : "",
            process_state_name(p->state), color ? "\033[0m" : "", buf_cstr(&since));
        buf_free(&since);
        if (load->known)
                buf_printf(b, "%7.0f %7.0f  %3.0f %%", load->running, load->waiting, 100 * load->kv);
        else
                buf_printf(b, "%7s %7s  %5s", "-", "-", "-");
        buf_printf(b, "  %.*s", SLICE_ARG(p->url));
        if (p->restarts)
                buf_printf(b, "  restarts %lld", (long long)p->restarts);
        if (p->last_exit.len && !good)
                buf_printf(b, "  %.*s", SLICE_ARG(p->last_exit));
        if (p->retry_ms >= 0)
                buf_printf(b, ", again in %.1f s", (double)p->retry_ms / 1000);
        buf_add_char(b, '\n');
}

struct status_options {
        const char *format;
        bool watch;
};
static const struct option status_table[] = {
    {"format", 0, OPTION_STRING, offsetof(struct status_options, format), NULL, "how to print", .choices = "text|json"},
    {"watch", 'w', OPTION_FLAG, offsetof(struct status_options, watch), NULL, "again every second until Ctrl-C"},
};
static const struct option_set status_set = {"baton status FILE [--watch] [--format text|json]",
    "Shows every rank and the gateway: state, since when, load, last exit. Exit code 0: all healthy; 1: not all, or "
    "not up.",
    status_table, 2, 1};

static int show_status(const struct file_command *f, const struct status_options *o, struct http_fetcher *fetcher) {
        struct launch_status s = {0};
        struct arena arena = {0};
        struct error e = {0};
        struct buf json = {0}, b = {0};
        int r = launch_call(&f->paths, "GET", "/status", CALL_MS, &json, &e);
        bool all = true;

        if (r == 0)
                r = launch_status_parse(buf_slice(&json), &arena, &s, &e);
        if (r == -ENOENT || r == -ECONNREFUSED) {
                fprintf(stderr, "%s is not up\n", f->parsed.positional[0]);
                r = EXIT_NOT_FINE;
                goto out;
        }
        if (r < 0) {
                r = cli_fail(r, &e);
                goto out;
        }
        for (size_t i = 0; i < s.count; i++)
                all &= s.processes[i].state == PROCESS_READY;
        if (!strcmp(o->format, "json")) {
                buf_add(&b, buf_slice(&json));
                buf_add_char(&b, '\n');
        } else {
                buf_printf(&b, "%s%-10s %-8s %-9s %-9s %7s %7s  %5s  url\n", o->watch ? "\033[H\033[J" : "", "rank",
                    "role", "state", "since", "running", "waiting", "kv");
                for (size_t i = 0; i < s.count; i++) {
                        struct rank_load load = {0};

                        if (s.processes[i].state == PROCESS_READY && !slice_is(s.processes[i].role, "gateway"))
                                load = ask_load(fetcher, &s.processes[i]);
                        write_row(&b, &s.processes[i], &load, cli_color(STDOUT_FILENO));
                }
        }
        r = cli_print(&b, all ? EXIT_FINE : EXIT_NOT_FINE);
out:
        buf_free(&json);
        buf_free(&b);
        arena_free(&arena);
        return r;
}

int cmd_status(int argc, char **argv) {
        struct status_options o = {.format = "text"};
        struct http_client_options client = {0};
        struct http_fetcher *fetcher = NULL;
        struct file_command f;
        struct error e = {0};
        int r = file_command(&f, &status_set, argc, argv, &o);

        if (r < 0) {
                r = http_fetcher_new(&client, &fetcher, &e);
                if (r < 0)
                        r = cli_fail(r, &e);
                else
                        do
                                r = show_status(&f, &o, fetcher);
                        while (o.watch && r != EXIT_UNKNOWN && poll(NULL, 0, 1000) == 0);
        }
        http_fetcher_free(fetcher);
        file_command_done(&f);
        return r;
}

/* ---- logs ------------------------------------------------------------------------------------------------------------ */

struct logs_options {
        bool follow;
        int64_t lines;
};
static const struct option logs_table[] = {
    {"follow", 'f', OPTION_FLAG, offsetof(struct logs_options, follow), NULL, "go on with new lines until Ctrl-C"},
    {"lines", 'n', OPTION_INT, offsetof(struct logs_options, lines), "N", "so many last lines of each (20)", .min = 0,
        .max = 100000},
};
static const struct option_set logs_set = {"baton logs FILE [RANK] [--follow] [-n N]",
    "Shows what the ranks and the gateway wrote, or one of them.", logs_table, 2, 2};

static void print_lines(struct slice name, struct slice text, bool named) {
        struct slice line;

        if (text.len && text.ptr[text.len - 1] == '\n')
                text.len--;
        while (text.len && slice_split(&text, '\n', &line)) {
                if (named)
                        printf("%-10.*s ", SLICE_ARG(name));
                printf("%.*s\n", SLICE_ARG(line));
        }
        fflush(stdout);
}

struct followed {
        struct slice name;
        char path[400];
        off_t at;
};

/* What was written since the last look. After a rotation the new file is read from its start. */
static void print_news(struct followed *f, bool named) {
        char text[65536];
        int fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        ssize_t n;

        if (fd < 0)
                return;
        if (lseek(fd, 0, SEEK_END) < f->at)
                f->at = 0;
        while ((n = pread(fd, text, sizeof(text), f->at)) > 0) {
                const char *last = memrchr(text, '\n', (size_t)n);
                size_t whole = last ? (size_t)(last - text) + 1 : n == sizeof(text) ? (size_t)n : 0;

                if (!whole)
                        break; /* the line is still being written */
                print_lines(f->name, slice_of(text, whole), named);
                f->at += (off_t)whole;
        }
        close(fd);
}

static void follow(struct followed *list, size_t count, const char *dir) {
        char events[4096];
        int fd = inotify_init1(IN_CLOEXEC);

        if (fd < 0 || inotify_add_watch(fd, dir, IN_MODIFY | IN_CREATE | IN_MOVED_TO) < 0)
                return;
        do
                for (size_t i = 0; i < count; i++)
                        print_news(&list[i], count > 1);
        while (!ferror(stdout) && read(fd, events, sizeof(events)) > 0);
        close(fd);
}

int cmd_logs(int argc, char **argv) {
        struct logs_options o = {.lines = 20};
        struct file_command f;
        struct findings findings = {0};
        struct plan *plan;
        struct followed *list = NULL;
        size_t count = 0;
        int r = file_command(&f, &logs_set, argc, argv, &o);

        if (r >= 0)
                goto out;
        findings.arena = &f.arena;
        if (plan_make(f.cluster, "baton", &f.arena, &plan, &findings) < 0) {
                fprintf(stderr, "baton logs: the file has errors; see `baton check %s`\n", f.parsed.positional[0]);
                r = EXIT_USAGE;
                goto out;
        }
        list = calloc(plan->rank_count + 1, sizeof(*list));
        for (size_t i = 0; list && i <= plan->rank_count; i++) {
                struct slice name = i < plan->rank_count ? plan->ranks[i].name : SLICE_LIT("gateway");

                if (f.parsed.count_positional > 1 && !slice_is(name, f.parsed.positional[1]))
                        continue;
                list[count].name = name;
                snprintf(list[count].path, sizeof(list[count].path), "%s/%.*s.log", f.paths.logs, SLICE_ARG(name));
                count++;
        }
        if (count == 0) {
                fprintf(stderr, "baton logs: no rank is named `%s`; `baton plan %s` lists them\n",
                    f.parsed.positional[1], f.parsed.positional[0]);
                r = EXIT_USAGE;
                goto out;
        }
        r = EXIT_NOT_FINE;
        for (size_t i = 0; i < count; i++) {
                struct buf words = {0};

                if (launch_last_words(&f.paths, list[i].name, (unsigned)o.lines, &words) == 0) {
                        int fd = open(list[i].path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

                        r = EXIT_FINE;
                        list[i].at = fd >= 0 ? lseek(fd, 0, SEEK_END) : 0;
                        if (fd >= 0)
                                close(fd);
                        if (o.lines)
                                print_lines(list[i].name, buf_slice(&words), count > 1);
                }
                buf_free(&words);
        }
        if (o.follow)
                follow(list, count, f.paths.logs);
        else if (r == EXIT_NOT_FINE)
                fprintf(stderr, "baton logs: nothing was written yet under %s\n", f.paths.logs);
out:
        free(list);
        file_command_done(&f);
        return r;
}

/* ---- restart, supervise ----------------------------------------------------------------------------------------------- */

static const struct option_set restart_set = {
    "baton restart FILE NAME", "Stops one rank (or `gateway`) in order and starts it again.", NULL, 0, 2};

int cmd_restart(int argc, char **argv) {
        struct file_command f;
        struct error e = {0};
        struct buf answer = {0};
        char path[128];
        int r = file_command(&f, &restart_set, argc, argv, NULL);

        if (r < 0 && f.parsed.count_positional < 2) {
                fprintf(stderr, "baton restart: which rank? usage: %s\n", restart_set.usage);
                r = EXIT_USAGE;
        } else if (r < 0) {
                snprintf(path, sizeof(path), "/restart/%.100s", f.parsed.positional[1]);
                r = launch_call(&f.paths, "POST", path, CALL_MS, &answer, &e);
                r = r < 0 ? cli_fail(r, &e) : EXIT_FINE;
        }
        buf_free(&answer);
        file_command_done(&f);
        return r;
}

static const struct option_set supervise_set = {
    "baton supervise FILE", "The supervisor itself, in the foreground; `baton up` starts it.", NULL, 0, 1};

int cmd_supervise(int argc, char **argv) {
        struct options_result parsed;
        struct cli_plan p;
        struct launch_paths paths;
        struct log log = log_to_fd(STDERR_FILENO, LOG_INFO, "supervisor");
        struct supervisor_options o = {.paths = &paths, .log = &log};
        struct error e = {0};
        int r = cli_file_options(&supervise_set, argc, argv, NULL, &parsed);

        if (r >= 0)
                return r;
        r = cli_plan_read(parsed.positional[0], &p);
        if (r < 0) {
                r = launch_paths(p.cluster, true, &paths, &e);
                o.plan = p.plan;
                if (r == 0)
                        r = supervisor_run(&o, &e);
                r = r < 0 ? cli_fail(r, &e) : EXIT_FINE;
        }
        cli_plan_free(&p);
        options_result_free(&parsed);
        return r;
}
