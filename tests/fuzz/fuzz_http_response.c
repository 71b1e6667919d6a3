/* fuzz_http_response.c - responses, to HEAD and to others: any cut agrees. */
#include "fuzz_http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        fuzz_cuts(CODEC_RESPONSE, data, size);
        fuzz_cuts(CODEC_RESPONSE_TO_HEAD, data, size);
        return 0;
}
