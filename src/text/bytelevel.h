/* bytelevel.h - the alphabet of byte-level vocabularies: each byte has one printable character (GPT-2's table: a space is
 * "Ġ", a line feed "Ċ"). */
#pragma once
#include "base/slice.h"

/* The bytes that an entry's characters stand for, into `ret_bytes`, which has room for entry.len bytes. Returns how many,
 * or -1 when one of them stands for no byte (ret_bytes is scratch then). */
ptrdiff_t bytelevel_bytes(struct slice entry, char *ret_bytes);
