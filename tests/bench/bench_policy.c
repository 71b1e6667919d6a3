/* What choosing an instance costs: processor time per pick among 10 to 10,000 instances, for each policy; and with all that
 * a leg adds to it: its load taken and that of another given back, its prompt noted. Prompts continue one of many
 * conversations, more than the processor's caches hold. Hashing a prompt, once per request, is told apart. */
#include "gateway/pool.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LEGS = 50000, FLIGHT = 20000, CONVERSATIONS = 20000, PROMPT_BYTES = 8192 };

struct conversation {
        uint64_t keys[PREFIX_KEYS_MAX];
        struct prompt prompt;
};

static double now_ns(void) {
        struct timespec t;

        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
        return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Every second one begins with one of a hundred system prompts that fills its first half. */
static struct conversation *make_conversations(double *ret_ns_per_hash) {
        struct conversation *all = calloc(CONVERSATIONS, sizeof(*all));
        static char text[PROMPT_BYTES];
        double spent = 0;
        struct rng rng;

        if (!all)
                abort();
        for (uint64_t k = 0; k < CONVERSATIONS; k++) {
                double begin;

                rng_seed(&rng, k % 2 ? k : k % 200);
                for (size_t i = 0; i < PROMPT_BYTES / 2; i++)
                        text[i] = (char)rng_u64(&rng);
                rng_seed(&rng, k);
                for (size_t i = PROMPT_BYTES / 2; i < PROMPT_BYTES; i++)
                        text[i] = (char)rng_u64(&rng);
                begin = now_ns();
                all[k].prompt = (struct prompt){.keys = all[k].keys,
                    .key_count = prefix_keys(slice_of(text, PROMPT_BYTES), 0, all[k].keys),
                    .bytes = PROMPT_BYTES,
                    .tokens = PROMPT_BYTES / 4};
                spent += now_ns() - begin;
        }
        *ret_ns_per_hash = spent / CONVERSATIONS;
        return all;
}

static struct pool *make_pool(const struct policy *policy, size_t instances) {
        const struct pool_options options = {
            .policy = {policy, policy}, .cap = FLIGHT, .seed = 1, .prefix_bytes = 64 << 20};
        struct pool *p;
        char key[64];

        if (pool_new(&options, &p) < 0)
                abort();
        for (size_t k = 0; k < instances; k++) {
                const struct instance_spec spec = {.key = key, .dp_rank = -1};
                struct instance *i;

                snprintf(key, sizeof(key), "10.%zu.%zu.%zu:8000", k >> 16, k >> 8 & 255, k & 255);
                if (pool_add(p, &spec, 0, &i) < 0)
                        abort();
                pool_report(i, HEALTH_PROBE_OK, 0);
        }
        return p;
}

static struct instance *pick(struct pool *p, const struct conversation *c, uint64_t session) {
        const struct policy_facts facts = {.tokens = c->prompt.tokens, .session = session | 1};
        struct instance *i = pool_pick(p, ROLE_PREFILL, &facts, &c->prompt);

        if (!i)
                abort();
        return i;
}

static void begin_leg(struct pool *p, const struct conversation *c, uint64_t session, struct load *load) {
        struct instance *i = pick(p, c, session);
        uint64_t warm = pool_note_prompt(i, &c->prompt);

        pool_give_back(load);
        pool_take(i, LOAD_LEG, c->prompt.tokens - warm, load);
}

struct cost {
        double pick, leg;
};

static struct cost measure(const struct policy *policy, size_t instances, const struct conversation *all) {
        static struct load loads[FLIGHT];
        struct pool *p = make_pool(policy, instances);
        struct cost cost;
        struct rng rng;
        double begin = 0;

        rng_seed(&rng, 7);
        for (size_t n = 0; n < LEGS + FLIGHT; n++) {
                uint64_t k = rng_below(&rng, CONVERSATIONS);

                if (n == FLIGHT)
                        begin = now_ns();
                begin_leg(p, &all[k], k << 1, &loads[n % FLIGHT]);
        }
        cost.leg = (now_ns() - begin) / LEGS;
        begin = now_ns();
        for (size_t n = 0; n < LEGS; n++) {
                uint64_t k = rng_below(&rng, CONVERSATIONS);

                pick(p, &all[k], k << 1);
        }
        cost.pick = (now_ns() - begin) / LEGS;
        for (size_t n = 0; n < FLIGHT; n++)
                pool_give_back(&loads[n]);
        pool_free(p);
        return cost;
}

int main(void) {
        static const size_t sizes[] = {10, 100, 1000, 10000};
        double hash;
        struct conversation *all = make_conversations(&hash);

        printf(
            "nanoseconds for a pick, and for a pick with its leg's begin and another's end, among N instances\n%-16s",
            "");
        for (size_t s = 0; s < 4; s++)
                printf(" %17zu", sizes[s]);
        printf("\n");
        for (const struct policy *p = policy_table; p->name; p++) {
                printf("%-16s", p->name);
                for (size_t s = 0; s < 4; s++) {
                        struct cost c = measure(p, sizes[s], all);

                        printf(" %8.0f %8.0f", c.pick, c.leg);
                }
                printf("\n");
        }
        printf("keys of a prompt of %d bytes: %.0f ns\n", PROMPT_BYTES, hash);
        free(all);
        return 0;
}
