/* status.c - reading the supervisor's answers and a process's last words. */
#include "base/json.h"
#include "launch/launch.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define LAST_WORDS_MAX 65536

static enum process_state parse_state(struct slice text) {
        for (int i = 0; i <= PROCESS_STOPPED; i++)
                if (slice_is(text, process_state_name((enum process_state)i)))
                        return (enum process_state)i;
        return PROCESS_WAITING;
}

int launch_status_parse(struct slice json, struct arena *arena, struct launch_status *ret_status, struct error *e) {
        struct launch_status status = {0};
        yyjson_doc *doc;
        yyjson_val *root, *list, *item;
        size_t i, n;
        int r = json_parse(json, &doc, e);

        if (r < 0)
                return r;
        root = yyjson_doc_get_root(doc);
        list = json_get(root, "processes");
        status.pid = json_get_i64(root, "pid", 0);
        status.stopping = json_get_bool(root, "stopping", false);
        status.digest = arena_copy(arena, json_get_slice(root, "digest"));
        status.processes = arena_array(arena, yyjson_arr_size(list) + 1, sizeof(*status.processes));
        if (!status.processes || !status.digest.ptr) {
                yyjson_doc_free(doc);
                return error_set(e, -ENOMEM, "out of memory");
        }
        yyjson_arr_foreach(list, i, n, item) {
                status.processes[status.count++] = (struct process_status){
                    .name = arena_copy(arena, json_get_slice(item, "name")),
                    .role = arena_copy(arena, json_get_slice(item, "role")),
                    .url = arena_copy(arena, json_get_slice(item, "url")),
                    .last_exit = arena_copy(arena, json_get_slice(item, "last_exit")),
                    .state = parse_state(json_get_slice(item, "state")),
                    .pid = json_get_i64(item, "pid", -1),
                    .restarts = json_get_i64(item, "restarts", 0),
                    .since_ms = json_get_i64(item, "since_ms", 0),
                    .ready_ms = json_get_i64(item, "ready_ms", -1),
                    .retry_ms = json_get_i64(item, "retry_ms", -1),
                };
        }
        yyjson_doc_free(doc);
        *ret_status = status;
        return 0;
}

int launch_last_words(const struct launch_paths *paths, struct slice name, unsigned lines, struct buf *out) {
        char path[400], text[LAST_WORDS_MAX];
        struct stat st;
        ssize_t n;
        size_t begin;
        int fd;

        snprintf(path, sizeof(path), "%s/%.*s.log", paths->logs, SLICE_ARG(name));
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
                return -errno;
        if (fstat(fd, &st) < 0 ||
            (n = pread(fd, text, sizeof(text), st.st_size > LAST_WORDS_MAX ? st.st_size - LAST_WORDS_MAX : 0)) < 0) {
                int r = -errno;

                close(fd);
                return r;
        }
        close(fd);
        /* Back over `lines` line ends, not counting the one that closes the last line. */
        begin = (size_t)n;
        while (begin && !(text[begin - 1] == '\n' && begin < (size_t)n && lines-- <= 1))
                begin--;
        buf_append(out, text + begin, (size_t)n - begin);
        return buf_ok(out) ? 0 : -ENOMEM;
}
