/* fuzz_gateway.c - hostile clients and hostile engines: whatever the bytes, bodies that are made are JSON objects without
 * the client's kv_transfer_params, and a relay fed with any stream ends cleanly. */
#include "gateway/connector.h"
#include "gateway/continuation.h"
#include "gateway/join.h"
#include "http/sse.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_body(const struct body *b) {
        struct openai_member m[OPENAI_MEMBERS_MAX];
        struct buf text = {0};
        size_t n, at;

        for (size_t i = 0; i < b->count; i++)
                buf_add(&text, b->parts[i]);
        if (openai_scan(buf_slice(&text), m, OPENAI_MEMBERS_MAX, &n, &at) == -EINVAL || text.len != b->bytes)
                abort();
        buf_free(&text);
}

static void run_relay(const struct facts *f, struct slice stream, struct arena *arena, struct source *source) {
        struct sse *sse = sse_new();
        struct buf out = {0};
        struct slice event;
        struct relay r;

        relay_init(&r, f);
        r.track = true;
        r.cached_tokens = 3;
        while (sse && sse_next(sse, &stream, &event) == 1)
                if (relay_event(&r, event, &out) != RELAY_MORE) {
                        bool goes_on = !relay_obstacle(&r) && r.ids_sent > 0;
                        struct edits edits = {0};
                        struct body body;

                        if (goes_on && continuation_edits(f, &r, 1, arena, &edits) == 0) {
                                source->edits = &edits;
                                if (connector_prefill_body(&connector_pull, source, arena, &body) == 0)
                                        check_body(&body);
                        }
                        relay_restart(&r, goes_on && f->api == API_CHAT);
                }
        if (r.model.ptr)
                relay_end_at_length(&r, &out);
        relay_end_usage(&r, 1, &out);
        relay_free(&r);
        sse_free(sse);
        buf_free(&out);
}

/* The input: a request body, a NUL, an engine's answer. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct slice input = slice_of(data, size), text;
        struct arena arena = {0};
        struct facts facts;
        struct openai_error e;
        struct source source;
        struct handoff h = {.params = SLICE_LIT("{\"p\":1}")};
        struct body body;
        struct whole whole;
        struct buf out = {0};

        if (!slice_split(&input, 0, &text))
                return 0;
        if (facts_read(size % 2 ? API_CHAT : API_COMPLETIONS, text, &arena, &facts, &e) == 0) {
                source = (struct source){
                    .facts = &facts, .text = facts.body, .members = facts.members, .count = facts.member_count};
                if (connector_prefill_body(&connector_pull, &source, &arena, &body) == 0)
                        check_body(&body);
                for (int purpose = DECODE_ANSWER; purpose <= DECODE_SETTLE; purpose++)
                        if (connector_decode_body(
                                &connector_pull, &source, &h, (enum decode_purpose)purpose, true, &arena, &body) == 0)
                                check_body(&body);
                run_relay(&facts, input, &arena, &source);
        }
        connector_pull.take(input, &arena, &h, NULL);
        if (whole_read(input, &whole) == 0) {
                const struct join_part part = {.answer = &whole, .counts_prompt = true, .cached_tokens = -1};

                whole_is_recomputed(&whole);
                join_one(&whole, 5, &out);
                join_many(&part, 1, SLICE_LIT("\"id\""), &out);
        }
        arena_free(&arena);
        buf_free(&out);
        return 0;
}
