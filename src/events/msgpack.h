/* msgpack.h - the part of msgpack that KV events need, read from and written to bytes (private to events/). Values are walked
 * where they stand: nothing is built. */
#pragma once
#include "base/buf.h"

enum mp_kind { MP_NIL, MP_BOOL, MP_INT, MP_FLOAT, MP_TEXT /* str and bin */, MP_ARRAY, MP_MAP, MP_EXT };

struct mp_value {
        enum mp_kind kind;
        bool negative;   /* of an integer below 0: `number` is its two's complement */
        uint64_t number; /* integer, bool; count of an array's items or a map's pairs */
        double real;
        struct slice text; /* and what an extension holds */
};

/* Take one value's head off *in: all of a scalar or text; of arrays and maps only the count, whose items follow. A count is
 * never more than the bytes left could hold. 0 or -EINVAL. */
int mp_read(struct slice *in, struct mp_value *ret_value);
/* The same for a number as tokens are written, in a tenth of the time. False, and nothing is taken: it is something else (perhaps
 * a number in another form). */
bool mp_read_u32(struct slice *in, uint32_t *ret_number);
/* Batches are nested five deep; extra keys may be a little deeper. */
#define MP_DEPTH_MAX 16
/* Take one whole value off *in. 0 or -EINVAL (also when it is nested deeper than MP_DEPTH_MAX). */
int mp_skip(struct slice *in, struct slice *ret_value);

/* Shortest forms, as every writer of msgpack prints them. */
void mp_write_nil(struct buf *b);
void mp_write_u64(struct buf *b, uint64_t v);
void mp_write_i64(struct buf *b, int64_t v);
void mp_write_double(struct buf *b, double v);
void mp_write_text(struct buf *b, struct slice s); /* str */
void mp_write_array(struct buf *b, uint32_t count);
