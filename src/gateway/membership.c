/* membership.c - the configured instances become others while the gateway runs. */
#include "gateway/core.h"
#include <errno.h>
#include <stdlib.h>

/* A member by its key, so that thousands of them can be compared with those that are here. */
struct wanted {
        const char *key;
        const struct gateway_member *member;
        bool here;
};

static int by_key(const void *a, const void *b) {
        return strcmp(((const struct wanted *)a)->key, ((const struct wanted *)b)->key);
}

/* Those of one role, sorted. Everything lives in `arena`. */
static int list_wanted(const struct gateway_member *members, size_t count, enum role role, struct arena *arena,
    struct wanted **ret_wanted, size_t *ret_count, struct error *e) {
        struct wanted *wanted = arena_array(arena, count, sizeof(*wanted));
        struct http_endpoint endpoint;
        size_t n = 0;

        if (!wanted)
                return -ENOMEM;
        for (size_t i = 0; i < count; i++) {
                int r;

                if (members[i].prefill != (role == ROLE_PREFILL))
                        continue;
                r = gateway_member_key(arena, &members[i], &endpoint, &wanted[n].key, e);
                if (r < 0)
                        return r;
                wanted[n++].member = &members[i];
        }
        qsort(wanted, n, sizeof(*wanted), by_key);
        for (size_t i = 1; i < n; i++)
                if (by_key(&wanted[i - 1], &wanted[i]) == 0)
                        return error_set(
                            e, -EEXIST, "%s is given twice as %s instance", wanted[i].key, pool_role_name(role));
        *ret_wanted = wanted;
        *ret_count = n;
        return 0;
}

/* Take out what is configured and not wanted, and note what is here already; one that was added by hand is configured from
 * now on. From the last on, because one that is removed may be gone at once. */
static void compare(struct gateway *g, enum role role, struct wanted *wanted, size_t count) {
        for (size_t k = pool_count(g->pool, role); k-- > 0;) {
                struct instance *i = pool_at(g->pool, role, k);
                const struct wanted key = {.key = i->key};
                struct wanted *found = count ? bsearch(&key, wanted, count, sizeof(*wanted), by_key) : NULL;

                if (i->state == INSTANCE_LEAVING)
                        continue;
                if (found) {
                        found->here = true;
                        i->added_later = false;
                } else if (!i->added_later) {
                        pool_remove(g->pool, i);
                }
        }
}

int gateway_set_members(struct gateway *g, const struct gateway_member *members, size_t count, struct error *e) {
        struct wanted *wanted[ROLE_COUNT] = {0};
        size_t counts[ROLE_COUNT] = {0};
        struct arena arena = {0};
        int r = 0;

        for (int role = 0; r == 0 && role < ROLE_COUNT; role++)
                r = list_wanted(members, count, (enum role)role, &arena, &wanted[role], &counts[role], e);
        if (r == 0 && counts[ROLE_PREFILL] > 0 && g->connector->order == ORDER_ONE)
                r = error_set(e, -EINVAL,
                    "the instances were whole engines: to keep prefill and decode apart, restart the gateway");
        for (int role = 0; r == 0 && role < ROLE_COUNT; role++) {
                compare(g, (enum role)role, wanted[role], counts[role]);
                for (size_t i = 0; r == 0 && i < counts[role]; i++)
                        if (!wanted[role][i].here)
                                r = gateway_add_member(g, wanted[role][i].member, false, e);
        }
        arena_free(&arena);
        return r;
}
