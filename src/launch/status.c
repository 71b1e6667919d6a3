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
                    .said = arena_copy(arena, json_get_slice(item, "said")),
                    .cause = arena_copy(arena, json_get_slice(item, "cause")),
                    .cure = arena_copy(arena, json_get_slice(item, "cure")),
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

int launch_words_since(const struct launch_paths *paths, struct slice name, uint64_t from, struct buf *out) {
        char path[400];
        struct stat st;
        uint64_t least;
        char *room;
        ssize_t n;
        int fd;

        snprintf(path, sizeof(path), "%s/%.*s.log", paths->logs, SLICE_ARG(name));
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
                return -errno;
        room = buf_reserve(out, LAST_WORDS_MAX);
        if (!room || fstat(fd, &st) < 0) {
                close(fd);
                return room ? -EIO : -ENOMEM;
        }
        /* One that was moved on meanwhile is shorter than it was, and all of it is news. */
        least = st.st_size > LAST_WORDS_MAX ? (uint64_t)st.st_size - LAST_WORDS_MAX : 0;
        if (from > (uint64_t)st.st_size)
                from = 0;
        n = pread(fd, room, LAST_WORDS_MAX, (off_t)(from > least ? from : least));
        if (n < 0)
                n = 0;
        buf_commit(out, (size_t)n);
        close(fd);
        return 0;
}

int launch_last_words(const struct launch_paths *paths, struct slice name, unsigned lines, struct buf *out) {
        struct buf text = {0};
        int r = launch_words_since(paths, name, 0, &text);
        size_t begin = text.len;

        /* Back over `lines` line ends, not counting the one that closes the last line. */
        while (begin && !(text.ptr[begin - 1] == '\n' && begin < text.len && lines-- <= 1))
                begin--;
        if (r == 0)
                buf_append(out, text.ptr + begin, text.len - begin);
        buf_free(&text);
        return r < 0 || buf_ok(out) ? r : -ENOMEM;
}
