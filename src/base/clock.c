/* clock.c - see clock.h. */
#include "base/clock.h"
#include <stdio.h>
#include <time.h>

static uint64_t read_clock(clockid_t id) {
        struct timespec t;

        clock_gettime(id, &t);
        return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

uint64_t clock_mono_ns(void) {
        return read_clock(CLOCK_MONOTONIC);
}

uint64_t clock_wall_ns(void) {
        return read_clock(CLOCK_REALTIME);
}

void clock_text(uint64_t wall_ns, char ret_text[CLOCK_TEXT_MAX]) {
        time_t seconds = (time_t)(wall_ns / NS_PER_S);
        struct tm t;
        size_t n;

        gmtime_r(&seconds, &t);
        n = strftime(ret_text, CLOCK_TEXT_MAX, "%Y-%m-%dT%H:%M:%S", &t);
        snprintf(ret_text + n, CLOCK_TEXT_MAX - n, ".%03uZ", (unsigned)(wall_ns / NS_PER_MS % 1000));
}
