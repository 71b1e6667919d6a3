/* ui.c - the built-in page, one file (ui.html) put in here by the build. It asks /debug/load every two seconds. */
#include "gateway/core.h"

static const unsigned char page[] = {
#include "gateway/ui.inc"
};

void get_ui(struct gateway *g, struct http_exchange *x) {
        /* Nothing from elsewhere, and into no other page's frame. */
        static const struct http_field fields[] = {
            {SLICE_LIT("Content-Type"), SLICE_LIT("text/html; charset=utf-8")},
            {SLICE_LIT("Content-Security-Policy"),
                SLICE_LIT(
                    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
                    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'")},
            {SLICE_LIT("X-Content-Type-Options"), SLICE_LIT("nosniff")},
            {SLICE_LIT("Cache-Control"), SLICE_LIT("no-store")},
        };

        http_respond(
            x, 200, (struct http_fields){fields, sizeof(fields) / sizeof(*fields)}, slice_of(page, sizeof(page)));
}
