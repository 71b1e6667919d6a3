/* endpoint.c - "http://host:port/path" and its relatives into where to connect. */
#include "http/http.h"
#include <arpa/inet.h>
#include <errno.h>

/* Letters, digits, '-', '.', '_' of names and IPv4 addresses; ':' and '%' within brackets. */
static bool host_is_valid(struct slice host, bool bracketed) {
        for (size_t i = 0; i < host.len; i++) {
                unsigned char c = host.ptr[i];
                bool letter = (c | 0x20) >= 'a' && (c | 0x20) <= 'z', digit = c >= '0' && c <= '9';

                if (!letter && !digit && c != '-' && c != '.' && c != '_' && !(bracketed && (c == ':' || c == '%')))
                        return false;
        }
        /* 253: the longest name that DNS carries. */
        return host.len > 0 && host.len <= 253;
}

static int parse_authority(
    struct slice authority, uint16_t default_port, struct slice *ret_host, uint16_t *ret_port, bool *ret_bracketed) {
        struct slice host, port;
        uint64_t number = default_port;
        size_t mark;

        *ret_bracketed = authority.len && authority.ptr[0] == '[';
        if (*ret_bracketed) {
                mark = slice_find(authority, ']', 0);
                if (mark == authority.len)
                        return -EINVAL;
                host = slice_sub(authority, 1, mark);
                port = slice_sub(authority, mark + 1, authority.len);
                if (port.len && port.ptr[0] != ':')
                        return -EINVAL;
                port = slice_sub(port, 1, port.len);
                if (mark + 1 < authority.len && port.len == 0)
                        return -EINVAL;
        } else {
                mark = slice_find(authority, ':', 0);
                host = slice_sub(authority, 0, mark);
                port = slice_sub(authority, mark + 1, authority.len);
                if (mark < authority.len && port.len == 0)
                        return -EINVAL;
        }
        if (!host_is_valid(host, *ret_bracketed))
                return -EINVAL;
        if (port.len && (slice_to_u64(port, &number) < 0 || number == 0 || number > 65535))
                return -EINVAL;
        *ret_host = host;
        *ret_port = (uint16_t)number;
        return 0;
}

static int parse_unix(struct arena *arena, struct slice text, struct http_endpoint *ret_endpoint,
    struct slice *ret_path, struct error *e) {
        struct slice key = arena_copy(arena, text);

        if (!key.ptr)
                return -ENOMEM;
        /* sockaddr_un holds 107 bytes and a NUL. */
        if (text.len <= 5 || text.len - 5 > 107)
                return error_set(e, -EINVAL, "\"%.*s\": a socket path has 1 to 107 bytes", SLICE_ARG(text));
        *ret_endpoint = (struct http_endpoint){.key = key, .host = slice_sub(key, 5, key.len), .is_unix = true};
        if (ret_path)
                *ret_path = SLICE_NONE;
        return 0;
}

int http_endpoint_parse(struct arena *arena, struct slice text, struct http_endpoint *ret_endpoint,
    struct slice *ret_path, struct error *e) {
        struct http_endpoint endpoint = {0};
        struct slice rest = text, host;
        bool bracketed;
        size_t end;
        char *key;

        if (slice_starts(text, SLICE_LIT("unix:")))
                return parse_unix(arena, text, ret_endpoint, ret_path, e);
        if (rest.len >= 8 && slice_is_icase(slice_sub(rest, 0, 8), "https://")) {
                endpoint.tls = true;
                slice_take(&rest, 8);
        } else if (rest.len >= 7 && slice_is_icase(slice_sub(rest, 0, 7), "http://")) {
                slice_take(&rest, 7);
        }
        for (end = 0; end < rest.len && rest.ptr[end] != '/' && rest.ptr[end] != '?' && rest.ptr[end] != '#'; end++)
                ;
        if (parse_authority(slice_sub(rest, 0, end), endpoint.tls ? 443 : 80, &host, &endpoint.port, &bracketed) < 0)
                return error_set(e, -EINVAL,
                    "\"%.*s\" is no endpoint: http://HOST:PORT, https://HOST:PORT, "
                    "HOST:PORT or unix:PATH is wanted",
                    SLICE_ARG(text));
        key = arena_printf(arena, "%s://%s%.*s%s:%u", endpoint.tls ? "https" : "http", bracketed ? "[" : "",
            SLICE_ARG(host), bracketed ? "]" : "", endpoint.port);
        if (!key)
                return -ENOMEM;
        /* Names of hosts compare in any case (RFC 9110 4.2.3). */
        for (char *at = key; *at; at++)
                if (*at >= 'A' && *at <= 'Z')
                        *at = (char)(*at + 'a' - 'A');
        endpoint.key = slice_str(key);
        endpoint.host = slice_of(key + (endpoint.tls ? 8 : 7) + bracketed, host.len);
        if (ret_path) {
                struct slice path = arena_copy(arena, slice_sub(rest, end, rest.len));

                if (!path.ptr)
                        return -ENOMEM;
                *ret_path = path;
        }
        *ret_endpoint = endpoint;
        return 0;
}
