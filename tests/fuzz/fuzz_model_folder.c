/* fuzz_model_folder.c - any bytes as one of the JSON files beside a model's weights: refused with a text, or what it says
 * can be used. The first byte picks the file. */
#include "base/buf.h"
#include "model/weights.h"
#include "text/text.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* In memory: every run writes a file. */
static char folder[] = "/dev/shm/baton-fuzz-XXXXXX";

/* The index of shards: all its tensors can be read. */
static int open_index(struct error *e) {
        struct safetensors s = {0};
        int r = safetensors_open_folder(folder, &s, e);

        for (size_t i = 0; r == 0 && i < s.count; i++)
                if (safetensors_find(&s, s.tensors[i].name) != &s.tensors[i] || s.tensors[i].file >= s.file_count)
                        abort();
        safetensors_close(&s);
        return r;
}

/* What kind each layer is of: a layer has one that is known, or is refused. */
static int open_description(struct error *e) {
        enum ascend_kind kind = ASCEND_FLOAT;
        struct weights w = {0};
        char path[64];
        int r;

        snprintf(path, sizeof(path), "%s/1.safetensors", folder);
        if (safetensors_add_file(&w.files, path, e) < 0)
                abort();
        r = ascend_open(&w, folder, e);
        if (r == 0)
                r = ascend_kind_of(&w, "a", &kind, e);
        if (kind > ASCEND_MIX)
                abort();
        weights_close(&w);
        return r;
}

/* The tokenizer's config, for its chat template. */
static int open_template(struct error *e) {
        struct chat_format f;

        return chat_format_detect(folder, &f, e);
}

static const struct {
        const char *name;
        int (*open)(struct error *e);
} files[] = {
    {"model.safetensors.index.json", open_index},
    {"quant_model_description.json", open_description},
    {"tokenizer_config.json", open_template},
};
#define FILE_COUNT (sizeof(files) / sizeof(*files))

static void write_file(const char *name, struct slice bytes) {
        char path[64];
        int fd;

        snprintf(path, sizeof(path), "%s/%s", folder, name);
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (fd < 0 || write(fd, bytes.ptr, bytes.len) != (ssize_t)bytes.len)
                abort();
        close(fd);
}

static void remove_folder(void) {
        const char *names[] = {"1.safetensors", "2.safetensors", files[0].name, files[1].name, files[2].name};
        char path[64];

        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
                snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
                unlink(path);
        }
        rmdir(folder);
}

/* Two shards, of one tensor each, for the files to speak of. */
static void make_folder(void) {
        if (!mkdtemp(folder))
                abort();
        atexit(remove_folder);
        write_file("1.safetensors",
            SLICE_LIT("\x3c\0\0\0\0\0\0\0{\"a.weight\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}x"));
        write_file("2.safetensors",
            SLICE_LIT("\x3c\0\0\0\0\0\0\0{\"b.weight\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}x"));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static bool made;
        struct error e = {{0}};
        size_t which;

        if (size == 0)
                return 0;
        if (!made)
                make_folder();
        made = true;
        which = data[0] % FILE_COUNT;
        write_file(files[which].name, slice_of(data + 1, size - 1));
        if (files[which].open(&e) < 0 && !e.text[0])
                abort();
        return 0;
}
