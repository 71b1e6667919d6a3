/* command.h - building argv and env from layers of settings, later ones winning (private to cluster/). */
#pragma once
#include "cluster/cluster.h"

struct command_entry {
        struct slice name, value;
        enum setting_kind kind;
        struct place at; /* line 0: derived, not written by the user */
};

struct command {
        struct arena *arena;
        struct command_entry *items;
        size_t count, capacity;
        bool exact; /* names of variables, not of options: '-' and '_' differ, and dashes in front are part of them */
        bool failed;
};

/* An existing entry keeps its position and takes the new value; a JSON object written
 * as a mapping is merged into the one that is there (RFC 7386: null drops a member). */
void command_set(struct command *c, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
void command_switch(struct command *c, const char *name); /* an option without value */
void command_unset(struct command *c, const char *name);  /* a variable to be removed from the environment */
void command_apply(struct command *c, const struct settings *s);

/* NULL when there is none, or when it is switched off or dropped. */
const struct command_entry *command_find(const struct command *c, const char *name);

/* `head` (NULL-terminated) then --name value …; NULL when memory is out. */
const char *const *command_argv(struct command *c, const char *const *head);
const char *const *command_env(struct command *c); /* NAME=value …, NAME for what is to be removed */
