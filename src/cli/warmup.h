/* warmup.h - what `baton demo` shares with `baton warmup`. */
#pragma once
#include "cli/cli.h"
#include "launch/launch.h"
#include <stdio.h>

int cli_warmup_plan(const struct plan *p, struct arena *arena, struct warmup_options *w);
void cli_report_warmup(const struct warmup_report *r, FILE *to);
