/* findings.c - collecting what is wrong and writing it for people and programs; the rules behind the codes. */
#include "base/json.h"
#include "cluster/cluster.h"
#include <stdlib.h>

struct finding *findings_add(
    struct findings *f, enum severity severity, const char *code, struct place at, const char *format, ...) {
        va_list args;
        struct buf text = {0};
        struct finding *item;

        if (f->count >= FINDINGS_MAX)
                return NULL;
        if (f->count == f->capacity) {
                size_t capacity = f->capacity ? f->capacity * 2 : 16;
                struct finding *grown = arena_array(f->arena, capacity, sizeof(*grown));

                if (!grown) {
                        f->failed = true;
                        return NULL;
                }
                if (f->count)
                        memcpy(grown, f->items, f->count * sizeof(*grown));
                f->items = grown;
                f->capacity = capacity;
        }
        va_start(args, format);
        buf_vprintf(&text, format, args);
        va_end(args);
        item = &f->items[f->count++];
        *item = (struct finding){.severity = severity, .code = code, .at = at};
        if (f->count == FINDINGS_MAX) {
                item->severity = SEVERITY_ERROR;
                item->code = "Y09";
                item->cause = "more findings than are worth listing: mend the first ones, then check again";
        } else
                item->cause = arena_copy(f->arena, buf_slice(&text)).ptr;
        if (!item->cause || !buf_ok(&text)) {
                item->cause = "out of memory";
                f->failed = true;
        }
        buf_free(&text);
        return item;
}

void finding_cure(struct findings *f, struct finding *of, const char *format, ...) {
        va_list args;
        struct buf text = {0};

        if (!of)
                return;
        va_start(args, format);
        buf_vprintf(&text, format, args);
        va_end(args);
        of->cure = arena_copy(f->arena, buf_slice(&text)).ptr;
        buf_free(&text);
}

size_t findings_count(const struct findings *f, enum severity severity) {
        size_t n = 0;

        for (size_t i = 0; i < f->count; i++)
                n += f->items[i].severity == severity;
        return n;
}

static int compare(const void *pa, const void *pb) {
        const struct finding *a = pa, *b = pb;

        if (a->at.line != b->at.line)
                return a->at.line < b->at.line ? -1 : 1;
        if (a->at.column != b->at.column)
                return a->at.column < b->at.column ? -1 : 1;
        return strcmp(a->code, b->code);
}

void findings_sort(struct findings *f) {
        if (f->count)
                qsort(f->items, f->count, sizeof(*f->items), compare);
}

static void write_indented(struct buf *out, const char *text) {
        struct slice rest = slice_str(text), line;

        while (slice_split(&rest, '\n', &line))
                buf_printf(out, "    %.*s\n", SLICE_ARG(line));
}

void findings_write_text(const struct findings *f, const char *file, bool color, struct buf *out) {
        static const char *const words[] = {"warning", "error"}, *const colors[] = {"\033[33m", "\033[31m"};
        size_t errors = findings_count(f, SEVERITY_ERROR), warnings = findings_count(f, SEVERITY_WARNING);

        for (size_t i = 0; i < f->count; i++) {
                const struct finding *item = &f->items[i];
                struct slice rest = slice_str(item->cause), first;

                slice_split(&rest, '\n', &first);
                buf_printf(out, "%s:", file);
                if (item->at.line)
                        buf_printf(out, "%u:%u:", item->at.line, item->at.column);
                buf_printf(out, " %s%s%s %s: %.*s\n", color ? colors[item->severity] : "", words[item->severity],
                    color ? "\033[0m" : "", item->code, SLICE_ARG(first));
                if (rest.ptr)
                        write_indented(out, rest.ptr);
                if (item->cure)
                        buf_printf(out, "    cure: %s\n", item->cure);
        }
        if (f->count)
                buf_printf(out, "%zu error%s, %zu warning%s\n", errors, errors == 1 ? "" : "s", warnings,
                    warnings == 1 ? "" : "s");
}

void findings_write_json(const struct findings *f, const char *file, struct buf *out) {
        struct json_writer w = {.out = out};

        json_open(&w, '{');
        json_key(&w, "file");
        json_str(&w, file);
        json_key(&w, "errors");
        json_u64(&w, findings_count(f, SEVERITY_ERROR));
        json_key(&w, "warnings");
        json_u64(&w, findings_count(f, SEVERITY_WARNING));
        json_key(&w, "findings");
        json_open(&w, '[');
        for (size_t i = 0; i < f->count; i++) {
                const struct finding *item = &f->items[i];

                json_open(&w, '{');
                json_key(&w, "severity");
                json_str(&w, item->severity == SEVERITY_ERROR ? "error" : "warning");
                json_key(&w, "code");
                json_str(&w, item->code);
                json_key(&w, "line");
                json_u64(&w, item->at.line);
                json_key(&w, "column");
                json_u64(&w, item->at.column);
                json_key(&w, "cause");
                json_str(&w, item->cause);
                json_key(&w, "cure");
                json_str(&w, item->cure);
                json_close(&w, '}');
        }
        json_close(&w, ']');
        json_close(&w, '}');
        buf_add_char(out, '\n');
}

static const struct rule rules[] = {
    {"Y01", "the file is YAML", "Indentation with tabs and a missing space after a colon are the usual causes."},
    {"Y02", "every key is known", "A key that nobody reads is a setting that silently does nothing."},
    {"Y03", "no key stands twice", "Readers disagree on which of the two counts."},
    {"Y04", "every value has the kind its key wants", "A list where a name belongs is a slip of the pen."},
    {"Y05", "every value lies in its range", "Ports are 1..65535, sizes at least 1, choices one of those named."},
    {"Y06", "nothing that is needed is missing", "There is no sound default for it."},
    {"Y07", "names are unique and well formed",
        "Node names become parts of rank names (d0.3), file names and messages: letters, digits, '-' and '_'."},
    {"Y08", "what is referred to exists", "Groups and the gateway name nodes of the `nodes` mapping."},
    {"Y09", "the list of findings is bounded", "Beyond 500 the file is something else than a cluster file."},
    {"D01", "a group's ranks divide over its nodes",
        "Each node of a group carries dp / (number of nodes) ranks; the launcher gives every node the same count."},
    {"D02", "a node belongs to one group",
        "Two groups on one accelerator node fight for its devices and ports. Several "
        "nodes may share an address instead (engine kind embedded)."},
    {"D03", "a node has devices for its ranks", "Every rank takes tp devices: local ranks x tp must not exceed them."},
    {"D04", "prefill tp is a multiple of decode tp",
        "A decode rank pulls the latent KV cache from one prefill TP rank: P_tp >= D_tp and P_tp % D_tp == 0."},
    {"P01", "no port is used twice at one address",
        "The second process to bind it fails, often minutes into the start."},
    {"P02", "every port lies in 1..65535", "Ports of later ranks are counted up from the first."},
    {"P03", "fixed ports stay out of the ephemeral range",
        "Linux hands out 32768..60999 to outgoing connections (net.ipv4.ip_local_port_range): a rank's port may be "
        "taken "
        "by chance. Reserve it (net.ipv4.ip_local_reserved_ports) or choose another."},
    {"M01", "the drafts are few enough", "num_speculative_tokens beyond 8 costs more steps than it saves."},
    {"M02", "the engine kind can be launched", "Plans are made by a profile per engine kind."},
};

const struct rule *rule_list(size_t *ret_count) {
        *ret_count = sizeof(rules) / sizeof(*rules);
        return rules;
}

const struct rule *rule_find(struct slice code) {
        for (size_t i = 0; i < sizeof(rules) / sizeof(*rules); i++)
                if (slice_is_icase(code, rules[i].code))
                        return &rules[i];
        return NULL;
}
