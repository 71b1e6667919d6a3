/* quantize_files.c - the folder that a quantised checkpoint is written to. It has another name until all is there. */
#include "base/json.h"
#include "model/quantize.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* Of a file that is no weight, read and written piece by piece. */
#define COPY_BYTES (1u << 20)

static int fail_path(struct error *e, int code, const char *doing, const char *path) {
        return error_set(e, code, "cannot %s %s: %s", doing, path, strerror(-code));
}

static char *join(const char *dir, const char *name) {
        char *path = NULL;

        return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

/* ---- bytes ---------------------------------------------------------------------------------------------------------- */

static int write_at(int fd, uint64_t at, const void *data, size_t bytes) {
        const char *from = data;

        while (bytes) {
                ssize_t n = pwrite(fd, from, bytes, (off_t)at);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                from += n;
                at += (uint64_t)n;
                bytes -= (size_t)n;
        }
        return 0;
}

static int make_file(const char *path, struct error *e) {
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);

        return fd < 0 ? fail_path(e, -errno, "make", path) : fd;
}

/* `r`, or what the disk says to what was written. */
static int close_file(int fd, int r, const char *path, struct error *e) {
        if (r == 0 && fsync(fd) < 0)
                r = fail_path(e, -errno, "write", path);
        close(fd);
        return r;
}

static int sync_folder(const char *path) {
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = fd < 0 || fsync(fd) < 0 ? -errno : 0;

        if (fd >= 0)
                close(fd);
        return r;
}

/* ---- the folder ----------------------------------------------------------------------------------------------------- */

/* Without slashes at its end: ".partial" is for the name, and nothing belongs inside. */
static char *folder_name(const char *to) {
        size_t len = strlen(to);

        while (len > 1 && to[len - 1] == '/')
                len--;
        return strndup(to, len);
}

int new_folder_open(struct new_folder *f, const char *to, const char *stem, size_t file_count, struct error *e) {
        struct new_folder new = {.path = folder_name(to), .stem = stem, .file_count = file_count};
        struct stat st;
        int r = 0;

        if (!new.path || asprintf(&new.partial, "%s.partial", new.path) < 0) {
                new.partial = NULL;
                r = error_set(e, -ENOMEM, "out of memory");
        } else if (lstat(new.path, &st) == 0)
                r = error_set(e, -EEXIST, "%s is there already; nothing is overwritten", new.path);
        else if (mkdir(new.partial, 0777) < 0)
                r = errno != EEXIST
                        ? fail_path(e, -errno, "make the folder", new.partial)
                        : error_set(e, -EEXIST,
                              "%s is there already: another run is writing it, or one was interrupted; remove it if "
                              "none runs",
                              new.partial);
        if (r == 0)
                *f = new;
        else {
                free(new.path);
                free(new.partial);
        }
        return r;
}

int new_folder_write(struct new_folder *f, const char *name, struct slice text, struct error *e) {
        char *path = join(f->partial, name);
        int fd, r;

        if (!path)
                return error_set(e, -ENOMEM, "out of memory");
        r = fd = make_file(path, e);
        if (fd >= 0) {
                r = write_at(fd, 0, text.ptr, text.len);
                if (r < 0)
                        fail_path(e, r, "write", path);
                r = close_file(fd, r, path, e);
        }
        free(path);
        return r;
}

int new_folder_check_space(struct new_folder *f, uint64_t bytes, struct error *e) {
        struct statvfs fs;
        uint64_t left;

        if (statvfs(f->partial, &fs) < 0)
                return fail_path(e, -errno, "look at the file system of", f->partial);
        left = (uint64_t)fs.f_bavail * fs.f_frsize;
        if (bytes <= left)
                return 0;
        return error_set(e, -ENOSPC, "%s needs %.1f GB, and its file system has %.1f GB left", f->path,
            (double)bytes / 1e9, (double)left / 1e9);
}

static int copy_bytes(int from, int to) {
        char *piece = malloc(COPY_BYTES);
        ssize_t n = 0;
        off_t at = 0;
        int r = piece ? 0 : -ENOMEM;

        while (r == 0 && (n = read(from, piece, COPY_BYTES)) > 0) {
                r = write_at(to, (uint64_t)at, piece, (size_t)n);
                at += n;
        }
        if (r == 0 && n < 0)
                r = -errno;
        free(piece);
        return r;
}

/* Only a regular file, or a link to one. */
static int copy_file(struct new_folder *f, const char *from, const char *name, struct error *e) {
        char *source = join(from, name), *path = join(f->partial, name);
        int in = -1, fd, r = 0;
        struct stat st;

        if (!source || !path)
                r = error_set(e, -ENOMEM, "out of memory");
        else if (stat(source, &st) < 0)
                r = fail_path(e, -errno, "read", source);
        else if (S_ISREG(st.st_mode)) {
                in = open(source, O_RDONLY | O_CLOEXEC);
                r = in < 0 ? fail_path(e, -errno, "read", source) : 0;
        }
        if (in >= 0) {
                r = fd = make_file(path, e);
                if (fd >= 0) {
                        r = copy_bytes(in, fd);
                        if (r < 0)
                                error_set(e, r, "cannot copy %s to %s: %s", source, path, strerror(-r));
                        r = close_file(fd, r, path, e);
                }
                close(in);
        }
        free(source);
        free(path);
        return r;
}

int new_folder_copy_rest(struct new_folder *f, const char *from, struct error *e) {
        DIR *d = opendir(from);
        struct dirent *entry;
        int r = 0;

        if (!d)
                return fail_path(e, -errno, "read the folder", from);
        while (r == 0 && (entry = readdir(d))) {
                struct slice name = slice_str(entry->d_name);

                if (name.ptr[0] != '.' && !slice_is(name, "config.json") &&
                    !slice_ends(name, SLICE_LIT(".safetensors")) &&
                    !slice_ends(name, SLICE_LIT(".safetensors.index.json")))
                        r = copy_file(f, from, entry->d_name, e);
        }
        closedir(d);
        return r;
}

static int write_json(struct new_folder *f, const char *name, struct buf *text, struct error *e) {
        int r = buf_ok(text) ? new_folder_write(f, name, buf_slice(text), e) : error_set(e, -ENOMEM, "out of memory");

        buf_free(text);
        return r;
}

int new_folder_write_index(struct new_folder *f, struct error *e) {
        struct buf text = {0};
        char name[128];

        snprintf(name, sizeof(name), "%s.safetensors.index.json", f->stem);
        buf_printf(
            &text, "{\n\"metadata\": {\"total_size\": %llu},\n\"weight_map\": {\n", (unsigned long long)f->bytes);
        buf_add(&text, buf_slice(&f->index));
        buf_add_str(&text, "\n}\n}\n");
        text.failed |= f->index.failed;
        return write_json(f, name, &text, e);
}

int new_folder_write_description(struct new_folder *f, const char *type, struct error *e) {
        struct buf text = {0};

        buf_printf(&text,
            "{\n\"model_quant_type\": \"%s\",\n\"version\": \"1.0.0\",\n\"group_size\": 0,\n\"metadata\": {},\n"
            "\"optional\": {},\n",
            type);
        buf_add(&text, buf_slice(&f->kinds));
        buf_add_str(&text, "\n}\n");
        text.failed |= f->kinds.failed;
        return write_json(f, "quant_model_description.json", &text, e);
}

int new_folder_finish(struct new_folder *f, struct error *e) {
        int r = sync_folder(f->partial);

        if (r == 0 && rename(f->partial, f->path) < 0)
                r = -errno;
        if (r < 0)
                return error_set(e, r, "cannot call %s %s: %s", f->partial, f->path, strerror(-r));
        free(f->partial);
        f->partial = NULL;
        return 0;
}

/* The partial folder has files alone. */
static void remove_partial(const char *path) {
        DIR *d = opendir(path);
        struct dirent *entry;

        while (d && (entry = readdir(d)))
                if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
                        unlinkat(dirfd(d), entry->d_name, 0);
        if (d)
                closedir(d);
        rmdir(path);
}

void new_folder_close(struct new_folder *f) {
        if (f->partial)
                remove_partial(f->partial);
        free(f->partial);
        free(f->path);
        buf_free(&f->index);
        buf_free(&f->kinds);
        *f = (struct new_folder){0};
}

/* ---- a file with tensors -------------------------------------------------------------------------------------------- */

uint64_t new_tensor_bytes(const struct new_tensor *t) {
        uint64_t bytes = dtype_bytes(t->dtype);

        for (unsigned i = 0; i < t->rank; i++)
                bytes *= t->shape[i];
        return bytes;
}

static int by_layout(const void *a, const void *b) {
        const struct new_tensor *x = *(struct new_tensor *const *)a, *y = *(struct new_tensor *const *)b;
        size_t p = dtype_bytes(x->dtype), q = dtype_bytes(y->dtype);

        return p != q ? (p < q) - (p > q) : slice_cmp(x->name, y->name);
}

static void add_member(struct buf *b, struct slice name, const char *value) {
        buf_add_str(b, b->len ? ",\n" : "");
        json_add_string(b, name);
        buf_add_str(b, ": ");
        json_add_string(b, slice_str(value));
}

static void describe(struct json_writer *w, const struct new_tensor *t) {
        json_key_slice(w, t->name);
        json_open(w, '{');
        json_key(w, "dtype");
        json_str(w, dtype_name(t->dtype));
        json_key(w, "shape");
        json_open(w, '[');
        for (unsigned i = 0; i < t->rank; i++)
                json_u64(w, t->shape[i]);
        json_close(w, ']');
        json_key(w, "data_offsets");
        json_open(w, '[');
        json_u64(w, t->begin);
        json_u64(w, t->begin + new_tensor_bytes(t));
        json_close(w, ']');
        json_close(w, '}');
}

/* The header with its length in front, padded so that data begins aligned; places in `order` become those in the file.
 * Returns where the data ends. */
static uint64_t make_header(struct new_tensor **order, size_t count, struct buf *out) {
        struct buf text = {0};
        struct json_writer w = {.out = &text};
        uint64_t at = 0;

        json_open(&w, '{');
        json_key(&w, "__metadata__");
        json_raw(&w, SLICE_LIT("{\"format\":\"pt\"}"));
        for (size_t i = 0; i < count; i++) {
                order[i]->begin = at;
                describe(&w, order[i]);
                at += new_tensor_bytes(order[i]);
        }
        json_close(&w, '}');
        while (text.len % 8 && buf_ok(&text))
                buf_add_char(&text, ' ');
        for (unsigned i = 0; i < 8; i++)
                buf_add_char(out, (char)((uint64_t)text.len >> 8 * i));
        buf_add(out, buf_slice(&text));
        out->failed |= text.failed;
        buf_free(&text);
        for (size_t i = 0; i < count; i++)
                order[i]->begin += out->len;
        return out->len + at;
}

static int start_file(struct new_file *file, struct slice header, uint64_t end, struct error *e) {
        int r = file->fd = make_file(file->path, e);

        if (r < 0)
                return r;
        r = ftruncate(file->fd, (off_t)end) < 0 ? fail_path(e, -errno, "write", file->path) : 0;
        return r < 0 ? r : new_file_write(file, 0, header.ptr, header.len, e);
}

int new_file_open(struct new_folder *f, size_t number, struct new_tensor *tensors, size_t count,
    struct new_file *ret_file, struct error *e) {
        struct new_tensor **order = reallocarray(NULL, count + 1, sizeof(struct new_tensor *));
        struct new_file file = {.fd = -1};
        struct buf header = {0};
        char name[128];
        uint64_t end = 0;
        int r;

        snprintf(name, sizeof(name), "%s-%05zu-of-%05zu.safetensors", f->stem, number + 1, f->file_count);
        file.path = join(f->partial, name);
        for (size_t i = 0; order && i < count; i++) {
                order[i] = &tensors[i];
                add_member(&f->index, tensors[i].name, name);
                add_member(&f->kinds, tensors[i].name, tensors[i].kind);
                f->bytes += new_tensor_bytes(&tensors[i]);
        }
        if (order) {
                qsort(order, count, sizeof(struct new_tensor *), by_layout);
                end = make_header(order, count, &header);
        }
        r = order && file.path && buf_ok(&header) ? start_file(&file, buf_slice(&header), end, e)
                                                  : error_set(e, -ENOMEM, "out of memory");
        buf_free(&header);
        free(order);
        if (r < 0)
                return new_file_close(&file, r, e);
        *ret_file = file;
        return 0;
}

int new_file_write(struct new_file *file, uint64_t at, const void *data, size_t bytes, struct error *e) {
        int r = write_at(file->fd, at, data, bytes);

        return r < 0 ? fail_path(e, r, "write", file->path) : 0;
}

int new_file_close(struct new_file *file, int r, struct error *e) {
        if (file->fd >= 0)
                r = close_file(file->fd, r, file->path, e);
        free(file->path);
        return r;
}
