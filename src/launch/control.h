/* control.h - the supervisor's control socket (private to launch/). */
#pragma once
#include "launch/process.h"

void control_request(void *context, struct http_exchange *x);
void supervisor_begin_stop(struct supervisor *s);
/* All three: false: no such process, or everything is being stopped. */
bool supervisor_restart(struct supervisor *s, struct slice name);
bool supervisor_halt(struct supervisor *s, struct slice name);
bool supervisor_start(struct supervisor *s, struct slice name);
