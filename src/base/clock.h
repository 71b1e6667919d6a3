/* clock.h - time as integers. Below an event loop time is an argument; only loops and commands read the clock. */
#pragma once
#include <stdint.h>

#define NS_PER_US 1000ull
#define NS_PER_MS 1000000ull
#define NS_PER_S  1000000000ull

uint64_t clock_mono_ns(void); /* CLOCK_MONOTONIC */
uint64_t clock_wall_ns(void); /* CLOCK_REALTIME, since the epoch */

/* "2026-11-24T09:30:00.123Z" into at least CLOCK_TEXT_MAX bytes. */
#define CLOCK_TEXT_MAX 32
void clock_text(uint64_t wall_ns, char ret_text[CLOCK_TEXT_MAX]);
