/* metrics_group.c - figures of the group that shares experts, for /metrics. Prometheus adds and compares ranks. */
#include "engine/metrics.h"
#include <stdio.h>
#include <stdlib.h>

static void write_one(
    struct buf *out, const char *name, enum metric_type type, const char *help, const char *labels, double value) {
        metrics_describe(out, name, type, help);
        metrics_sample(out, name, labels, value);
}

/* A series for each expert, all layers together: a model may have thousands of pairs of layer and expert. */
static void write_experts(struct group *g, uint32_t experts, const char *labels, struct buf *out) {
        uint64_t *tokens = calloc(experts + 1, sizeof(*tokens));
        struct buf own = {0};
        char number[12];

        if (!tokens) {
                out->failed = true;
                return;
        }
        group_expert_tokens(g, tokens);
        metrics_describe(out, "baton:expert_window_tokens", METRIC_GAUGE,
            "Choices of an expert by this rank's tokens in the window, all layers together.");
        for (uint32_t e = 0; e < experts; e++) {
                int n = snprintf(number, sizeof(number), "%u", e);

                buf_reset(&own);
                buf_printf(&own, "%s", labels);
                metrics_label(&own, "expert", slice_of(number, (size_t)n));
                metrics_sample(out, "baton:expert_window_tokens", buf_cstr(&own), (double)tokens[e]);
        }
        buf_free(&own);
        free(tokens);
}

void metrics_write_group(struct group *g, const char *labels, struct buf *out) {
        struct group_figures f;

        group_tell(g, &f);
        write_one(
            out, "baton:group_ranks", METRIC_GAUGE, "Ranks that share the experts at the moment.", labels, f.present);
        write_one(out, "baton:group_size", METRIC_GAUGE, "Ranks that the group was started with.", labels, f.size);
        write_one(out, "baton:group_epoch", METRIC_GAUGE, "How often the group was formed.", labels, (double)f.epoch);
        write_one(out, "baton:expert_pairs_total", METRIC_COUNTER,
            "Pairs of token and expert that this rank computed for the group.", labels, (double)f.pairs);
        write_one(out, "baton:expert_balancedness", METRIC_GAUGE,
            "Mean over the largest load of a rank, by this rank's tokens in the window.", labels, f.balancedness);
        if (f.balance) {
                write_one(out, "baton:eplb_rebalances_total", METRIC_COUNTER, "Rebalances that came to their end.",
                    labels, (double)f.rebalances);
                write_one(out, "baton:eplb_experts_moved_total", METRIC_COUNTER, "Experts that moved to this rank.",
                    labels, (double)f.experts_moved);
                write_one(
                    out, "baton:eplb_moving", METRIC_GAUGE, "1 while a rebalance is under way.", labels, f.moving);
        }
        write_experts(g, f.experts, labels, out);
}
