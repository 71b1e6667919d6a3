/* python_json.c - see python_json.h. */
#include "text/python_json.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* repr(): the fewest digits that read back as the same number, as 1e+16 from 16 digits before the point on, as 1e-05 from
 * four zeros behind it on. */
static void add_float(struct buf *out, double value) {
        char text[40], digits[24];
        int exponent, count = 0;

        for (int precision = 0; precision < 17; precision++) {
                snprintf(text, sizeof(text), "%.*e", precision, value);
                if (strtod(text, NULL) == value)
                        break;
        }
        if (signbit(value))
                buf_add_char(out, '-');
        exponent = atoi(strchr(text, 'e') + 1);
        for (const char *p = text; *p != 'e'; p++)
                if (*p >= '0' && *p <= '9')
                        digits[count++] = *p;
        if (exponent < -4 || exponent >= 16) {
                buf_printf(out, "%c%s%.*se%c%02d", digits[0], count > 1 ? "." : "", count - 1, digits + 1,
                    exponent < 0 ? '-' : '+', abs(exponent));
                return;
        }
        if (exponent < 0) {
                buf_printf(out, "0.%.*s%.*s", -exponent - 1, "0000", count, digits);
                return;
        }
        for (int i = 0; i <= exponent; i++)
                buf_add_char(out, i < count ? digits[i] : '0');
        buf_printf(out, ".%.*s", count > exponent + 1 ? count - exponent - 1 : 1,
            count > exponent + 1 ? digits + exponent + 1 : "0");
}

/* Depth is limited by json_parse(). */
void python_json_add(struct buf *out, yyjson_val *v) {
        yyjson_val *key, *item;
        size_t i, n;

        if (yyjson_is_arr(v)) {
                buf_add_char(out, '[');
                yyjson_arr_foreach(v, i, n, item) {
                        if (i)
                                buf_add_str(out, ", ");
                        python_json_add(out, item);
                }
                buf_add_char(out, ']');
        } else if (yyjson_is_obj(v)) {
                buf_add_char(out, '{');
                yyjson_obj_foreach(v, i, n, key, item) {
                        if (i)
                                buf_add_str(out, ", ");
                        json_add_string(out, json_slice(key));
                        buf_add_str(out, ": ");
                        python_json_add(out, item);
                }
                buf_add_char(out, '}');
        } else if (yyjson_is_str(v))
                json_add_string(out, json_slice(v));
        else if (yyjson_is_real(v))
                add_float(out, yyjson_get_real(v));
        else if (yyjson_is_sint(v))
                buf_add_i64(out, yyjson_get_sint(v));
        else if (yyjson_is_uint(v))
                buf_add_u64(out, yyjson_get_uint(v));
        else
                buf_add_str(out, yyjson_is_true(v) ? "true" : yyjson_is_false(v) ? "false" : "null");
}
