/* ranktable.c - from facts to the table: who serves which role, the bytes, and the parts of nodes; see verify.h. */
#include "base/json.h"
#include "verify/judge.h"
#include <errno.h>

/* ---- the machines of a cluster file --------------------------------------------------------------------------------- */

static size_t find_machine(const struct facts *f, struct slice ip) {
        size_t i = 0;

        while (i < f->node_count && !slice_eq(f->nodes[i].ip, ip))
                i++;
        return i;
}

static int64_t platform_npus(enum platform p) {
        return p == PLATFORM_ASCEND_A3 ? 16 : p == PLATFORM_ASCEND_A2 || p == PLATFORM_ASCEND_A5 ? 8 : -1;
}

int facts_of_cluster(const struct cluster *c, struct arena *arena, struct facts *ret_facts) {
        struct facts f = {.platform = c->platform};

        f.nodes = arena_array(arena, c->node_count, sizeof(*f.nodes));
        if (!f.nodes)
                return -ENOMEM;
        for (int r = 0; r < 2; r++)
                for (size_t g = 0; g < c->roles[r].group_count; g++)
                        for (size_t i = 0; i < c->roles[r].groups[g].count; i++) {
                                const struct cluster_node *n = &c->nodes[c->roles[r].groups[g].nodes[i]];

                                if (find_machine(&f, n->ip) < f.node_count)
                                        continue;
                                f.nodes[f.node_count++] = (struct node_facts){.name = n->name,
                                    .ip = n->ip,
                                    .expected = n->devices >= 0 ? n->devices : platform_npus(c->platform)};
                        }
        *ret_facts = f;
        return 0;
}

/* ---- which NPUs serve which role ------------------------------------------------------------------------------------ */

int facts_choose(struct facts *facts, const uint32_t *ids, size_t count, struct arena *arena, struct error *e) {
        for (size_t i = 0; i < facts->node_count; i++) {
                struct node_facts *n = &facts->nodes[i];
                struct npu_facts *chosen = arena_array(arena, count, sizeof(*chosen));

                if (!chosen)
                        return -ENOMEM;
                if (!n->npu_count)
                        continue;
                for (size_t k = 0; k < count; k++) {
                        size_t at = 0;

                        while (at < n->npu_count && n->npus[at].device != ids[k])
                                at++;
                        if (at == n->npu_count)
                                return error_set(e, -EINVAL, "node %.*s has no NPU %u; `npu-smi info -m` lists its %zu",
                                    SLICE_ARG(n->name), ids[k], n->npu_count);
                        chosen[k] = n->npus[at];
                }
                n->npus = chosen;
                n->npu_count = count;
                n->expected = (int64_t)count;
        }
        return 0;
}

static size_t entries_at(const struct cluster *c, struct slice ip) {
        size_t n = 0;

        for (int r = 0; r < 2; r++)
                for (size_t g = 0; g < c->roles[r].group_count; g++)
                        for (size_t i = 0; i < c->roles[r].groups[g].count; i++)
                                n += slice_eq(c->nodes[c->roles[r].groups[g].nodes[i]].ip, ip);
        return n;
}

int ranktable_shares(const struct cluster *c, const struct facts *facts, struct arena *arena,
    struct ranktable_share **ret_shares, size_t *ret_count, struct error *e) {
        size_t capacity = 0, n = 0, *taken = arena_array(arena, facts->node_count, sizeof(*taken));
        struct ranktable_share *shares;

        for (int r = 0; r < 2; r++)
                for (size_t g = 0; g < c->roles[r].group_count; g++)
                        capacity += c->roles[r].groups[g].count;
        shares = arena_array(arena, capacity, sizeof(*shares));
        if (!taken || !shares)
                return -ENOMEM;
        for (int r = 0; r < 2; r++)
                for (size_t g = 0; g < c->roles[r].group_count; g++) {
                        const struct cluster_group *group = &c->roles[r].groups[g];

                        for (size_t i = 0; i < group->count; i++) {
                                const struct cluster_node *node = &c->nodes[group->nodes[i]];
                                size_t m = find_machine(facts, node->ip), there = facts->nodes[m].npu_count;
                                bool alone = entries_at(c, node->ip) == 1;
                                size_t need =
                                    alone ? there : (size_t)(c->roles[r].dp / (int64_t)group->count * c->roles[r].tp);

                                if (taken[m] + need > there)
                                        return error_set(e, -EINVAL,
                                            "%.*s needs NPUs %zu to %zu of %.*s, which has %zu", SLICE_ARG(node->name),
                                            taken[m], taken[m] + need - 1, SLICE_ARG(node->ip), there);
                                shares[n++] = (struct ranktable_share){(uint32_t)m, taken[m], need, r};
                                taken[m] += need;
                        }
                }
        *ret_shares = shares;
        *ret_count = n;
        return 0;
}

/* What gen_ranktable does without a word. */
static void say_counts(
    const struct facts *facts, const struct ranktable_share *shares, size_t count, struct verify_findings *findings) {
        struct judge j = {.facts = facts, .findings = findings, .arena = findings->arena};

        for (uint32_t i = 0; i < facts->node_count; i++) {
                size_t by_role[2] = {0}, left;

                for (size_t s = 0; s < count; s++)
                        if (shares[s].node == i)
                                by_role[shares[s].role] += shares[s].count;
                left = facts->nodes[i].npu_count - by_role[0] - by_role[1];
                if (by_role[0] && by_role[1] && facts->node_count > 1)
                        cure(&j,
                            say(&j, SEVERITY_WARNING, CHECK_RANKTABLE, i, -1,
                                "this node would serve both roles: %zu NPUs prefill, %zu decode", by_role[0],
                                by_role[1]),
                            "make the prefill count a multiple of the NPUs of a node");
                if (left)
                        cure(&j,
                            say(&j, SEVERITY_WARNING, CHECK_RANKTABLE, i, -1, "%zu of its %zu NPUs are left out", left,
                                facts->nodes[i].npu_count),
                            "raise the counts, or leave the node out; prefill nodes come first in the list");
        }
}

int ranktable_shares_by_count(const struct facts *facts, uint64_t prefill, uint64_t decode, struct arena *arena,
    struct ranktable_share **ret_shares, size_t *ret_count, struct verify_findings *findings, struct error *e) {
        struct ranktable_share *shares = arena_array(arena, 2 * facts->node_count, sizeof(*shares));
        uint64_t left[2] = {prefill, decode}, all = 0;
        size_t n = 0;

        if (!shares)
                return -ENOMEM;
        for (size_t i = 0; i < facts->node_count; i++)
                all += facts->nodes[i].npu_count;
        if (prefill > all || decode > all - prefill)
                return error_set(e, -EINVAL, "%llu prefill and %llu decode NPUs are asked for, the %zu nodes have %llu",
                    (unsigned long long)prefill, (unsigned long long)decode, facts->node_count,
                    (unsigned long long)all);
        for (uint32_t i = 0; i < facts->node_count; i++) {
                size_t at = 0;

                for (int role = 0; role < 2; role++) {
                        size_t there = facts->nodes[i].npu_count - at,
                               take = left[role] < there ? (size_t)left[role] : there;

                        if (!take)
                                continue;
                        shares[n++] = (struct ranktable_share){i, at, take, role};
                        at += take;
                        left[role] -= take;
                }
        }
        say_counts(facts, shares, n, findings);
        *ret_shares = shares;
        *ret_count = n;
        return 0;
}

bool ranktable_refuses(const struct verify_finding *f) {
        static const enum check grave[] = {CHECK_NODE, CHECK_TOOLS, CHECK_PERMISSION, CHECK_PLATFORM, CHECK_NPU_LIST,
            CHECK_NPU_MAP, CHECK_IP, CHECK_VNIC, CHECK_SPOD};

        for (size_t i = 0; i < sizeof(grave) / sizeof(*grave); i++)
                if (f->severity == SEVERITY_ERROR && !strcmp(f->check, check_rows[grave[i]].name))
                        return true;
        return false;
}

/* ---- the bytes ------------------------------------------------------------------------------------------------------- */

/* JSON as Python's json.dumps(indent=4) has it, every value a string. The texts are addresses and numbers, which need no
 * escaping; names of nodes never get here. */
struct table {
        struct buf *out;
        unsigned depth;
        bool first;
};

static void next_item(struct table *t) {
        buf_add_str(t->out, t->first ? "\n" : ",\n");
        for (unsigned i = 0; i < t->depth; i++)
                buf_add_str(t->out, "    ");
        t->first = false;
}

static void open_at(struct table *t, const char *key, char bracket) {
        if (t->depth)
                next_item(t);
        if (key)
                buf_printf(t->out, "\"%s\": ", key);
        buf_add_char(t->out, bracket);
        t->depth++;
        t->first = true;
}

static void close_with(struct table *t, char bracket) {
        bool empty = t->first;

        t->depth--;
        if (!empty) {
                t->first = true;
                next_item(t);
        }
        t->first = false;
        buf_add_char(t->out, bracket);
}

static void text_item(struct table *t, const char *key, struct slice value) {
        next_item(t);
        buf_printf(t->out, "\"%s\": ", key);
        json_add_string(t->out, value);
}

static void number_item(struct table *t, const char *key, uint64_t value) {
        next_item(t);
        buf_printf(t->out, "\"%s\": \"%llu\"", key, (unsigned long long)value);
}

/* The NPU's address in a table: where the data goes. */
static const struct npu_address *table_address(const struct facts *f, const struct npu_facts *npu) {
        return f->platform == PLATFORM_ASCEND_A3 ? &npu->vnic : &npu->ip;
}

static void write_entry(struct table *t, const struct facts *f, const struct node_facts *n, const struct npu_facts *npu,
    uint64_t cluster_id) {
        open_at(t, NULL, '{');
        text_item(t, "server_id", n->ip);
        number_item(t, "device_id", npu->device);
        text_item(t, "device_ip", slice_str(table_address(f, npu)->text));
        if (f->platform == PLATFORM_ASCEND_A3) {
                number_item(t, "super_pod_id", npu->spod.pod);
                number_item(t, "super_device_id", npu->spod.sdid);
        }
        number_item(t, "cluster_id", cluster_id);
        close_with(t, '}');
}

static void write_page(struct table *t, const struct facts *f, const struct ranktable_share *shares, size_t count) {
        uint64_t cluster_id = 1;

        open_at(t, NULL, '{');
        text_item(t, "version", SLICE_LIT("1.2"));
        number_item(t, "server_count", f->node_count);
        for (int role = 0; role < 2; role++) {
                open_at(t, role == ROLE_PREFILL ? "prefill_device_list" : "decode_device_list", '[');
                for (size_t s = 0; s < count; s++)
                        for (size_t i = 0; shares[s].role == role && i < shares[s].count; i++) {
                                const struct node_facts *n = &f->nodes[shares[s].node];

                                write_entry(t, f, n, &n->npus[shares[s].first + i], cluster_id++);
                        }
                close_with(t, ']');
        }
        text_item(t, "status", SLICE_LIT("completed"));
        close_with(t, '}');
}

static bool is_first_of_node(const struct ranktable_share *shares, size_t at) {
        for (size_t i = 0; i < at; i++)
                if (shares[i].node == shares[at].node)
                        return false;
        return true;
}

static void write_hccl_server(struct table *t, const struct facts *f, const struct ranktable_share *shares,
    size_t count, uint32_t node, bool pods, uint64_t *rank) {
        const struct node_facts *n = &f->nodes[node];

        open_at(t, NULL, '{');
        text_item(t, "server_id", n->ip);
        open_at(t, "device", '[');
        for (size_t s = 0; s < count; s++)
                for (size_t i = 0; shares[s].node == node && i < shares[s].count; i++) {
                        const struct npu_facts *npu = &n->npus[shares[s].first + i];

                        open_at(t, NULL, '{');
                        number_item(t, "device_id", npu->device);
                        if (npu->ip.known)
                                text_item(t, "device_ip", slice_str(npu->ip.text));
                        if (pods)
                                number_item(t, "super_device_id", npu->spod.sdid);
                        number_item(t, "rank_id", (*rank)++);
                        close_with(t, '}');
                }
        close_with(t, ']');
        close_with(t, '}');
}

static void write_pods(struct table *t, const struct facts *f, const struct ranktable_share *shares, size_t count) {
        open_at(t, "super_pod_list", '[');
        for (size_t s = 0; s < count; s++) {
                uint64_t pod = f->nodes[shares[s].node].npus[shares[s].first].spod.pod;
                bool before = false;

                for (size_t i = 0; i < s; i++)
                        before |= f->nodes[shares[i].node].npus[shares[i].first].spod.pod == pod;
                if (before)
                        continue;
                open_at(t, NULL, '{');
                number_item(t, "super_pod_id", pod);
                open_at(t, "server_list", '[');
                for (size_t i = s; i < count; i++) {
                        const struct node_facts *n = &f->nodes[shares[i].node];

                        if (!is_first_of_node(shares, i) || n->npus[shares[i].first].spod.pod != pod)
                                continue;
                        open_at(t, NULL, '{');
                        text_item(t, "server_id", n->ip);
                        close_with(t, '}');
                }
                close_with(t, ']');
                close_with(t, '}');
        }
        close_with(t, ']');
}

static void write_hccl(
    struct table *t, const struct facts *f, const struct ranktable_share *shares, size_t count, bool pods) {
        uint64_t servers = 0, rank = 0;

        for (size_t s = 0; s < count; s++)
                servers += is_first_of_node(shares, s);
        open_at(t, NULL, '{');
        text_item(t, "status", SLICE_LIT("completed"));
        text_item(t, "version", pods ? SLICE_LIT("1.2") : SLICE_LIT("1.0"));
        number_item(t, "server_count", servers);
        open_at(t, "server_list", '[');
        for (size_t s = 0; s < count; s++)
                if (is_first_of_node(shares, s))
                        write_hccl_server(t, f, shares, count, shares[s].node, pods, &rank);
        close_with(t, ']');
        if (pods)
                write_pods(t, f, shares, count);
        close_with(t, '}');
}

static int check_shares(const struct facts *f, const struct ranktable_share *shares, size_t count,
    enum ranktable_format format, struct error *e) {
        bool a3 = f->platform == PLATFORM_ASCEND_A3;

        if (!a3 && f->platform != PLATFORM_ASCEND_A2)
                return error_set(e, -EINVAL, "a ranktable is for ascend-a2 and ascend-a3, this cluster is %s",
                    platform_name(f->platform));
        if (format == RANKTABLE_HCCL12 && !a3)
                return error_set(e, -EINVAL, "HCCL 1.2 is the table of super pods (ascend-a3); use 1.0 on ascend-a2");
        for (size_t s = 0; s < count; s++)
                for (size_t i = 0; i < shares[s].count; i++) {
                        const struct node_facts *n = &f->nodes[shares[s].node];
                        const struct npu_facts *npu = &n->npus[shares[s].first + i];
                        const struct npu_address *address =
                            format == RANKTABLE_HCCL10 ? &npu->ip : table_address(f, npu);

                        if (!address->known)
                                return error_set(e, -EINVAL, "npu %u of %.*s has no %s address", npu->device,
                                    SLICE_ARG(n->name), address == &npu->ip ? "RoCE" : "vNIC");
                        if (a3 && !npu->spod.has_sdid)
                                return error_set(
                                    e, -EINVAL, "npu %u of %.*s has no SDID", npu->device, SLICE_ARG(n->name));
                }
        return 0;
}

int ranktable_write(const struct facts *facts, const struct ranktable_share *shares, size_t count,
    enum ranktable_format format, struct buf *out, struct error *e) {
        struct table t = {.out = out};
        int r = check_shares(facts, shares, count, format, e);

        if (r < 0)
                return r;
        if (format == RANKTABLE_PAGE)
                write_page(&t, facts, shares, count);
        else
                write_hccl(&t, facts, shares, count, format == RANKTABLE_HCCL12);
        return buf_ok(out) ? 0 : -ENOMEM;
}

/* ---- parts ----------------------------------------------------------------------------------------------------------- */

#define PART_VERSION 1

static void write_address(struct json_writer *w, const char *key, const struct npu_address *a) {
        struct buf mask = {0};

        if (!a->known)
                return;
        buf_printf(&mask, "%u.%u.%u.%u", a->mask >> 24, a->mask >> 16 & 255, a->mask >> 8 & 255, a->mask & 255);
        json_key(w, key);
        json_open(w, '[');
        json_str(w, a->text);
        json_string(w, buf_slice(&mask));
        json_close(w, ']');
        buf_free(&mask);
}

void part_write(const struct facts *facts, size_t node, struct buf *out) {
        const struct node_facts *n = &facts->nodes[node];
        struct json_writer w = {.out = out};

        json_open(&w, '{');
        json_key(&w, "baton_ranktable_part");
        json_i64(&w, PART_VERSION);
        json_key(&w, "platform");
        json_str(&w, platform_name(n->platform_known ? n->platform : facts->platform));
        json_key(&w, "node");
        json_string(&w, n->name);
        json_key(&w, "ip");
        json_string(&w, n->ip);
        json_key(&w, "npus");
        json_open(&w, '[');
        for (size_t i = 0; i < n->npu_count; i++) {
                const struct npu_facts *p = &n->npus[i];

                json_open(&w, '{');
                json_key(&w, "device");
                json_u64(&w, p->device);
                write_address(&w, "ip", &p->ip);
                write_address(&w, "vnic", &p->vnic);
                if (p->spod.known) {
                        json_key(&w, "super_pod_id");
                        json_u64(&w, p->spod.pod);
                        json_key(&w, "server_index");
                        json_u64(&w, p->spod.server);
                }
                if (p->spod.has_sdid) {
                        json_key(&w, "super_device_id");
                        json_u64(&w, p->spod.sdid);
                }
                json_close(&w, '}');
        }
        json_close(&w, ']');
        json_close(&w, '}');
        buf_add_char(out, '\n');
}

static void read_address(yyjson_val *v, struct npu_address *ret_address) {
        struct slice text = json_slice(yyjson_arr_get(v, 0));
        struct npu_address a = {.known = true};

        if (parse_ipv4(text, &a.address) < 0 || !a.address)
                return;
        memcpy(a.text, text.ptr, text.len);
        if (parse_ipv4(json_slice(yyjson_arr_get(v, 1)), &a.mask) < 0)
                a.mask = 0;
        *ret_address = a;
}

static bool read_npu(yyjson_val *v, struct npu_facts *ret_npu) {
        int64_t device = json_get_i64(v, "device", -1), pod = json_get_i64(v, "super_pod_id", -1),
                sdid = json_get_i64(v, "super_device_id", -1), server = json_get_i64(v, "server_index", -1);

        if (device < 0 || device >= 1024)
                return false;
        *ret_npu = (struct npu_facts){.device = (uint32_t)device};
        read_address(yyjson_obj_get(v, "ip"), &ret_npu->ip);
        read_address(yyjson_obj_get(v, "vnic"), &ret_npu->vnic);
        ret_npu->spod.known = pod >= 0 && server >= 0;
        ret_npu->spod.has_sdid = ret_npu->spod.known && sdid >= 0;
        ret_npu->spod.pod = (uint64_t)pod;
        ret_npu->spod.server = (uint64_t)server;
        ret_npu->spod.sdid = (uint64_t)sdid;
        return true;
}

static bool read_platform(struct slice name, enum platform *ret_platform) {
        static const enum platform platforms[] = {PLATFORM_ASCEND_A2, PLATFORM_ASCEND_A3, PLATFORM_ASCEND_A5};

        for (size_t i = 0; i < sizeof(platforms) / sizeof(*platforms); i++)
                if (slice_is(name, platform_name(platforms[i]))) {
                        *ret_platform = platforms[i];
                        return true;
                }
        return false;
}

static int read_npus(yyjson_val *list, struct node_facts *n, struct arena *arena, struct error *e) {
        size_t count = yyjson_arr_size(list), i, max;
        yyjson_val *v;

        if (!count || count > MAP_ROWS_MAX)
                return error_set(e, -EINVAL, "the part of %.*s has %zu NPUs", SLICE_ARG(n->name), count);
        n->npus = arena_array(arena, count, sizeof(*n->npus));
        if (!n->npus)
                return -ENOMEM;
        yyjson_arr_foreach(list, i, max, v) {
                if (!read_npu(v, &n->npus[i]))
                        return error_set(
                            e, -EINVAL, "NPU %zu of the part of %.*s is not what baton writes", i, SLICE_ARG(n->name));
                for (size_t k = 0; k < i; k++)
                        if (n->npus[k].device == n->npus[i].device)
                                return error_set(e, -EINVAL, "the part of %.*s has NPU %u twice", SLICE_ARG(n->name),
                                    n->npus[i].device);
        }
        n->npu_count = count;
        n->from_part = true;
        return 0;
}

int part_read(struct facts *facts, struct slice text, struct arena *arena, struct error *e) {
        yyjson_doc *doc = NULL;
        yyjson_val *root;
        struct node_facts *n;
        size_t at;
        int r = json_parse(text, &doc, e);

        if (r < 0)
                return r;
        root = yyjson_doc_get_root(doc);
        r = -EINVAL;
        if (json_get_i64(root, "baton_ranktable_part", -1) != PART_VERSION) {
                error_set(
                    e, r, "not a part of a ranktable that this version writes; `baton ranktable … --node NAME` does");
                goto out;
        }
        at = find_machine(facts, json_get_slice(root, "ip"));
        if (at == facts->node_count) {
                error_set(e, r, "the part is of %.*s, which is not a node here", SLICE_ARG(json_get_slice(root, "ip")));
                goto out;
        }
        n = &facts->nodes[at];
        if (n->from_part) {
                error_set(e, r, "the part of %.*s is given twice", SLICE_ARG(n->name));
                goto out;
        }
        if (!read_platform(json_get_slice(root, "platform"), &n->platform)) {
                error_set(e, r, "the part of %.*s tells no platform", SLICE_ARG(n->name));
                goto out;
        }
        n->platform_known = true;
        r = read_npus(yyjson_obj_get(root, "npus"), n, arena, e);
out:
        yyjson_doc_free(doc);
        return r;
}
