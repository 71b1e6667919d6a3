/* host_parse.c - see host.h. */
#include "base/json.h"
#include "verify/host.h"
#include "verify/parse.h"
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>

/* Lists in an answer are longer than this only when it is not an agent's. */
#define ITEMS_MAX 4096u

struct reader {
        struct arena *arena;
        int error; /* the first */
};

static void fail_with(struct reader *r, int error) {
        if (!r->error)
                r->error = error;
}

static struct slice take_slice(struct reader *r, yyjson_val *object, const char *key, bool needed) {
        yyjson_val *v = json_get(object, key);
        struct slice copy;

        if (!yyjson_is_str(v)) {
                if (needed || (v && !yyjson_is_null(v)))
                        fail_with(r, -EINVAL);
                return SLICE_LIT("");
        }
        copy = arena_copy(r->arena, json_slice(v));
        if (!copy.ptr)
                fail_with(r, -ENOMEM);
        return copy;
}

static int64_t take_number(struct reader *r, yyjson_val *v) {
        int64_t number = 0;

        if (json_to_i64(v, &number) < 0)
                fail_with(r, -EINVAL);
        return number;
}

static bool take_bool(struct reader *r, yyjson_val *object, const char *key) {
        yyjson_val *v = json_get(object, key);

        if (!yyjson_is_bool(v))
                fail_with(r, -EINVAL);
        return yyjson_is_true(v);
}

/* Room for the items of a list; NULL when it is no list, which has failed then. */
static void *take_list(struct reader *r, yyjson_val *list, size_t item) {
        void *items = NULL;

        if (!yyjson_is_arr(list) || yyjson_arr_size(list) > ITEMS_MAX)
                fail_with(r, -EINVAL);
        else if (!(items = arena_array(r->arena, yyjson_arr_size(list) + 1, item)))
                fail_with(r, -ENOMEM);
        return items;
}

/* ---- ports -------------------------------------------------------------------------------------------------------------- */

static int compare_doors(const void *a, const void *b) {
        const struct host_door *x = a, *y = b;

        return (x->port > y->port) - (x->port < y->port);
}

int host_doors_parse(struct slice out, struct arena *arena, struct host_doors *ret) {
        struct reader r = {arena, 0};
        struct host_doors d = {0};
        yyjson_doc *doc;
        yyjson_val *list, *v;
        size_t i, n;

        if (json_parse(out, &doc, NULL) < 0)
                return -EINVAL;
        list = json_get(yyjson_doc_get_root(doc), "ports");
        d.items = take_list(&r, list, sizeof(*d.items));
        yyjson_arr_foreach(list, i, n, v) {
                struct host_door *door;
                int64_t port;

                if (r.error)
                        break;
                port = take_number(&r, json_get(v, "port"));
                door = &d.items[d.count++];
                if (port < 1 || port > 65535 || !json_get(v, "error"))
                        fail_with(&r, -EINVAL);
                *door = (struct host_door){
                    (uint16_t)port, take_slice(&r, v, "error", false), take_slice(&r, v, "holder", false)};
                d.count_open += !door->error.len;
                d.count_silent += slice_is(door->error, "ETIMEDOUT");
        }
        yyjson_doc_free(doc);
        if (r.error)
                return r.error;
        if (!d.count)
                return -EINVAL;
        qsort(d.items, d.count, sizeof(*d.items), compare_doors);
        *ret = d;
        return 0;
}

const struct host_door *host_door_find(const struct host_doors *d, uint16_t port) {
        struct host_door wanted = {.port = port};

        return bsearch(&wanted, d->items, d->count, sizeof(wanted), compare_doors);
}

bool host_door_is_open(const struct host_doors *d, uint16_t port) {
        const struct host_door *door = host_door_find(d, port);

        return door && !door->error.len;
}

/* ---- facts -------------------------------------------------------------------------------------------------------------- */

static void take_nics(struct reader *r, yyjson_val *list, struct host_told *ret) {
        yyjson_val *v, *address;
        size_t i, n, k, m;

        ret->nics = take_list(r, list, sizeof(*ret->nics));
        yyjson_arr_foreach(list, i, n, v) {
                struct host_nic *nic;
                yyjson_val *addresses = json_get(v, "addresses");

                if (r->error)
                        return;
                nic = &ret->nics[ret->nic_count++];
                *nic = (struct host_nic){.name = take_slice(r, v, "name", true),
                    .up = take_bool(r, v, "up"),
                    .carrier = take_bool(r, v, "carrier"),
                    .mtu = take_number(r, json_get(v, "mtu")),
                    .addresses = take_list(r, addresses, sizeof(*nic->addresses))};
                yyjson_arr_foreach(addresses, k, m, address) {
                        if (r->error)
                                return;
                        if (!yyjson_is_str(address))
                                fail_with(r, -EINVAL);
                        nic->addresses[nic->address_count++] = arena_copy(r->arena, json_slice(address));
                }
        }
}

static void take_proxies(struct reader *r, yyjson_val *list, struct host_told *ret) {
        yyjson_val *v;
        size_t i, n;

        ret->proxies = take_list(r, list, sizeof(*ret->proxies));
        yyjson_arr_foreach(list, i, n, v) {
                if (r->error)
                        return;
                ret->proxies[ret->proxy_count].name = take_slice(r, v, "name", true);
                ret->proxies[ret->proxy_count++].value = take_slice(r, v, "value", true);
        }
}

static struct host_limit take_limit(struct reader *r, yyjson_val *limits, const char *name) {
        yyjson_val *pair = json_get(limits, name);

        return (struct host_limit){take_number(r, yyjson_arr_get(pair, 0)), take_number(r, yyjson_arr_get(pair, 1))};
}

static void take_spaces(struct reader *r, yyjson_val *list, struct host_told *ret) {
        yyjson_val *v;
        size_t i, n;

        ret->spaces = take_list(r, list, sizeof(*ret->spaces));
        yyjson_arr_foreach(list, i, n, v) {
                struct host_space *s;

                if (r->error)
                        return;
                s = &ret->spaces[ret->space_count++];
                *s = (struct host_space){.use = take_slice(r, v, "use", true),
                    .path = take_slice(r, v, "path", true),
                    .error = take_slice(r, v, "error", false)};
                if (s->error.len)
                        continue;
                s->free = (uint64_t)take_number(r, json_get(v, "free"));
                s->all = (uint64_t)take_number(r, json_get(v, "all"));
                s->read_only = take_bool(r, v, "read_only");
        }
}

static void take_ephemeral(struct reader *r, struct slice text, struct host_told *ret) {
        uint64_t first, last;
        size_t gap = 0;

        while (gap < text.len && text.ptr[gap] != '\t' && text.ptr[gap] != ' ')
                gap++;
        if (slice_to_u64(slice_sub(text, 0, gap), &first) < 0 ||
            slice_to_u64(slice_trim(slice_sub(text, gap, text.len)), &last) < 0 || last > 65535 || first > last) {
                fail_with(r, -EINVAL);
                return;
        }
        ret->ephemeral_first = (uint32_t)first;
        ret->ephemeral_last = (uint32_t)last;
}

int host_told_parse(struct slice out, struct arena *arena, struct host_told *ret) {
        struct reader r = {arena, 0};
        struct host_told t = {0};
        yyjson_doc *doc;
        yyjson_val *root, *limits;

        if (json_parse(out, &doc, NULL) < 0)
                return -EINVAL;
        root = yyjson_doc_get_root(doc);
        limits = json_get(root, "limits");
        take_nics(&r, json_get(root, "nics"), &t);
        take_ephemeral(&r, take_slice(&r, root, "ephemeral", true), &t);
        t.reserved = take_slice(&r, root, "reserved", true);
        take_proxies(&r, json_get(root, "proxies"), &t);
        t.no_proxy = take_slice(&r, root, "no_proxy", true);
        t.root = take_bool(&r, root, "root");
        t.nofile = take_limit(&r, limits, "nofile");
        t.memlock = take_limit(&r, limits, "memlock");
        t.nproc = take_limit(&r, limits, "nproc");
        take_spaces(&r, json_get(root, "space"), &t);
        yyjson_doc_free(doc);
        if (r.error)
                return r.error;
        *ret = t;
        return 0;
}

static bool same_address(struct slice a, struct slice b) {
        unsigned char x[16], y[16];
        char text[2][64];

        if (slice_eq(a, b))
                return true;
        if (a.len >= 64 || b.len >= 64)
                return false;
        memcpy(text[0], a.ptr, a.len);
        memcpy(text[1], b.ptr, b.len);
        text[0][a.len] = text[1][b.len] = 0;
        return inet_pton(AF_INET6, text[0], x) == 1 && inet_pton(AF_INET6, text[1], y) == 1 && !memcmp(x, y, 16);
}

const struct host_nic *host_nic_with(const struct host_told *t, struct slice ip) {
        for (size_t i = 0; i < t->nic_count; i++)
                for (size_t k = 0; k < t->nics[i].address_count; k++)
                        if (same_address(t->nics[i].addresses[k], ip))
                                return &t->nics[i];
        return NULL;
}

/* ---- the model ---------------------------------------------------------------------------------------------------------- */

static int compare_files(const void *a, const void *b) {
        return slice_cmp(((const struct host_file *)a)->name, ((const struct host_file *)b)->name);
}

int host_model_parse(struct slice out, struct arena *arena, struct host_model *ret) {
        struct reader r = {arena, 0};
        struct host_model m = {0};
        yyjson_doc *doc;
        yyjson_val *list, *v;
        size_t i, n;

        if (json_parse(out, &doc, NULL) < 0)
                return -EINVAL;
        m.error = take_slice(&r, yyjson_doc_get_root(doc), "error", false);
        list = json_get(yyjson_doc_get_root(doc), "files");
        if (!m.error.len)
                m.files = take_list(&r, list, sizeof(*m.files));
        yyjson_arr_foreach(list, i, n, v) {
                struct host_file *f;

                if (r.error || !m.files)
                        break;
                f = &m.files[m.count++];
                *f = (struct host_file){.name = take_slice(&r, v, "name", true),
                    .hash = take_slice(&r, v, "hash", false),
                    .error = take_slice(&r, v, "error", false)};
                if (!f->error.len)
                        f->size = (uint64_t)take_number(&r, json_get(v, "size"));
        }
        yyjson_doc_free(doc);
        if (r.error)
                return r.error;
        if (m.count)
                qsort(m.files, m.count, sizeof(*m.files), compare_files);
        *ret = m;
        return 0;
}

/* ---- small lists -------------------------------------------------------------------------------------------------------- */

/* A network such as 10.0.0.0/8, which curl, requests and Go read. */
static bool in_network(struct slice network, struct slice ip) {
        struct slice base;
        uint64_t bits;
        uint32_t a, b, mask;

        if (!slice_split(&network, '/', &base) || !network.ptr || slice_to_u64(network, &bits) < 0 || bits > 32 ||
            parse_ipv4(base, &a) < 0 || parse_ipv4(ip, &b) < 0)
                return false;
        mask = bits ? ~0u << (32 - bits) : 0;
        return (a & mask) == (b & mask);
}

bool host_proxy_catches(struct slice no_proxy, struct slice ip) {
        struct slice rest = no_proxy, one;

        while (slice_split(&rest, ',', &one)) {
                one = slice_trim(one);
                if (slice_is(one, "*") || slice_eq(one, ip) || in_network(one, ip) ||
                    (slice_starts(one, SLICE_LIT(".")) && slice_ends(ip, one)))
                        return false;
        }
        return true;
}

bool host_port_in_list(struct slice list, uint16_t port) {
        struct slice rest = list, run, first;

        while (slice_split(&rest, ',', &run)) {
                uint64_t from, to;

                slice_split(&run, '-', &first);
                if (slice_to_u64(slice_trim(first), &from) < 0)
                        continue;
                to = from;
                if (run.ptr && slice_to_u64(slice_trim(run), &to) < 0)
                        continue;
                if (port >= from && port <= to)
                        return true;
        }
        return false;
}

/* ---- firewalls ---------------------------------------------------------------------------------------------------------- */

static bool holds(struct slice text, const char *needle) {
        return slice_find_slice(text, slice_str(needle), 0) < text.len;
}

/* Tables of nft in which something is dropped or refused, by name. */
static void add_tables(struct slice rules, struct buf *out) {
        struct slice rest = rules, line, table = {0};

        while (slice_split(&rest, '\n', &line)) {
                if (slice_starts(line, SLICE_LIT("table ")))
                        table = slice_trim(slice_sub(line, 6, slice_find(line, '{', 0)));
                if (table.len && (holds(line, "drop") || holds(line, "reject"))) {
                        buf_printf(out, "%snft table %.*s", out->len ? ", " : "", SLICE_ARG(table));
                        table.len = 0;
                }
        }
}

const char *host_firewall_hint(const struct host_facts *h, struct arena *arena) {
        struct buf b = {0};
        struct slice said;
        const char *text;

        if (h->firewall_asked && answer_trouble(&h->nft, &said) == TROUBLE_NONE)
                add_tables(h->nft.out, &b);
        if (h->firewall_asked && !b.len && answer_trouble(&h->iptables, &said) == TROUBLE_NONE &&
            (holds(h->iptables.out, "DROP") || holds(h->iptables.out, "REJECT")))
                buf_add_str(&b, "iptables");
        text = arena_copy(arena, buf_slice(&b)).ptr;
        buf_free(&b);
        return text ? text : "";
}
