/* safetensors.c - see safetensors.h. */
#include "model/safetensors.h"
#include "base/json.h"
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct {
        const char *name;
        size_t bytes;
} dtypes[] = {
    [DTYPE_F64] = {"F64", 8},
    [DTYPE_F32] = {"F32", 4},
    [DTYPE_F16] = {"F16", 2},
    [DTYPE_BF16] = {"BF16", 2},
    [DTYPE_F8_E4M3] = {"F8_E4M3", 1},
    [DTYPE_I64] = {"I64", 8},
    [DTYPE_I32] = {"I32", 4},
    [DTYPE_I16] = {"I16", 2},
    [DTYPE_I8] = {"I8", 1},
    [DTYPE_U64] = {"U64", 8},
    [DTYPE_U32] = {"U32", 4},
    [DTYPE_U16] = {"U16", 2},
    [DTYPE_U8] = {"U8", 1},
    [DTYPE_BOOL] = {"BOOL", 1},
    [DTYPE_OTHER] = {"an unknown type", 0},
};

const char *dtype_name(enum dtype dtype) {
        return dtypes[dtype].name;
}

size_t dtype_bytes(enum dtype dtype) {
        return dtypes[dtype].bytes;
}

/* ---- a header ------------------------------------------------------------------------------------------------------- */

static enum dtype find_dtype(struct slice name) {
        enum dtype d = 0;

        while (d != DTYPE_OTHER && !slice_is(name, dtypes[d].name))
                d++;
        return d;
}

static int read_shape(yyjson_val *shape, struct tensor *t, struct error *e) {
        uint64_t bytes = dtypes[t->dtype].bytes;
        yyjson_arr_iter iter;
        yyjson_val *v;

        if (!yyjson_is_arr(shape) || yyjson_arr_size(shape) > SAFETENSORS_RANK_MAX)
                return error_set(e, -EINVAL, "tensor %.*s: shape is no list of at most %u sizes", SLICE_ARG(t->name),
                    SAFETENSORS_RANK_MAX);
        yyjson_arr_iter_init(shape, &iter);
        while ((v = yyjson_arr_iter_next(&iter))) {
                uint64_t size = yyjson_get_uint(v);

                if (!yyjson_is_uint(v))
                        return error_set(
                            e, -EINVAL, "tensor %.*s: a size in shape is no whole number", SLICE_ARG(t->name));
                if (__builtin_mul_overflow(bytes, size, &bytes))
                        return error_set(e, -EINVAL, "tensor %.*s: shape is too large", SLICE_ARG(t->name));
                t->shape[t->rank++] = size;
        }
        if (t->dtype != DTYPE_OTHER && bytes != t->bytes)
                return error_set(e, -EINVAL, "tensor %.*s: shape needs %llu bytes, data_offsets give %zu",
                    SLICE_ARG(t->name), (unsigned long long)bytes, t->bytes);
        return 0;
}

static int read_tensor(
    yyjson_val *key, yyjson_val *v, uint64_t data_bytes, struct tensor *ret, uint64_t *ret_begin, struct error *e) {
        struct tensor t = {.name = json_slice(key)};
        yyjson_val *offsets = json_get(v, "data_offsets");
        yyjson_val *first = yyjson_arr_get(offsets, 0), *second = yyjson_arr_get(offsets, 1);
        uint64_t begin, end;
        int r;

        if (!yyjson_is_obj(v) || !json_slice(json_get(v, "dtype")).ptr)
                return error_set(e, -EINVAL, "tensor %.*s: no dtype", SLICE_ARG(t.name));
        if (yyjson_arr_size(offsets) != 2 || !yyjson_is_uint(first) || !yyjson_is_uint(second))
                return error_set(e, -EINVAL, "tensor %.*s: data_offsets are no two whole numbers", SLICE_ARG(t.name));
        begin = yyjson_get_uint(first);
        end = yyjson_get_uint(second);
        if (begin > end)
                return error_set(e, -EINVAL, "tensor %.*s: data_offsets are reversed", SLICE_ARG(t.name));
        if (end > data_bytes)
                return error_set(e, -EINVAL, "cut off: tensor %.*s needs %llu more bytes than the file has",
                    SLICE_ARG(t.name), (unsigned long long)(end - data_bytes));
        t.bytes = end - begin;
        t.dtype = find_dtype(json_slice(json_get(v, "dtype")));
        r = read_shape(json_get(v, "shape"), &t, e);
        if (r < 0)
                return r;
        *ret = t;
        *ret_begin = begin;
        return 0;
}

struct range {
        uint64_t begin, end;
        struct slice name;
};

static int compare_ranges(const void *a, const void *b) {
        const struct range *x = a, *y = b;

        return x->begin != y->begin ? (x->begin < y->begin ? -1 : 1) : (x->end > y->end) - (x->end < y->end);
}

static int check_overlaps(struct range *ranges, size_t count, struct error *e) {
        qsort(ranges, count, sizeof(*ranges), compare_ranges);
        for (size_t i = 1; i < count; i++)
                if (ranges[i].begin < ranges[i - 1].end)
                        return error_set(e, -EINVAL, "tensors %.*s and %.*s overlap", SLICE_ARG(ranges[i - 1].name),
                            SLICE_ARG(ranges[i].name));
        return 0;
}

int safetensors_walk(struct slice header, uint64_t data_bytes,
    int (*each)(void *context, const struct tensor *t, uint64_t begin, struct error *e), void *context,
    struct error *e) {
        struct range *ranges = NULL;
        yyjson_doc *doc = NULL;
        yyjson_val *root, *key;
        yyjson_obj_iter iter;
        size_t count = 0;
        int r = json_parse(header, &doc, e);

        if (r < 0)
                return r == -ENOMEM ? r : error_prefix(e, -EINVAL, "header");
        root = yyjson_doc_get_root(doc);
        if (!yyjson_is_obj(root)) {
                r = error_set(e, -EINVAL, "the header is no JSON object");
                goto out;
        }
        ranges = calloc(yyjson_obj_size(root) + 1, sizeof(*ranges));
        if (!ranges) {
                r = error_set(e, -ENOMEM, "out of memory");
                goto out;
        }
        yyjson_obj_iter_init(root, &iter);
        while ((key = yyjson_obj_iter_next(&iter))) {
                struct tensor t;
                uint64_t begin = 0;

                if (slice_is(json_slice(key), "__metadata__"))
                        continue;
                r = read_tensor(key, yyjson_obj_iter_get_val(key), data_bytes, &t, &begin, e);
                if (r < 0)
                        goto out;
                if (t.bytes)
                        ranges[count++] = (struct range){begin, begin + t.bytes, t.name};
                r = each(context, &t, begin, e);
                if (r < 0)
                        goto out;
        }
        r = check_overlaps(ranges, count, e);
out:
        free(ranges);
        yyjson_doc_free(doc);
        return r;
}

/* ---- a file --------------------------------------------------------------------------------------------------------- */

static int reserve(void **items, size_t *capacity, size_t count, size_t size) {
        size_t more = *capacity ? *capacity * 2 : 64;
        void *grown;

        if (count < *capacity)
                return 0;
        grown = reallocarray(*items, more, size);
        if (!grown)
                return -ENOMEM;
        *items = grown;
        *capacity = more;
        return 0;
}

struct adding {
        struct safetensors *s;
        uint32_t file;
        const unsigned char *data;
};

static int add_tensor(void *context, const struct tensor *t, uint64_t begin, struct error *e) {
        struct adding *a = context;
        struct safetensors *s = a->s;
        struct tensor *to;
        int r;

        if (s->count >= UINT32_MAX || reserve((void **)&s->tensors, &s->capacity, s->count, sizeof(*s->tensors)) < 0)
                return error_set(e, -ENOMEM, "out of memory");
        to = &s->tensors[s->count];
        *to = *t;
        to->name = arena_copy(&s->arena, t->name);
        if (!to->name.ptr)
                return error_set(e, -ENOMEM, "out of memory");
        to->data = a->data + begin;
        to->file = a->file;
        r = names_add(&s->by_name, to->name, (uint32_t)s->count);
        if (r == -EEXIST)
                return error_set(e, -EINVAL, "tensor %.*s is there twice", SLICE_ARG(t->name));
        if (r < 0)
                return error_set(e, r, "out of memory");
        s->count++;
        return 0;
}

static int read_mapped(struct safetensors *s, uint32_t file, struct error *e) {
        const struct tensor_file *f = &s->files[file];
        const unsigned char *bytes = f->map;
        struct adding a = {.s = s, .file = file};
        uint64_t header = 0;

        for (int i = 7; i >= 0; i--)
                header = header << 8 | bytes[i];
        if (header > SAFETENSORS_HEADER_MAX)
                return error_set(
                    e, -EINVAL, "no safetensors file: its header would have %llu bytes", (unsigned long long)header);
        if (header > f->bytes - 8)
                return error_set(e, -EINVAL, "cut off: the header has %llu bytes, the file %zu",
                    (unsigned long long)header, f->bytes);
        a.data = bytes + 8 + header;
        return safetensors_walk(slice_of(bytes + 8, header), f->bytes - 8 - header, add_tensor, &a, e);
}

static int map_file(const char *path, void **ret_map, size_t *ret_bytes, struct error *e) {
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK), r = 0;
        struct stat st;
        void *map;

        if (fd < 0 || fstat(fd, &st) < 0) {
                r = -errno;
                error_set(e, r, "cannot be read: %s", strerror(-r));
        } else if (!S_ISREG(st.st_mode))
                r = error_set(e, -EINVAL, "is no regular file");
        else if (st.st_size < 8)
                r = error_set(e, -EINVAL, "cut off: a safetensors file has at least 8 bytes, this one %lld",
                    (long long)st.st_size);
        else {
                map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
                if (map == MAP_FAILED)
                        r = error_set(e, -errno, "cannot be mapped: %s", strerror(errno));
                else {
                        *ret_map = map;
                        *ret_bytes = (size_t)st.st_size;
                }
        }
        if (fd >= 0)
                close(fd);
        return r;
}

int safetensors_add_file(struct safetensors *s, const char *path, struct error *e) {
        struct tensor_file f = {0};
        int r;

        r = map_file(path, &f.map, &f.bytes, e);
        if (r < 0)
                return error_prefix(e, r, "%s", path);
        f.path = arena_copy(&s->arena, slice_str(path)).ptr;
        if (!f.path || reserve((void **)&s->files, &s->file_capacity, s->file_count, sizeof(*s->files)) < 0) {
                munmap(f.map, f.bytes);
                return error_set(e, -ENOMEM, "out of memory");
        }
        s->files[s->file_count++] = f;
        r = read_mapped(s, (uint32_t)(s->file_count - 1), e);
        return r < 0 ? error_prefix(e, r, "%s", path) : 0;
}

void safetensors_close(struct safetensors *s) {
        for (size_t i = 0; i < s->file_count; i++)
                munmap(s->files[i].map, s->files[i].bytes);
        free(s->files);
        free(s->tensors);
        names_free(&s->by_name);
        arena_free(&s->arena);
        *s = (struct safetensors){0};
}

const struct tensor *safetensors_find(const struct safetensors *s, struct slice name) {
        uint32_t i;

        return names_find(&s->by_name, name, &i) ? &s->tensors[i] : NULL;
}

/* ---- a folder ------------------------------------------------------------------------------------------------------- */

static int compare_names(const void *a, const void *b) {
        return strcmp(*(char *const *)a, *(char *const *)b);
}

int folder_list(const char *dir, const char *prefix, const char *suffix, struct arena *arena, char ***ret_names) {
        char **names = arena_array(arena, SAFETENSORS_FILES_MAX, sizeof(*names));
        DIR *d = opendir(dir);
        struct dirent *entry;
        int count = 0, r = 0;

        if (!d)
                return -errno;
        while (r == 0 && names && (entry = readdir(d))) {
                struct slice name = slice_str(entry->d_name);

                if (!slice_starts(name, slice_str(prefix)) || !slice_ends(name, slice_str(suffix)))
                        continue;
                if (count == SAFETENSORS_FILES_MAX)
                        r = -E2BIG;
                else if (!(names[count++] = (char *)(uintptr_t)arena_copy(arena, name).ptr))
                        r = -ENOMEM;
        }
        closedir(d);
        if (r < 0 || !names)
                return r < 0 ? r : -ENOMEM;
        qsort(names, (size_t)count, sizeof(*names), compare_names);
        *ret_names = names;
        return count;
}

static int add_named(struct safetensors *s, const char *dir, struct slice name, struct error *e) {
        char *path = arena_printf(&s->arena, "%s/%.*s", dir, SLICE_ARG(name));

        return path ? safetensors_add_file(s, path, e) : error_set(e, -ENOMEM, "out of memory");
}

/* Open the files that the index names, then see that each tensor is where it says. */
static int add_indexed(struct safetensors *s, const char *dir, yyjson_val *map, struct error *e) {
        struct names files = {0};
        yyjson_obj_iter iter;
        yyjson_val *key;
        int r = 0;

        yyjson_obj_iter_init(map, &iter);
        while (r == 0 && (key = yyjson_obj_iter_next(&iter))) {
                struct slice file = json_slice(yyjson_obj_iter_get_val(key));

                if (!file.len || slice_find(file, '/', 0) < file.len || slice_find(file, '\0', 0) < file.len)
                        r = error_set(
                            e, -EINVAL, "weight_map gives no plain file name for %.*s", SLICE_ARG(json_slice(key)));
                else {
                        r = names_add(&files, file, (uint32_t)s->file_count);
                        if (r == 0 && s->file_count == SAFETENSORS_FILES_MAX)
                                r = error_set(e, -EINVAL, "more than %u files", SAFETENSORS_FILES_MAX);
                        else if (r == 0)
                                r = add_named(s, dir, file, e);
                        else if (r == -EEXIST)
                                r = 0;
                }
        }
        yyjson_obj_iter_init(map, &iter);
        while (r == 0 && (key = yyjson_obj_iter_next(&iter))) {
                const struct tensor *t = safetensors_find(s, json_slice(key));
                struct slice file = json_slice(yyjson_obj_iter_get_val(key));
                uint32_t number = 0;

                (void)names_find(&files, file, &number); /* there: added above */
                if (!t || t->file != number)
                        r = error_set(e, -EINVAL, "tensor %.*s is not in %.*s, where the index has it",
                            SLICE_ARG(json_slice(key)), SLICE_ARG(file));
        }
        names_free(&files);
        return r;
}

static int open_index(struct safetensors *s, const char *dir, const char *name, struct error *e) {
        char *path = arena_printf(&s->arena, "%s/%s", dir, name);
        yyjson_doc *doc = NULL;
        yyjson_val *map;
        int r;

        if (!path)
                return error_set(e, -ENOMEM, "out of memory");
        r = json_parse_file(path, SAFETENSORS_INDEX_MAX, &doc, e);
        if (r < 0)
                return r == -ENOMEM ? r : -EINVAL;
        map = json_get(yyjson_doc_get_root(doc), "weight_map");
        if (!yyjson_is_obj(map) || yyjson_obj_size(map) == 0)
                r = error_set(e, -EINVAL, "%s: no weight_map", path);
        else {
                r = add_indexed(s, dir, map, e);
                if (r < 0)
                        error_prefix(e, r, "%s", path);
        }
        yyjson_doc_free(doc);
        return r;
}

bool folder_listed(char **names, int count, const char *name) {
        for (int i = 0; i < count; i++)
                if (strcmp(names[i], name) == 0)
                        return true;
        return false;
}

static int open_listed(struct safetensors *s, const char *dir, struct error *e) {
        char **names = NULL;
        int count = folder_list(dir, "", ".safetensors.index.json", &s->arena, &names), r = 0;

        if (count < 0)
                return error_set(e, count, "cannot read the folder %s: %s", dir, strerror(-count));
        if (folder_listed(names, count, "model.safetensors.index.json"))
                return open_index(s, dir, "model.safetensors.index.json", e);
        if (count > 1)
                return error_set(
                    e, -EINVAL, "%s has %d index files (%s, %s, …): which one counts?", dir, count, names[0], names[1]);
        if (count == 1)
                return open_index(s, dir, names[0], e);
        count = folder_list(dir, "", ".safetensors", &s->arena, &names);
        if (count < 0)
                return error_set(e, count, "cannot read the folder %s: %s", dir, strerror(-count));
        if (count == 0)
                return error_set(e, -ENOENT, "%s holds no *.safetensors file", dir);
        if (folder_listed(names, count, "model.safetensors"))
                return add_named(s, dir, SLICE_LIT("model.safetensors"), e);
        for (int i = 0; i < count && r == 0; i++)
                r = add_named(s, dir, slice_str(names[i]), e);
        return r;
}

int safetensors_open_folder(const char *dir, struct safetensors *ret_set, struct error *e) {
        struct safetensors s = {0};
        int r = open_listed(&s, dir, e);

        if (r < 0) {
                safetensors_close(&s);
                return r;
        }
        *ret_set = s;
        return 0;
}
