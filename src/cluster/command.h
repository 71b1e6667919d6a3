/* command.h - building argv and env from layers of settings, later ones winning (private to cluster/). */
#pragma once
#include "cluster/cluster.h"

struct command_entry {
        struct slice name, value;
        int kind; /* of struct setting */
};

struct command {
        struct arena *arena;
        struct command_entry *items;
        size_t count, capacity;
        bool failed;
};

/* Names compare with '-' and '_' equal for options; environment names compare exactly. An existing entry keeps its
 * position and takes the new value. */
void command_set(struct command *c, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
void command_switch(struct command *c, const char *name); /* an option without value */
void command_apply(struct command *c, const struct settings *s);

/* `head` (NULL-terminated) then --name value …; NULL when memory is out. */
const char *const *command_argv(struct command *c, const char *const *head);
const char *const *command_env(struct command *c); /* NAME=value … */
