/* folder.h - a copy of a fixture in a temporary folder, to be damaged. */
#pragma once
#include "base/file.h"
#include "fixture.h"
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

struct folder {
        char path[256];
};

static inline const char *folder_file(const struct folder *d, const char *name) {
        static char paths[4][1040]; /* the longest folder and the longest name */
        static unsigned at;
        char *path = paths[at++ % 4];

        snprintf(path, sizeof(paths[0]), "%s/%s", d->path, name);
        return path;
}

static inline struct buf file_read(const char *path) {
        struct buf b = {0};
        struct error e = {{0}};

        if (file_read_whole(path, 1 << 26, &b, &e) < 0)
                fail_msg("%s", e.text);
        return b;
}

static inline void file_write(const char *path, struct slice bytes) {
        FILE *f = fopen(path, "wb");

        assert_non_null(f);
        assert_int_equal(fwrite(bytes.ptr, 1, bytes.len, f), bytes.len);
        assert_int_equal(fclose(f), 0);
}

static inline struct folder folder_copy(const char *fixture) {
        const char *tmp = getenv("TMPDIR");
        struct folder d;
        struct dirent *entry;
        DIR *from = opendir(data_path(fixture, ""));

        snprintf(d.path, sizeof(d.path), "%s/baton-model-XXXXXX", tmp ? tmp : "/tmp");
        assert_non_null(mkdtemp(d.path));
        assert_non_null(from);
        while ((entry = readdir(from))) {
                struct buf b;
                struct stat st;

                if (stat(data_path(fixture, entry->d_name), &st) < 0 || !S_ISREG(st.st_mode))
                        continue;
                b = file_read(data_path(fixture, entry->d_name));
                file_write(folder_file(&d, entry->d_name), buf_slice(&b));
                buf_free(&b);
        }
        closedir(from);
        return d;
}

static inline void folder_remove(struct folder *d) {
        struct dirent *entry;
        DIR *dir = opendir(d->path);

        assert_non_null(dir);
        while ((entry = readdir(dir)))
                if (entry->d_name[0] != '.')
                        unlink(folder_file(d, entry->d_name));
        closedir(dir);
        rmdir(d->path);
}

static inline struct slice text_replace(
    struct buf *out, struct slice rest, struct slice from, struct slice to, size_t *count) {
        size_t at;

        *count = 0;
        while ((at = slice_find_slice(rest, from, 0)) < rest.len) {
                buf_add(out, slice_sub(rest, 0, at));
                buf_add(out, to);
                rest = slice_sub(rest, at + from.len, rest.len);
                (*count)++;
        }
        buf_add(out, rest);
        return buf_slice(out);
}

/* Replace the only occurrence of `from` in a text file; every one with ALL. */
enum occurrences { ONE, ALL };

static inline void file_replace(const char *path, struct slice from, struct slice to, enum occurrences occurrences) {
        struct buf b = file_read(path), out = {0};
        size_t count;

        text_replace(&out, buf_slice(&b), from, to, &count);
        if (count == 0 || (occurrences == ONE && count != 1))
                fail_msg("%s holds \"%.*s\" %zu times", path, SLICE_ARG(from), count);
        file_write(path, buf_slice(&out));
        buf_free(&b);
        buf_free(&out);
}

static inline void tensor_file_write(const char *path, struct slice header, struct slice data) {
        struct buf out = {0};

        for (int i = 0; i < 8; i++)
                buf_add_char(&out, (char)(header.len >> 8 * i));
        buf_add(&out, header);
        buf_add(&out, data);
        file_write(path, buf_slice(&out));
        buf_free(&out);
}

static inline struct slice tensor_file_header(const struct buf *file) {
        uint64_t n;

        memcpy(&n, file->ptr, 8);
        return slice_sub(buf_slice(file), 8, 8 + n);
}

/* Replace all occurrences in the header of a safetensors file, and put `more` behind its data. */
static inline void header_replace(const char *path, struct slice from, struct slice to, struct slice more) {
        struct buf b = file_read(path), header = {0}, data = {0};
        struct slice old = tensor_file_header(&b);
        size_t count;

        text_replace(&header, old, from, to, &count);
        if (count == 0)
                fail_msg("the header of %s does not hold \"%.*s\"", path, SLICE_ARG(from));
        buf_add(&data, slice_sub(buf_slice(&b), 8 + old.len, b.len));
        buf_add(&data, more);
        tensor_file_write(path, buf_slice(&header), buf_slice(&data));
        buf_free(&b);
        buf_free(&header);
        buf_free(&data);
}

/* One more tensor at the end of a fixture's file: all of them begin with this. */
#define HEADER_BEGIN "{\"__metadata__\":{\"format\":\"pt\"},"

static inline void tensor_add(
    const char *path, const char *name, const char *dtype, const char *shape, struct slice data) {
        struct buf b = file_read(path), begin = {0};
        size_t end = b.len - 8 - tensor_file_header(&b).len;

        buf_printf(&begin, HEADER_BEGIN "\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]},", name,
            dtype, shape, end, end + data.len);
        header_replace(path, SLICE_LIT(HEADER_BEGIN), buf_slice(&begin), data);
        buf_free(&b);
        buf_free(&begin);
}

/* Overwrite bytes of a tensor. */
static inline void tensor_patch(const char *path, const char *name, size_t at, const void *bytes, size_t len) {
        struct safetensors s = {0};
        struct error e = {{0}};
        const struct tensor *t;
        FILE *f = fopen(path, "r+b");

        if (safetensors_add_file(&s, path, &e) < 0)
                fail_msg("%s", e.text);
        t = safetensors_find(&s, slice_str(name));
        assert_true(t && f && at + len <= t->bytes);
        assert_int_equal(fseek(f, (long)(t->data + at - (const unsigned char *)s.files[0].map), SEEK_SET), 0);
        assert_int_equal(fwrite(bytes, 1, len, f), len);
        fclose(f);
        safetensors_close(&s);
}

static inline int folder_load(const struct folder *d, struct model_options o, struct error *e) {
        const struct fixture_options one = {.isa = ISA_BEST, .threads = 1};
        struct compute *c = fixture_compute(&one);
        struct model *m = NULL;
        int r;

        o.dir = d->path;
        o.compute = c;
        r = model_load(&o, &m, e);
        assert_true(r == 0 ? m != NULL : m == NULL);
        model_free(m);
        compute_free(c);
        return r;
}

/* Loading the folder fails with `code` and a text that holds `text`. */
static inline void refused(const struct folder *d, struct model_options o, int code, const char *text) {
        struct error e = {{0}};
        int r = folder_load(d, o, &e);

        if (r != code || !strstr(e.text, text))
                fail_msg("loading gives %d \"%s\", not %d \"…%s…\"", r, e.text, code, text);
}

static inline void accepted(const struct folder *d, struct model_options o) {
        struct error e = {{0}};

        if (folder_load(d, o, &e) < 0)
                fail_msg("loading fails: %s", e.text);
}
