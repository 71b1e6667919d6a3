/* safetensors.c - see safetensors.h. */
#include "model/safetensors.h"
#include "base/arena.h"
#include "base/json.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* The format's own bound on a header; V3's longest is 1 MB. */
#define HEADER_MAX  (100u << 20)
#define INDEX_MAX   (256u << 20)
#define FILES_MAX   10000u
#define TENSORS_MAX (1u << 22)

static const struct {
        const char *name;
        size_t bytes;
} dtypes[] = {[DTYPE_F64] = {"F64", 8},
    [DTYPE_F32] = {"F32", 4},
    [DTYPE_F16] = {"F16", 2},
    [DTYPE_BF16] = {"BF16", 2},
    [DTYPE_FP8] = {"F8_E4M3", 1},
    [DTYPE_I64] = {"I64", 8},
    [DTYPE_I32] = {"I32", 4},
    [DTYPE_I8] = {"I8", 1},
    [DTYPE_OTHER] = {"another type", 0}};

const char *dtype_name(enum dtype d) {
        return dtypes[d].name;
}

size_t dtype_bytes(enum dtype d) {
        return dtypes[d].bytes;
}

static enum dtype dtype_parse(struct slice s) {
        for (int i = 0; i < DTYPE_OTHER; i++)
                if (slice_is(s, dtypes[i].name))
                        return (enum dtype)i;
        return DTYPE_OTHER;
}

/* ---- one file ------------------------------------------------------------------------------------------------------------ */

static int parse_shape(struct tensor *t, yyjson_val *shape, uint64_t *ret_count) {
        uint64_t count = 1;
        size_t i, n;
        yyjson_val *item;

        if (!yyjson_is_arr(shape) || yyjson_arr_size(shape) > TENSOR_DIMS)
                return -EINVAL;
        yyjson_arr_foreach(shape, i, n, item) {
                if (!yyjson_is_uint(item) || __builtin_mul_overflow(count, yyjson_get_uint(item), &count))
                        return -EINVAL;
                t->shape[t->dims++] = yyjson_get_uint(item);
        }
        *ret_count = count;
        return 0;
}

static int parse_tensor(struct tensor *t, yyjson_val *v, struct slice data, struct error *e) {
        yyjson_val *offsets = json_get(v, "data_offsets");
        uint64_t begin, end, count;

        t->dtype = dtype_parse(json_get_slice(v, "dtype"));
        if (parse_shape(t, json_get(v, "shape"), &count) < 0)
                return error_set(e, -EINVAL, "%s: tensor %s has no usable shape", t->file, t->name);
        if (yyjson_arr_size(offsets) != 2 || !yyjson_is_uint(yyjson_arr_get(offsets, 0)) ||
            !yyjson_is_uint(yyjson_arr_get(offsets, 1)))
                return error_set(e, -EINVAL, "%s: tensor %s has no data_offsets", t->file, t->name);
        begin = yyjson_get_uint(yyjson_arr_get(offsets, 0));
        end = yyjson_get_uint(yyjson_arr_get(offsets, 1));
        if (begin > end)
                return error_set(e, -EINVAL, "%s: tensor %s ends before it begins", t->file, t->name);
        if (end > data.len)
                return error_set(e, -EINVAL,
                    "%s is cut off: tensor %s needs %llu bytes of data, the file has %zu (download it again?)", t->file,
                    t->name, (unsigned long long)end, data.len);
        t->data = data.ptr + begin;
        t->bytes = end - begin;
        if (t->dtype != DTYPE_OTHER &&
            (__builtin_mul_overflow(count, dtype_bytes(t->dtype), &count) || count != t->bytes))
                return error_set(e, -EINVAL, "%s: tensor %s has %zu bytes, its shape and dtype %s say %llu", t->file,
                    t->name, t->bytes, dtype_name(t->dtype), (unsigned long long)count);
        return 0;
}

int safetensors_parse(
    const char *file, struct slice bytes, struct tensor **ret_tensors, size_t *ret_count, struct error *e) {
        uint64_t header = 0;
        yyjson_doc *doc;
        yyjson_obj_iter iter;
        yyjson_val *key;
        struct tensor *list;
        size_t count, names = 0, n = 0;
        char *text;
        int r = 0;

        if (bytes.len < 8)
                return error_set(e, -EINVAL, "%s is no safetensors file: %zu bytes", file, bytes.len);
        for (int i = 7; i >= 0; i--)
                header = header << 8 | (uint8_t)bytes.ptr[i];
        if (header > HEADER_MAX || header > bytes.len - 8)
                return error_set(e, -EINVAL,
                    "%s is no safetensors file, or cut off: its header would be %llu bytes long", file,
                    (unsigned long long)header);
        r = json_parse(slice_of(bytes.ptr + 8, header), &doc, e);
        if (r < 0)
                return error_prefix(e, r, "%s: header", file);
        count = yyjson_obj_size(yyjson_doc_get_root(doc));
        if (!yyjson_is_obj(yyjson_doc_get_root(doc)) || count > TENSORS_MAX) {
                yyjson_doc_free(doc);
                return error_set(e, -EINVAL, "%s: the header is no list of tensors", file);
        }
        yyjson_obj_iter_init(yyjson_doc_get_root(doc), &iter);
        while ((key = yyjson_obj_iter_next(&iter)))
                names += yyjson_get_len(key) + 1;
        list = calloc(1, (count + 1) * sizeof(*list) + names);
        if (!list) {
                yyjson_doc_free(doc);
                return error_set(e, -ENOMEM, "out of memory");
        }
        text = (char *)(list + count + 1);
        yyjson_obj_iter_init(yyjson_doc_get_root(doc), &iter);
        while (r == 0 && (key = yyjson_obj_iter_next(&iter))) {
                if (slice_is(json_slice(key), "__metadata__"))
                        continue;
                memcpy(text, yyjson_get_str(key), yyjson_get_len(key));
                list[n] = (struct tensor){.name = text, .file = file};
                text += yyjson_get_len(key) + 1;
                r = parse_tensor(&list[n++], yyjson_obj_iter_get_val(key),
                    slice_of(bytes.ptr + 8 + header, bytes.len - 8 - header), e);
        }
        yyjson_doc_free(doc);
        if (r < 0) {
                free(list);
                return r;
        }
        *ret_tensors = list;
        *ret_count = n;
        return 0;
}

/* ---- a folder ------------------------------------------------------------------------------------------------------------ */

struct mapping {
        void *memory;
        size_t bytes;
        struct tensor *parsed; /* holds the names */
        char *path;
};

struct checkpoint {
        struct mapping *mappings;
        size_t mapping_count;
        struct tensor *tensors; /* sorted */
        size_t count;
};

static int map_file(struct checkpoint *c, const char *dir, struct slice name, struct error *e) {
        struct mapping *m = &c->mappings[c->mapping_count];
        struct buf path = {0};
        struct stat st;
        size_t count;
        struct tensor *grown;
        int fd, r;

        buf_printf(&path, "%s/%.*s", dir, SLICE_ARG(name));
        buf_cstr(&path);
        *m = (struct mapping){.path = buf_steal(&path, NULL)};
        if (!m->path)
                return error_set(e, -ENOMEM, "out of memory");
        c->mapping_count++;
        fd = open(m->path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) {
                r = -errno;
                return error_set(e, r, "cannot read %s: %s", m->path, strerror(-r));
        }
        if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size < 8) {
                close(fd);
                return error_set(e, -EINVAL, "%s is no safetensors file", m->path);
        }
        m->bytes = (size_t)st.st_size;
        m->memory = mmap(NULL, m->bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        close(fd);
        if (m->memory == MAP_FAILED) {
                m->memory = NULL;
                return error_set(e, -ENOMEM, "cannot map %s: %s", m->path, strerror(errno));
        }
        r = safetensors_parse(m->path, slice_of(m->memory, m->bytes), &m->parsed, &count, e);
        if (r < 0)
                return r;
        grown = realloc(c->tensors, (c->count + count + 1) * sizeof(*grown));
        if (!grown)
                return error_set(e, -ENOMEM, "out of memory");
        memcpy(grown + c->count, m->parsed, count * sizeof(*grown));
        c->tensors = grown;
        c->count += count;
        return 0;
}

static int by_name(const void *a, const void *b) {
        return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

static int compare_slices(const void *a, const void *b) {
        return slice_cmp(*(const struct slice *)a, *(const struct slice *)b);
}

/* Map the files named, each once, in order of name. */
static int map_files(struct checkpoint *c, const char *dir, struct slice *files, size_t count, struct error *e) {
        int r = 0;

        qsort(files, count, sizeof(*files), compare_slices);
        c->mappings = calloc(count + 1, sizeof(*c->mappings));
        if (!c->mappings)
                return error_set(e, -ENOMEM, "out of memory");
        for (size_t i = 0; r == 0 && i < count; i++) {
                if (i && slice_eq(files[i], files[i - 1]))
                        continue;
                if (slice_find(files[i], '/', 0) < files[i].len || c->mapping_count >= FILES_MAX)
                        return error_set(e, -EINVAL, "%s: the index names `%.*s`, which is no file of this folder", dir,
                            SLICE_ARG(slice_sub(files[i], 0, 100)));
                r = map_file(c, dir, files[i], e);
        }
        if (r < 0)
                return r;
        qsort(c->tensors, c->count, sizeof(*c->tensors), by_name);
        for (size_t i = 1; i < c->count; i++)
                if (strcmp(c->tensors[i].name, c->tensors[i - 1].name) == 0)
                        return error_set(e, -EINVAL, "tensor %s stands in %s and in %s", c->tensors[i].name,
                            c->tensors[i - 1].file, c->tensors[i].file);
        return 0;
}

static int open_index(struct checkpoint *c, const char *dir, const char *index, struct error *e) {
        struct buf path = {0};
        yyjson_doc *doc = NULL;
        yyjson_val *map, *key;
        yyjson_obj_iter iter;
        struct slice *files = NULL;
        size_t n = 0;
        int r;

        buf_printf(&path, "%s/%s", dir, index);
        r = json_parse_file(buf_cstr(&path), INDEX_MAX, &doc, e);
        if (r < 0)
                goto out;
        map = json_get(yyjson_doc_get_root(doc), "weight_map");
        files = calloc(yyjson_obj_size(map) + 1, sizeof(*files));
        if (!yyjson_is_obj(map) || !files) {
                r = error_set(e, files ? -EINVAL : -ENOMEM, "%s has no weight_map", buf_cstr(&path));
                goto out;
        }
        yyjson_obj_iter_init(map, &iter);
        while ((key = yyjson_obj_iter_next(&iter)))
                files[n++] = json_slice(yyjson_obj_iter_get_val(key));
        r = map_files(c, dir, files, n, e);
        if (r < 0)
                goto out;
        yyjson_obj_iter_init(map, &iter);
        while (r == 0 && (key = yyjson_obj_iter_next(&iter)))
                if (!checkpoint_find(c, yyjson_get_str(key)))
                        r = error_set(e, -EINVAL, "%s lists tensor %s, which is not in %.*s", buf_cstr(&path),
                            yyjson_get_str(key), SLICE_ARG(json_slice(yyjson_obj_iter_get_val(key))));
out:
        free(files);
        yyjson_doc_free(doc);
        buf_free(&path);
        return r;
}

/* Names in the folder that end in `suffix`, in the arena; those with the prefix come first. */
static size_t list_names(
    const char *dir, const char *suffix, const char *prefix, struct slice *names, size_t max, struct arena *arena) {
        DIR *d = opendir(dir);
        struct dirent *entry;
        size_t n = 0;

        while (d && n < max && (entry = readdir(d)))
                if (slice_ends(slice_str(entry->d_name), slice_str(suffix)) && entry->d_name[0] != '.') {
                        names[n] = arena_copy(arena, slice_str(entry->d_name));
                        if (!names[n].ptr)
                                break;
                        n++;
                }
        if (d)
                closedir(d);
        qsort(names, n, sizeof(*names), compare_slices);
        for (size_t i = 1; prefix && i < n; i++)
                if (slice_starts(names[i], slice_str(prefix)) && !slice_starts(names[0], slice_str(prefix))) {
                        struct slice swap = names[0];

                        names[0] = names[i];
                        names[i] = swap;
                }
        return n;
}

int checkpoint_open(const char *dir, const char *prefix, struct checkpoint **ret_checkpoint, struct error *e) {
        struct checkpoint *c = calloc(1, sizeof(*c));
        struct slice *names = calloc(FILES_MAX, sizeof(*names));
        struct arena arena = {0};
        struct stat st;
        size_t n;
        int r;

        if (!c || !names)
                r = error_set(e, -ENOMEM, "out of memory");
        else if (stat(dir, &st) < 0)
                r = error_set(e, -errno, "cannot read the model folder %s: %s", dir, strerror(errno));
        else if (list_names(dir, ".safetensors.index.json", prefix, names, FILES_MAX, &arena) > 0)
                r = open_index(c, dir, names[0].ptr, e);
        else if ((n = list_names(dir, ".safetensors", prefix, names, FILES_MAX, &arena)) > 0)
                r = map_files(c, dir, names, n, e);
        else
                r = error_set(e, -ENOENT, "%s holds no *.safetensors file", dir);
        arena_free(&arena);
        free(names);
        if (r < 0) {
                checkpoint_close(c);
                return r;
        }
        *ret_checkpoint = c;
        return 0;
}

void checkpoint_close(struct checkpoint *c) {
        if (!c)
                return;
        for (size_t i = 0; i < c->mapping_count; i++) {
                if (c->mappings[i].memory)
                        munmap(c->mappings[i].memory, c->mappings[i].bytes);
                free(c->mappings[i].parsed);
                free(c->mappings[i].path);
        }
        free(c->mappings);
        free(c->tensors);
        free(c);
}

const struct tensor *checkpoint_find(const struct checkpoint *c, const char *name) {
        struct tensor key = {.name = name};

        return c->count ? bsearch(&key, c->tensors, c->count, sizeof(key), by_name) : NULL;
}

const struct tensor *checkpoint_tensors(const struct checkpoint *c, size_t *ret_count) {
        *ret_count = c->count;
        return c->tensors;
}

void checkpoint_forget(const struct tensor *t) {
        uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = ((uintptr_t)t->data + page - 1) / page * page;
        uintptr_t end = ((uintptr_t)t->data + t->bytes) / page * page;

        if (end > begin)
                madvise((void *)begin, end - begin, MADV_DONTNEED);
}
