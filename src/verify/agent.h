/* agent.h - what both ends of an agent's pipe agree on: one batch a line, and how long it may take. */
#pragma once
#include "base/clock.h"
#include "verify/verify.h"

/* So many tools run at once on a node: they are short, and the driver serialises much of it anyway. */
#define RUNNING_MAX 32
/* After so many commands without an answer the rest of a lane is not asked: the NPU hangs, and waiting for each of its
 * commands would take minutes. */
#define LANE_PATIENCE 2
/* A batch of 64 NPUs with 14 questions each takes 100 KiB, its answers, at their largest, 2 * 900 * 64 KiB; honest ones 1 MiB. */
#define BATCH_LINE_MAX (256u << 20)

static inline uint64_t now_ms(void) {
        return clock_mono_ns() / NS_PER_MS;
}
