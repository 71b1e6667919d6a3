/* python_json.h - JSON as the templates' `tojson` prints it (Python's json.dumps with ensure_ascii off): ", " and ": "
 * between, floats as repr() writes them. */
#pragma once
#include "base/json.h"

void python_json_add(struct buf *out, yyjson_val *v);
