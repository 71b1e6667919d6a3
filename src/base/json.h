/* json.h - JSON in through yyjson, JSON out into a buf.
 *
 * Reading: json_parse() gives a yyjson document (values borrow from it, free it with yyjson_doc_free) after the checks
 * that yyjson leaves to its user: depth and size. The get helpers take a NULL or non-object value and then find nothing,
 * so that paths can be chained. Writing: small functions that append valid JSON; commas are the caller's through
 * struct json_writer. */
#pragma once
#include "base/buf.h"
#include "base/error.h"
#include <yyjson.h>

/* Nesting beyond this is hostile: no API body, config or tokenizer file comes near it. */
#define JSON_DEPTH_MAX 128

/* Returns 0 and the document, -EINVAL (not JSON: e says at which byte), -E2BIG (deeper than JSON_DEPTH_MAX), -ENOMEM.
 * A leading UTF-8 byte order mark is skipped. Trailing bytes other than white space are an error. */
int json_parse(struct slice text, yyjson_doc **ret_doc, struct error *e);
/* The same for those who must read what is not quite JSON: YYJSON_READ_ALLOW_INF_AND_NAN, YYJSON_READ_BIGNUM_AS_RAW. */
int json_parse_flags(struct slice text, yyjson_read_flag flags, yyjson_doc **ret_doc, struct error *e);
/* As json_parse of a whole file of at most max_bytes; e names the file. */
int json_parse_file(const char *path, size_t max_bytes, yyjson_doc **ret_doc, struct error *e);

yyjson_val *json_get(yyjson_val *object, const char *key); /* duplicate keys: the last one, as Python reads it */
struct slice json_slice(yyjson_val *v);                    /* SLICE_NONE unless a string */
int json_to_i64(yyjson_val *v, int64_t *ret_value);        /* 0, -EINVAL (not integral), -ERANGE */
int json_to_double(yyjson_val *v, double *ret_value);      /* 0, -EINVAL (not a number) */

/* Members with a default: the value when present and of the kind, `otherwise` when absent, null or of another kind. */
int64_t json_get_i64(yyjson_val *object, const char *key, int64_t otherwise);
double json_get_double(yyjson_val *object, const char *key, double otherwise);
bool json_get_bool(yyjson_val *object, const char *key, bool otherwise);
struct slice json_get_slice(yyjson_val *object, const char *key);

/* A quoted string. Invalid UTF-8 becomes U+FFFD; control characters, quote and backslash are escaped. */
void json_add_string(struct buf *b, struct slice s);
/* The value as compact JSON; NULL and what is not finite write null. Integers beyond 64 bits come out as the doubles they
 * were read as. */
void json_add_value(struct buf *b, yyjson_val *v);

/* Writes nested JSON with commas in the right places.
 *
 *     struct json_writer w = {.out = &b};
 *     json_open(&w, '{'); json_key(&w, "id"); json_string(&w, id); json_close(&w, '}');
 *
 * Errors are those of the buf. Unbalanced use is a programming error (asserted). */
struct json_writer {
        struct buf *out;
        uint64_t has_items; /* bit d: the container at depth d has an item */
        uint64_t is_object; /* bit d: the container at depth d is an object */
        unsigned depth;     /* at most 63 */
        bool after_key;
};
void json_open(struct json_writer *w, char bracket);  /* '{' or '[' */
void json_close(struct json_writer *w, char bracket); /* '}' or ']' */
void json_key(struct json_writer *w, const char *key);
void json_key_slice(struct json_writer *w, struct slice key);
void json_string(struct json_writer *w, struct slice s);
void json_str(struct json_writer *w, const char *text); /* NULL writes null */
void json_i64(struct json_writer *w, int64_t value);
void json_u64(struct json_writer *w, uint64_t value);
void json_double(struct json_writer *w, double value);
void json_bool(struct json_writer *w, bool value);
void json_null(struct json_writer *w);
void json_raw(struct json_writer *w, struct slice json); /* one complete value, copied as it is */
