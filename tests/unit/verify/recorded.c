/* recorded.c - see recorded.h. The rules are those of tests/data/ascend/replay. */
#include "recorded.h"
#include "base/file.h"
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#define NODES_MAX 4
#define WORD_GAP  '\x1f'

struct recording {
        char *key; /* words joined; one that ends in '*' answers all that begin so */
        yyjson_val *value;
        unsigned calls;
};
struct recorded_node {
        const char *name;
        yyjson_doc *doc;
        struct recording *items; /* sorted by key, then as recorded */
        size_t count;
        char *conf;      /* NULL: no such file */
        bool missing[2]; /* hccn_tool, npu-smi */
        struct removed {
                char *keys[512];
                size_t count;
        } removed;
};
struct recorded {
        struct arena arena;
        yyjson_doc *cluster, *fault, *changes;
        struct recorded_node nodes[NODES_MAX];
        size_t node_count;
};

const char *recorded_path(struct arena *arena, const char *below) {
        return arena_printf(arena, "%s/tests/data/ascend/%s", getenv("BATON_SOURCE"), below);
}

static yyjson_doc *read_json(struct arena *arena, const char *below) {
        yyjson_doc *doc;
        struct error e = {0};

        if (json_parse_file(recorded_path(arena, below), 8u << 20, &doc, &e) < 0) {
                fprintf(stderr, "%s\n", e.text);
                abort();
        }
        return doc;
}

static char *key_of(struct arena *arena, yyjson_val *argv) {
        struct buf b = {0};
        char *key;
        size_t i, n;
        yyjson_val *word;

        yyjson_arr_foreach(argv, i, n, word) {
                if (i)
                        buf_add_char(&b, WORD_GAP);
                buf_add(&b, json_slice(word));
        }
        key = (char *)(uintptr_t)arena_copy(arena, buf_slice(&b)).ptr;
        buf_free(&b);
        return key;
}

static bool covers(const char *pattern, const char *key) {
        size_t n = strlen(pattern);

        return n && pattern[n - 1] == '*' ? !strncmp(pattern, key, n - 1) : !strcmp(pattern, key);
}

static int compare(const void *a, const void *b) {
        const struct recording *x = a, *y = b;
        int r = strcmp(x->key, y->key);

        return r ? r : (x->calls > y->calls) - (x->calls < y->calls);
}

static void add_all(struct recorded *r, struct recorded_node *n, yyjson_val *list) {
        size_t i, count;
        yyjson_val *one;

        n->items = realloc(n->items, (n->count + yyjson_arr_size(list)) * sizeof(*n->items) + 1);
        assert(n->items);
        yyjson_arr_foreach(list, i, count, one) {
                n->items[n->count] =
                    (struct recording){key_of(&r->arena, yyjson_obj_get(one, "argv")), one, (unsigned)n->count};
                n->count++;
        }
}

static void drop(struct recorded_node *n, const char *pattern) {
        size_t kept = 0;

        for (size_t i = 0; i < n->count; i++)
                if (!covers(pattern, n->items[i].key))
                        n->items[kept++] = n->items[i];
        n->count = kept;
}

static void override(struct recorded *r, struct recorded_node *n, yyjson_val *list) {
        size_t i, count, k, m;
        yyjson_val *one, *each, *files, *conf;

        yyjson_arr_foreach(list, i, count, one) {
                if (!slice_is(json_get_slice(one, "node"), n->name))
                        continue;
                yyjson_arr_foreach(yyjson_obj_get(one, "remove"), k, m, each) drop(n, key_of(&r->arena, each));
                yyjson_arr_foreach(yyjson_obj_get(one, "recordings"), k, m, each)
                    drop(n, key_of(&r->arena, yyjson_obj_get(each, "argv")));
                add_all(r, n, yyjson_obj_get(one, "recordings"));
                yyjson_arr_foreach(yyjson_obj_get(one, "missing_tools"), k, m, each)
                    n->missing[!slice_is(json_slice(each), "hccn_tool")] = true;
                files = yyjson_obj_get(one, "files");
                conf = yyjson_obj_get(files, "/etc/hccn.conf");
                if (conf)
                        n->conf = yyjson_is_null(conf) ? NULL : (char *)(uintptr_t)yyjson_get_str(conf);
        }
}

struct recorded *recorded_open(const char *cluster, const char *fault, const char *changes) {
        struct recorded *r = calloc(1, sizeof(*r));
        yyjson_val *node;
        size_t i, count;

        assert(r);
        r->cluster = read_json(&r->arena, arena_printf(&r->arena, "clusters/%s/cluster.json", cluster));
        if (fault)
                r->fault = read_json(&r->arena, arena_printf(&r->arena, "faults/%s.json", fault));
        if (changes) {
                int failed = json_parse(slice_str(changes), &r->changes, NULL);

                assert(!failed);
                (void)failed;
        }
        yyjson_arr_foreach(yyjson_obj_get(yyjson_doc_get_root(r->cluster), "nodes"), i, count, node) {
                struct recorded_node *n = &r->nodes[r->node_count++];
                struct buf conf = {0};

                n->name = yyjson_get_str(yyjson_obj_get(node, "name"));
                n->doc =
                    read_json(&r->arena, arena_printf(&r->arena, "clusters/%s/%s/recordings.json", cluster, n->name));
                if (file_read_whole(
                        recorded_path(&r->arena, arena_printf(&r->arena, "clusters/%s/%s/hccn.conf", cluster, n->name)),
                        1u << 20, &conf, NULL) == 0)
                        n->conf = (char *)(uintptr_t)arena_copy(&r->arena, buf_slice(&conf)).ptr;
                buf_free(&conf);
                add_all(r, n, yyjson_doc_get_root(n->doc));
                override(r, n, yyjson_obj_get(yyjson_doc_get_root(r->fault), "overrides"));
                override(r, n, yyjson_doc_get_root(r->changes));
                qsort(n->items, n->count, sizeof(*n->items), compare);
        }
        recorded_rewind(r);
        return r;
}

void recorded_rewind(struct recorded *r) {
        for (size_t i = 0; i < r->node_count; i++)
                for (size_t k = 0; k < r->nodes[i].count; k++)
                        r->nodes[i].items[k].calls = 0;
}

void recorded_close(struct recorded *r) {
        for (size_t i = 0; i < r->node_count; i++) {
                yyjson_doc_free(r->nodes[i].doc);
                free(r->nodes[i].items);
        }
        yyjson_doc_free(r->cluster);
        yyjson_doc_free(r->fault);
        yyjson_doc_free(r->changes);
        arena_free(&r->arena);
        free(r);
}

yyjson_val *recorded_cluster(struct recorded *r) {
        return yyjson_doc_get_root(r->cluster);
}
yyjson_val *recorded_fault(struct recorded *r) {
        return yyjson_doc_get_root(r->fault);
}

/* ---- answers -------------------------------------------------------------------------------------------------------- */

/* The first recording of a key, and how many follow of the same. */
static struct recording *find(struct recorded_node *n, const char *key, size_t *ret_count) {
        size_t low = 0, high = n->count;

        while (low < high) {
                size_t mid = (low + high) / 2;

                if (strcmp(n->items[mid].key, key) < 0)
                        low = mid + 1;
                else
                        high = mid;
        }
        *ret_count = 0;
        while (low + *ret_count < n->count && !strcmp(n->items[low + *ret_count].key, key))
                ++*ret_count;
        return *ret_count ? &n->items[low] : NULL;
}

static void add_time(struct buf *b, bool hccs, size_t i, long t) {
        if (hccs)
                buf_printf(b,
                    "This pkt ping success!\nrecv seq %zu, time = %ld.%03ldus, L1 plane check result = 0x0\n\n", i,
                    t / 1000, t % 1000);
        else
                buf_printf(b, "recv seq=%zu,time=%.6fms\n", i, (double)t / 1000);
}

static bool answer_ping(yyjson_val *value, const char *address, struct arena *arena, struct answer *ret_answer) {
        yyjson_val *times = yyjson_obj_get(yyjson_obj_get(value, "peers"), address), *t;
        bool hccs = slice_is(json_get_slice(value, "kind"), "hccs_ping");
        struct buf b = {0};
        size_t i, n;

        if (!times)
                return false;
        buf_printf(&b, "device %ld PING %s\n%s", (long)json_get_i64(value, "device", 0), address, hccs ? "\n" : "");
        yyjson_arr_foreach(times, i, n, t) add_time(&b, hccs, i, (long)yyjson_get_int(t));
        buf_printf(&b, "%zu packets transmitted, %zu received, 0.00%% packet%s loss\n", n, n, hccs ? "s" : "");
        *ret_answer = (struct answer){.out = arena_copy(arena, buf_slice(&b))};
        buf_free(&b);
        return true;
}

static int base64_digit(char c) {
        static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        const char *at = c ? strchr(digits, c) : NULL;

        return at ? (int)(at - digits) : -1;
}

static struct slice base64(struct arena *arena, struct slice text) {
        char *out = arena_alloc(arena, text.len + 1);
        size_t n = 0;
        unsigned held = 0, bits = 0;

        for (size_t i = 0; i < text.len && base64_digit(text.ptr[i]) >= 0; i++) {
                held = held << 6 | (unsigned)base64_digit(text.ptr[i]);
                bits += 6;
                if (bits >= 8)
                        out[n++] = (char)(held >> (bits -= 8));
        }
        return slice_of(out, n);
}

static void answer_recorded(struct recording *first, size_t count, struct arena *arena, struct answer *ret_answer) {
        yyjson_val *v = first[first->calls < count ? first->calls : count - 1].value,
                   *raw = yyjson_obj_get(v, "stdout_b64");

        first->calls++;
        *ret_answer = (struct answer){
            .status = (int)json_get_i64(v, "rc", 0),
            .out = raw ? base64(arena, json_slice(raw)) : json_get_slice(v, "stdout"),
            .err = json_get_slice(v, "stderr"),
        };
        if (json_get_i64(v, "delay_ms", 0) >= ANSWER_DEADLINE_MS)
                *ret_answer = (struct answer){.state = ANSWER_LATE};
        ret_answer->out = slice_sub(ret_answer->out, 0, ANSWER_BYTES_MAX);
}

static void answer_one(
    struct recorded_node *n, const struct question *q, struct arena *arena, struct answer *ret_answer) {
        struct buf key = {0};
        size_t words = 0, count;
        struct recording *found;

        for (; q->words[words]; words++)
                buf_printf(&key, "%s%s", words ? "\x1f" : "", q->words[words]);
        if (!strcmp(q->words[0], "hccn.conf")) {
                *ret_answer =
                    n->conf ? (struct answer){.out = slice_str(n->conf)} : (struct answer){.state = ANSWER_NO_TOOL};
                goto out;
        }
        if (n->missing[strcmp(q->words[0], "hccn_tool") != 0]) {
                *ret_answer = (struct answer){.state = ANSWER_NO_TOOL};
                goto out;
        }
        found = find(n, buf_cstr(&key), &count);
        if (found && !yyjson_obj_get(found->value, "peers")) {
                answer_recorded(found, count, arena, ret_answer);
                goto out;
        }
        if (words == 7 && !strcmp(q->words[5], "address")) {
                char *pings = arena_printf(arena, "%s\x1f%s\x1f%s\x1f%s\x1f%s", q->words[0], q->words[1], q->words[2],
                    q->words[3], q->words[4]);

                found = find(n, pings, &count);
                if (found && answer_ping(found->value, q->words[6], arena, ret_answer))
                        goto out;
        }
        for (size_t keep = words; keep > 0; keep--) {
                struct buf pattern = {0};

                for (size_t i = 0; i < keep; i++)
                        buf_printf(&pattern, "%s\x1f", q->words[i]);
                buf_add_char(&pattern, '*');
                found = find(n, buf_cstr(&pattern), &count);
                buf_free(&pattern);
                if (found) {
                        answer_recorded(found, count, arena, ret_answer);
                        goto out;
                }
        }
        *ret_answer =
            (struct answer){.status = 99, .err = slice_str(arena_printf(arena, "unrecorded: %s", buf_cstr(&key)))};
out:
        buf_free(&key);
}

static void ask(
    void *context, struct batch *batches, size_t count, const struct listener *listener, struct arena *arena) {
        struct recorded *r = context;

        for (size_t i = 0; i < count; i++)
                for (size_t k = 0; k < batches[i].count; k++)
                        answer_one(&r->nodes[batches[i].node], &batches[i].questions[k], arena, &batches[i].answers[k]);
}

struct asker recorded_asker(struct recorded *r) {
        return (struct asker){r, ask};
}

void recorded_facts(struct recorded *r, struct arena *arena, struct facts *ret_facts) {
        yyjson_val *root = recorded_cluster(r), *node;
        struct slice platform = json_get_slice(root, "platform");
        size_t i, count;

        *ret_facts = (struct facts){
            .platform = slice_is(platform, "ascend-a2")   ? PLATFORM_ASCEND_A2
                        : slice_is(platform, "ascend-a3") ? PLATFORM_ASCEND_A3
                                                          : PLATFORM_ASCEND_A5,
            .nodes = arena_array(arena, r->node_count, sizeof(*ret_facts->nodes)),
            .node_count = r->node_count,
        };
        yyjson_arr_foreach(yyjson_obj_get(root, "nodes"), i, count, node) ret_facts->nodes[i] =
            (struct node_facts){.name = json_get_slice(node, "name"),
                .ip = json_get_slice(node, "ip"),
                .expected = json_get_i64(root, "devices_per_node", -1)};
}

void recorded_judge(
    struct recorded *r, struct arena *arena, struct facts *ret_facts, struct verify_findings *ret_findings) {
        struct asker asker = recorded_asker(r);
        int failed;

        recorded_facts(r, arena, ret_facts);
        *ret_findings = (struct verify_findings){.arena = arena};
        failed = collect(ret_facts, TOPICS_ALL, &asker, NULL, arena) < 0 ||
                 collect_pings(ret_facts, &asker, NULL, arena) < 0 || judge(ret_facts, ret_findings) < 0;
        assert(!failed);
        (void)failed;
}
