/* fuzz_safetensors.c - any file is refused with a text, or all its tensors can be read. */
#include "model/safetensors.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Reads every byte, for the sanitizer to object. */
static void touch(const volatile unsigned char *bytes, size_t count) {
        for (size_t i = 0; i < count; i++)
                (void)bytes[i];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct safetensors s = {0};
        struct error e = {{0}};
        char path[64];
        int fd = memfd_create("fuzz", MFD_CLOEXEC);

        if (fd < 0 || write(fd, data, size) != (ssize_t)size)
                abort();
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        if (safetensors_add_file(&s, path, &e) < 0) {
                if (!e.text[0])
                        abort();
        } else
                for (size_t i = 0; i < s.count; i++) {
                        const struct tensor *t = safetensors_find(&s, s.tensors[i].name);

                        if (t != &s.tensors[i] || t->data + t->bytes > (const unsigned char *)s.files[0].map + size)
                                abort();
                        touch(t->data, t->bytes);
                }
        safetensors_close(&s);
        close(fd);
        return 0;
}
