/* nodes.c - see nodes.h. */
#include "cli/nodes.h"
#include "base/file.h"
#include "cli/npus.h"
#include "os/os.h"
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define OPEN_MS 20000u

static bool has_work(const struct plan *p, uint32_t node) {
        struct plan part = plan_of_node(p, node);

        return part.rank_count || part.gateway_argv;
}

static int no_such_node(const char *path, const char *name) {
        fprintf(stderr, "baton: %s plans nothing for a node named `%s`\n", path, name);
        return EXIT_USAGE;
}

/* Fill in the targets. */
static int find_targets(struct nodes *n, const struct nodes_options *o) {
        const struct cluster *c = n->plan.cluster;
        struct arena *arena = &n->plan.arena;

        n->targets = arena_array(arena, c->node_count + 1, sizeof(*n->targets));
        n->index = arena_array(arena, c->node_count + 1, sizeof(*n->index));
        if (!n->targets || !n->index)
                return -ENOMEM;
        n->single = !o->node && plan_on_one_machine(n->plan.plan);
        if (n->single) {
                n->targets[n->count++] = (struct remote_target){.name = "this machine"};
                return 0;
        }
        for (uint32_t i = 0; i < c->node_count; i++) {
                const struct cluster_node *node = &c->nodes[i];
                struct remote_target *t = &n->targets[n->count];
                struct slice ssh = node->ssh.len ? node->ssh : node->ip;

                if (!has_work(n->plan.plan, i) || (o->node && !slice_is(node->name, o->node)))
                        continue;
                t->name = arena_copy(arena, node->name).ptr;
                if (!o->node && !(node->ssh.len == 0 && cli_is_own_address(node->ip)))
                        t->ssh = arena_copy(arena, ssh).ptr;
                if (!t->name)
                        return -ENOMEM;
                n->index[n->count++] = i;
        }
        return 0;
}

int nodes_of_file(const char *path, const struct nodes_options *o, struct nodes *ret_nodes) {
        struct nodes *n = ret_nodes;
        struct slice baton;
        int r;

        *n = (struct nodes){.path = path, .interrupt_fd = -1};
        r = cli_plan_read(path, &n->plan);
        if (r >= 0)
                return r;
        baton = n->plan.cluster->supervise.baton;
        n->options = (struct remote_options){.self = cli_self(&n->plan.arena),
            .binary = o->remote_baton ? o->remote_baton
                      : baton.len     ? arena_copy(&n->plan.arena, baton).ptr
                                      : "baton"};
        if (!n->options.binary || find_targets(n, o) < 0)
                return cli_fail(-ENOMEM, &(struct error){0});
        if (!os_ssh_plain_word(n->options.binary)) {
                fprintf(stderr,
                    "baton: baton on the nodes is to be `%s`: only letters, digits and /._- can be given to ssh\n",
                    n->options.binary);
                return EXIT_USAGE;
        }
        if (!n->count)
                return no_such_node(path, o->node ? o->node : "");
        n->options.targets = n->targets;
        n->options.count = n->count;
        return -1;
}

/* {"op":"open",…}: the same to all but for the node's name. */
static int write_open(const struct nodes *n, size_t node, struct slice text, const char *real, struct buf *out) {
        struct json_writer w = {.out = out};
        char directory[PATH_MAX];

        json_open(&w, '{');
        json_key(&w, "op");
        json_str(&w, "open");
        json_key(&w, "file");
        json_str(&w, real);
        json_key(&w, "directory");
        json_str(&w, getcwd(directory, sizeof(directory)) ? directory : "");
        json_key(&w, "node");
        json_str(&w, n->single ? NULL : n->targets[node].name);
        json_key(&w, "text");
        json_string(&w, text);
        json_close(&w, '}');
        return buf_ok(out) ? 0 : -ENOMEM;
}

static void drop_answers(struct nodes *n) {
        for (size_t i = 0; i < n->count; i++) {
                buf_free(&n->calls[i].answer);
                n->calls[i] = (struct remote_call){.node = i};
        }
}

static int tell_file(struct nodes *n, struct slice text) {
        struct buf *opens = arena_array(&n->plan.arena, n->count, sizeof(*opens));
        char real[PATH_MAX];
        int r = 0;

        if (!opens)
                return -ENOMEM;
        if (!realpath(n->path, real))
                snprintf(real, sizeof(real), "%s", n->path);
        drop_answers(n);
        for (size_t i = 0; r == 0 && i < n->count; i++) {
                r = write_open(n, i, text, real, &opens[i]);
                n->calls[i].request = buf_slice(&opens[i]);
        }
        if (r == 0)
                r = remote_ask(n->remote, n->calls, n->count, OPEN_MS, n->interrupt_fd);
        for (size_t i = 0; i < n->count; i++)
                buf_free(&opens[i]);
        return r;
}

int nodes_block_signals(void) {
        sigset_t set;

        sigemptyset(&set);
        sigaddset(&set, SIGINT);
        sigaddset(&set, SIGTERM);
        sigaddset(&set, SIGHUP);
        sigprocmask(SIG_BLOCK, &set, NULL);
        return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

bool nodes_pause(const struct nodes *n, unsigned ms) {
        struct pollfd fd = {n->interrupt_fd, POLLIN, 0};

        return poll(&fd, 1, (int)ms) > 0;
}

int nodes_open(struct nodes *n) {
        struct buf text = {0};
        struct error e = {0};
        int r;

        n->interrupt_fd = nodes_block_signals();
        n->calls = calloc(n->count, sizeof(*n->calls));
        r = n->calls ? remote_new(&n->options, &n->remote, &e) : -ENOMEM;
        if (r == 0)
                r = file_read_whole(n->path, CLUSTER_FILE_MAX, &text, &e);
        if (r == 0)
                r = tell_file(n, buf_slice(&text));
        buf_free(&text);
        if (r == -EINTR)
                return EXIT_NOT_FINE;
        if (r < 0 && r != -ETIMEDOUT)
                return cli_fail(r, &e);
        for (size_t i = 0; i < n->count; i++) {
                yyjson_doc *doc;

                if (remote_trouble(n->remote, i))
                        continue;
                doc = nodes_answer(n, i, &r, &e);
                if (!doc) {
                        error_prefix(&e, r, "%scannot be told the cluster file", nodes_prefix(n, i));
                        return cli_fail(r, &e);
                }
                yyjson_doc_free(doc);
        }
        return -1;
}

void nodes_close(struct nodes *n) {
        for (size_t i = 0; n->calls && i < n->count; i++)
                buf_free(&n->calls[i].answer);
        free(n->calls);
        if (n->interrupt_fd >= 0)
                close(n->interrupt_fd);
        remote_free(n->remote);
        cli_plan_free(&n->plan);
}

size_t nodes_lost(const struct nodes *n) {
        size_t lost = 0;

        for (size_t i = 0; i < n->count; i++)
                lost += remote_trouble(n->remote, i) != NULL;
        return lost;
}

void nodes_say_lost(const struct nodes *n) {
        struct buf b = {0};

        for (size_t i = 0; i < n->count; i++)
                if (remote_trouble(n->remote, i))
                        remote_write_trouble(n->remote, i, &b);
        file_write_fd(STDERR_FILENO, buf_slice(&b));
        buf_free(&b);
}

const char *nodes_prefix(const struct nodes *n, size_t node) {
        const char *text =
            n->single ? NULL : arena_printf((struct arena *)&n->plan.arena, "%s: ", n->targets[node].name);

        return text ? text : "";
}

int nodes_ask_all(struct nodes *n, const bool *yes, struct slice request, unsigned timeout_ms) {
        struct remote_call *calls = calloc(n->count, sizeof(*calls));
        size_t count = 0;
        int r;

        if (!calls)
                return -ENOMEM;
        drop_answers(n);
        for (size_t i = 0; i < n->count; i++)
                if (!yes || yes[i])
                        calls[count++] = (struct remote_call){.node = i, .request = request};
        r = remote_ask(n->remote, calls, count, timeout_ms, n->interrupt_fd);
        for (size_t i = 0; i < count; i++)
                n->calls[calls[i].node].answer = calls[i].answer;
        free(calls);
        return r;
}

int nodes_ask(struct nodes *n, size_t node, struct slice request, unsigned timeout_ms) {
        drop_answers(n);
        n->calls[node].request = request;
        return remote_ask(n->remote, &n->calls[node], 1, timeout_ms, n->interrupt_fd);
}

yyjson_doc *nodes_answer(const struct nodes *n, size_t node, int *ret_code, struct error *e) {
        struct slice text = buf_slice(&n->calls[node].answer), error;
        yyjson_doc *doc = NULL;
        int code;

        if (!text.len) {
                const struct remote_trouble *t = remote_trouble(n->remote, node);

                code = error_set(e, -ETIMEDOUT, "%s", t ? t->cause : "no answer in time");
                goto fail;
        }
        code = json_parse(text, &doc, e);
        if (code < 0)
                goto fail;
        error = json_get_slice(yyjson_doc_get_root(doc), "error");
        if (!error.ptr)
                return doc;
        code = (int)json_get_i64(yyjson_doc_get_root(doc), "code", -EIO);
        code = error_set(e, code < 0 ? code : -EIO, "%.*s", SLICE_ARG(error));
        yyjson_doc_free(doc);
fail:
        if (ret_code)
                *ret_code = code;
        return NULL;
}

size_t nodes_of_process(const struct nodes *n, struct slice name) {
        const struct plan *p = n->plan.plan;
        uint32_t node = UINT32_MAX;
        size_t i = 0;

        for (size_t k = 0; k < p->rank_count; k++)
                if (slice_eq(p->ranks[k].name, name))
                        node = p->ranks[k].node;
        if (slice_is(name, "gateway") && p->gateway_argv)
                node = (uint32_t)p->cluster->gateway.node;
        if (node == UINT32_MAX)
                return n->count;
        if (n->single)
                return 0;
        while (i < n->count && n->index[i] != node)
                i++;
        return i;
}
