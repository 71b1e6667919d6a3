/* convert.c - single values and rows of the checkpoint formats as floats. */
#include "kernels/kernels.h"
#include <assert.h>
#include <math.h>
#include <string.h>

static float bits_to_float(uint32_t bits) {
        float f;

        memcpy(&f, &bits, sizeof(f));
        return f;
}

static uint32_t float_to_bits(float f) {
        uint32_t bits;

        memcpy(&bits, &f, sizeof(bits));
        return bits;
}

float bf16_to_float(uint16_t bits) {
        return bits_to_float((uint32_t)bits << 16);
}

uint16_t float_to_bf16(float value) {
        uint32_t bits = float_to_bits(value);

        if ((bits & 0x7fffffff) >
            0x7f800000) /* a NaN whose payload lies in the dropped half must not become infinity */
                return (uint16_t)(bits >> 16 | 0x40);
        return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float f16_to_float(uint16_t bits) {
        uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 0x1f, mantissa = bits & 0x3ff;
        float magnitude;

        if (exponent == 31)
                return bits_to_float(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
        if (exponent == 0)
                magnitude = (float)mantissa * 0x1p-24f;
        else
                magnitude = bits_to_float((exponent + 112) << 23 | mantissa << 13);
        return bits_to_float(sign | float_to_bits(magnitude));
}

float fp8_e4m3_to_float(uint8_t bits) {
        uint32_t sign = (uint32_t)(bits & 0x80) << 24, exponent = bits >> 3 & 0xf, mantissa = bits & 7;
        float magnitude;

        if ((bits & 0x7f) == 0x7f)
                return bits_to_float(sign | 0x7fc00000);
        if (exponent == 0)
                magnitude = (float)mantissa * 0x1p-9f;
        else
                magnitude = bits_to_float((exponent + 120) << 23 | mantissa << 20);
        return bits_to_float(sign | float_to_bits(magnitude));
}

uint8_t float_to_fp8_e4m3(float value) {
        uint8_t sign = signbit(value) ? 0x80 : 0;
        float magnitude = fabsf(value);
        uint32_t bits = float_to_bits(magnitude);

        if (isnan(value))
                return sign | 0x7f;
        if (magnitude >= 448)
                return sign | 0x7e;
        if (magnitude < 0x1p-6f) /* subnormal: multiples of 2^-9; the eighth of them is the smallest normal number */
                return sign | (uint8_t)rintf(magnitude * 0x1p9f);
        /* Drop 20 of the 23 bits of the mantissa, ties to even; a carry goes into the exponent, where it belongs. */
        bits += 0x7ffff + (bits >> 20 & 1);
        return sign | (uint8_t)((bits >> 20) - (120 << 3));
}

/* Tensors in a file begin at any byte. */
static uint16_t read_u16(const void *data, size_t at) {
        uint16_t v;

        memcpy(&v, (const char *)data + at * sizeof(v), sizeof(v));
        return v;
}

void weight_row(const struct weight_source *s, size_t row, float *ret_row) {
        const size_t start = row * s->row_stride;

        assert(row < s->n);
        switch (s->type) {
        case WEIGHT_F32:
                memcpy(ret_row, (const char *)s->data + start * sizeof(float), s->k * sizeof(float));
                return;
        case WEIGHT_F16:
                for (size_t c = 0; c < s->k; c++)
                        ret_row[c] = f16_to_float(read_u16(s->data, start + c));
                return;
        case WEIGHT_BF16:
                for (size_t c = 0; c < s->k; c++)
                        ret_row[c] = bf16_to_float(read_u16(s->data, start + c));
                return;
        case WEIGHT_FP8: {
                const float *scales = s->scale + (s->first_row + row) / s->block_n * s->scale_stride;

                for (size_t c = 0; c < s->k; c++)
                        ret_row[c] = fp8_e4m3_to_float(((const uint8_t *)s->data)[start + c]) *
                                     scales[(s->first_col + c) / s->block_k];
                return;
        }
        case WEIGHT_INT8_DYNAMIC:
                for (size_t c = 0; c < s->k; c++)
                        ret_row[c] = (float)((const int8_t *)s->data)[start + c] * s->row_scale[row];
                return;
        case WEIGHT_INT8_STATIC:
                break;
        }
        assert(!"static int8 weights have no value apart from their activations");
}
