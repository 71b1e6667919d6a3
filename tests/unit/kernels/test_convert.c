/* Single values: bf16, f16, fp8, against vectors of an independent implementation and by their definitions. */
#include "vectors.h"

static uint32_t bits_of(float f) {
        uint32_t bits;

        memcpy(&bits, &f, sizeof(bits));
        return bits;
}

static float float_of(uint32_t bits) {
        float f;

        memcpy(&f, &bits, sizeof(f));
        return f;
}

static void fp8_codes_have_the_values_of_the_vectors(void **state) {
        struct vectors v = open_vectors();
        float *decode = tensor(&v, "fp8.decode", NULL);

        for (unsigned i = 0; i < 256; i++)
                if (isnan(decode[i]))
                        assert_true(isnan(fp8_e4m3_to_float((uint8_t)i)));
                else
                        assert_int_equal(bits_of(fp8_e4m3_to_float((uint8_t)i)), bits_of(decode[i]));
        free(decode);
        close_vectors(&v);
}

static void fp8_is_rounded_to_nearest_even(void **state) {
        struct vectors v = open_vectors();
        size_t bytes;
        float *x = tensor(&v, "fp8.encode.x", &bytes);
        uint8_t *codes = tensor(&v, "fp8.encode.code", NULL);

        for (size_t i = 0; i < bytes / sizeof(float); i++)
                assert_int_equal(float_to_fp8_e4m3(x[i]), codes[i]);
        free(x);
        free(codes);
        close_vectors(&v);

        for (unsigned i = 0; i < 256; i++) /* a value is itself, and halfway to the next even code wins */
                if ((i & 0x7f) < 0x7e) {
                        float low = fp8_e4m3_to_float((uint8_t)i), high = fp8_e4m3_to_float((uint8_t)(i + 1));

                        assert_int_equal(float_to_fp8_e4m3(low), i);
                        assert_int_equal(float_to_fp8_e4m3((low + high) / 2), i + (i & 1));
                        assert_int_equal(float_to_fp8_e4m3(nextafterf((low + high) / 2, high)), i + 1);
                }
        assert_int_equal(float_to_fp8_e4m3(1e30f), 0x7e); /* never the code of a NaN */
        assert_int_equal(float_to_fp8_e4m3(-INFINITY), 0xfe);
        assert_int_equal(float_to_fp8_e4m3(NAN) & 0x7f, 0x7f);
        assert_int_equal(float_to_fp8_e4m3(-0.0f), 0x80);
}

static void fp8_blocks_dequantise_exactly(void **state) {
        struct vectors v = open_vectors();
        uint8_t *w = tensor(&v, "fp8.block.weight", NULL);
        float *scale = tensor(&v, "fp8.block.scale_inv", NULL), *expected = tensor(&v, "fp8.block.dequant", NULL),
              row[200];
        struct weight_source s = {.type = WEIGHT_FP8,
            .n = 136,
            .k = 200,
            .data = w,
            .row_stride = 200,
            .scale = scale,
            .scale_stride = 2,
            .block_n = 128,
            .block_k = 128};

        for (size_t r = 0; r < 136; r++) {
                weight_row(&s, r, row);
                same_floats(row, expected + r * 200, 200);
        }
        /* A slice that begins inside the grid has the same values. */
        s.data = w + 100 * 200 + 50;
        s.n = 36;
        s.k = 150;
        s.first_row = 100;
        s.first_col = 50;
        for (size_t r = 0; r < 36; r++) {
                weight_row(&s, r, row);
                same_floats(row, expected + (100 + r) * 200 + 50, 150);
        }
        free(w);
        free(scale);
        free(expected);
        close_vectors(&v);
}

static void bf16_is_rounded_to_nearest_even(void **state) {
        struct vectors v = open_vectors();
        size_t bytes;
        float *x = tensor(&v, "bf16.x", &bytes);
        uint16_t *bits = tensor(&v, "bf16.bits", NULL);

        for (size_t i = 0; i < bytes / sizeof(float); i++)
                assert_int_equal(float_to_bf16(x[i]), bits[i]);
        free(x);
        free(bits);
        close_vectors(&v);

        assert_int_equal(float_to_bf16(float_of(0x3f808000)), 0x3f80); /* ties to even */
        assert_int_equal(float_to_bf16(float_of(0x3f818000)), 0x3f82);
        assert_int_equal(float_to_bf16(float_of(0x7f7fffff)), 0x7f80); /* rounds up to infinity */
        assert_int_equal(float_to_bf16(INFINITY), 0x7f80);
        assert_int_equal(float_to_bf16(-INFINITY), 0xff80);
        assert_int_equal(float_to_bf16(-0.0f), 0x8000);
        assert_true(isnan(bf16_to_float(float_to_bf16(float_of(0x7f800001))))); /* payload only in the dropped half */
        assert_true(isnan(bf16_to_float(float_to_bf16(float_of(0xffffffff)))));
}

static void bf16_survives_the_round_trip(void **state) {
        for (uint32_t i = 0; i < 65536; i++)
                if (!isnan(bf16_to_float((uint16_t)i)))
                        assert_int_equal(float_to_bf16(bf16_to_float((uint16_t)i)), i);
}

static void f16_codes_have_their_values(void **state) {
        for (uint32_t i = 0; i < 65536; i++) {
                int exponent = (int)(i >> 10 & 31);
                double mantissa = i & 1023, value;
                float f = f16_to_float((uint16_t)i);

                if (exponent == 31) {
                        assert_true(mantissa != 0 ? isnan(f) : isinf(f));
                        continue;
                }
                value = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
                assert_true((double)f == (i >> 15 ? -value : value));
                assert_int_equal(bits_of(f) >> 31, i >> 15);
        }
}

/* The rounding of whole rows on every instruction set is the one of a single value. */
static void rows_round_as_single_values_do(void **state) {
        const size_t n = 4 * 65536 + 5;
        float *x = alloc(n * sizeof(float)), *y = alloc(n * sizeof(float));

        for (enum isa isa = ISA_SCALAR; isa <= best(); isa++) {
                struct compute *c = new_compute(isa, 1, ACTIVATION_F32);

                /* every upper half with lower halves around the tie */
                for (size_t i = 0; i < n; i++) {
                        static const uint16_t low[] = {0, 0x7fff, 0x8000, 0x8001};

                        x[i] = float_of((uint32_t)(i / 4 % 65536) << 16 | low[i % 4]);
                }
                memcpy(y, x, n * sizeof(float));
                round_bf16(c, y, n, 1, n);
                for (size_t i = 0; i < n; i++)
                        assert_int_equal(bits_of(y[i]), (uint32_t)float_to_bf16(x[i]) << 16);
                compute_free(c);
        }
        free(x);
        free(y);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(fp8_codes_have_the_values_of_the_vectors),
            cmocka_unit_test(fp8_is_rounded_to_nearest_even),
            cmocka_unit_test(fp8_blocks_dequantise_exactly),
            cmocka_unit_test(bf16_is_rounded_to_nearest_even),
            cmocka_unit_test(bf16_survives_the_round_trip),
            cmocka_unit_test(f16_codes_have_their_values),
            cmocka_unit_test(rows_round_as_single_values_do),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
