/* safetensors.h - named tensors in mapped files (private to model/).
 *
 * A file is a little-endian u64 N, N bytes of JSON {name: {dtype, shape, data_offsets}}, and data. Everything in the
 * header is checked when the file is opened (lengths, ranges, sizes, overlaps, duplicates), so that a tensor found later
 * can be read without further checks. Nothing but headers is read: data comes in page by page as it is touched. Files must
 * not be cut while they are mapped. */
#pragma once
#include "base/arena.h"
#include "base/error.h"
#include "model/names.h"

/* The format's own limit on N. */
#define SAFETENSORS_HEADER_MAX ((uint64_t)100 << 20)
/* Weights have one or two dimensions; the format has no limit. */
#define SAFETENSORS_RANK_MAX 8u
/* Shards of one checkpoint: the largest released has 163. */
#define SAFETENSORS_FILES_MAX 4096u
/* An index of the largest released checkpoint has 9 MB. */
#define SAFETENSORS_INDEX_MAX ((size_t)256 << 20)

enum dtype {
        DTYPE_F64,
        DTYPE_F32,
        DTYPE_F16,
        DTYPE_BF16,
        DTYPE_F8_E4M3,
        DTYPE_I64,
        DTYPE_I32,
        DTYPE_I16,
        DTYPE_I8,
        DTYPE_U64,
        DTYPE_U32,
        DTYPE_U16,
        DTYPE_U8,
        DTYPE_BOOL,
        DTYPE_OTHER, /* one that no code here reads: size unchecked */
};
const char *dtype_name(enum dtype dtype);
size_t dtype_bytes(enum dtype dtype); /* of an element; 0 for DTYPE_OTHER */

struct tensor {
        struct slice name;
        enum dtype dtype;
        unsigned rank;
        uint64_t shape[SAFETENSORS_RANK_MAX];
        const unsigned char *data; /* in the mapping; aligned as the file has it */
        size_t bytes;
        uint32_t file;
};

struct tensor_file {
        const char *path; /* owned by the arena */
        void *map;
        size_t bytes;
};

struct safetensors {
        struct arena arena; /* names, paths */
        struct tensor *tensors;
        size_t count, capacity;
        struct tensor_file *files;
        size_t file_count, file_capacity;
        struct names by_name;
};

/* Check a header and hear of its tensors: `header` is the JSON, `data_bytes` what follows it. `each` returns 0 or an error
 * that ends the walk; t->data is NULL and `begin` the offset in the data. Pure: for safetensors_add_file() and fuzzing. */
int safetensors_walk(struct slice header, uint64_t data_bytes,
    int (*each)(void *context, const struct tensor *t, uint64_t begin, struct error *e), void *context,
    struct error *e);

/* Map one more file into a (zeroed at first) set. Returns 0, -ENOENT, -EINVAL with a text that names the file (and says how
 * much is missing when it is cut), -ENOMEM. */
int safetensors_add_file(struct safetensors *s, const char *path, struct error *e);
/* The files of a folder: by its *.safetensors.index.json, or model.safetensors, or every *.safetensors there is. Names in
 * the index must be plain file names and each tensor lie where the index says. */
int safetensors_open_folder(const char *dir, struct safetensors *ret_set, struct error *e);
void safetensors_close(struct safetensors *s);

const struct tensor *safetensors_find(const struct safetensors *s, struct slice name); /* NULL: none */

/* Names in `dir` that begin with `prefix` and end in `suffix`, sorted, in `arena`. Returns how many, or a negative errno. */
int folder_list(const char *dir, const char *prefix, const char *suffix, struct arena *arena, char ***ret_names);
bool folder_listed(char **names, int count, const char *name);
