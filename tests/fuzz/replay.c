/* replay.c - a main() for fuzz targets without libFuzzer: every file of the folder given, every prefix of the small ones,
 * and a few fixed mutations of each, once. Prints TAP. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INPUT_MAX    (1u << 20)
#define PREFIXES_MAX 512u

/* A copy of exactly that size, so that AddressSanitizer sees a read past the end. */
static void run_one(const uint8_t *data, size_t size) {
        uint8_t *copy = malloc(size ? size : 1);

        if (!copy)
                abort();
        memcpy(copy, data, size);
        LLVMFuzzerTestOneInput(copy, size);
        free(copy);
}

static void run_variants(uint8_t *data, size_t size) {
        size_t step = size / PREFIXES_MAX + 1;

        run_one(data, size);
        for (size_t cut = 0; cut < size; cut += step) {
                uint8_t kept = data[cut];

                run_one(data, cut);
                data[cut] = (uint8_t)(kept ^ 0x80);
                run_one(data, size);
                data[cut] = 0;
                run_one(data, size);
                data[cut] = kept;
        }
}

int main(int argc, char **argv) {
        static uint8_t data[INPUT_MAX];
        DIR *dir = argc == 2 ? opendir(argv[1]) : NULL;
        struct dirent *entry;
        int count = 0;

        if (!dir) {
                fprintf(stderr, "usage: %s CORPUS\n", argv[0]);
                return 2;
        }
        while ((entry = readdir(dir))) {
                char path[4096];
                FILE *f;
                size_t size;

                if (entry->d_name[0] == '.')
                        continue;
                snprintf(path, sizeof(path), "%s/%s", argv[1], entry->d_name);
                f = fopen(path, "rb");
                if (!f)
                        return 1;
                size = fread(data, 1, sizeof(data), f);
                fclose(f);
                run_variants(data, size);
                printf("ok %d - %s\n", ++count, entry->d_name);
        }
        closedir(dir);
        printf("1..%d\n", count);
        return count ? 0 : 1;
}
