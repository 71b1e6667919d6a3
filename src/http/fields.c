/* fields.c - names and values of header fields, methods and statuses: lookups and the rules of RFC 9110 5. */
#include "http/codec.h"

const struct http_field *http_field_find(struct http_fields fields, const char *name) {
        struct slice wanted = slice_str(name);

        for (size_t i = 0; i < fields.count; i++)
                if (fields.items[i].name.len == wanted.len && slice_eq_icase(fields.items[i].name, wanted))
                        return &fields.items[i];
        return NULL;
}

struct slice http_field_value(struct http_fields fields, const char *name) {
        const struct http_field *f = http_field_find(fields, name);

        return f ? f->value : SLICE_NONE;
}

/* Length first: a relay asks this for every field of every message. */
bool http_field_is_framing(struct slice name) {
        switch (name.len) {
        case 2:
                return slice_is_icase(name, "TE");
        case 7:
                return slice_is_icase(name, "Trailer") || slice_is_icase(name, "Upgrade");
        case 10:
                return slice_is_icase(name, "Connection") || slice_is_icase(name, "Keep-Alive");
        case 14:
                return slice_is_icase(name, "Content-Length");
        case 17:
                return slice_is_icase(name, "Transfer-Encoding");
        default:
                return name.len > 6 && (name.ptr[0] | 0x20) == 'p' && slice_is_icase(slice_sub(name, 0, 6), "Proxy-");
        }
}

bool http_field_is_hop_by_hop(struct http_fields fields, struct slice name) {
        if (name.len == 0)
                return false;
        if (name.len != 14 && http_field_is_framing(name))
                return true;
        for (size_t i = 0; i < fields.count; i++) {
                struct slice list = fields.items[i].value, option;

                if (fields.items[i].name.len != 10 || !slice_is_icase(fields.items[i].name, "Connection"))
                        continue;
                while (slice_split(&list, ',', &option))
                        if (slice_eq_icase(slice_trim(option), name))
                                return true;
        }
        return false;
}

bool http_bearer_is(struct http_fields fields, const char *key) {
        struct slice given = http_field_value(fields, "Authorization"), scheme, want = slice_str(key);
        unsigned char difference;

        if (!slice_split(&given, ' ', &scheme) || !slice_is_icase(scheme, "Bearer"))
                return false;
        difference = want.len != given.len;
        for (size_t i = 0; i < given.len; i++)
                difference |= (unsigned char)(given.ptr[i] ^ want.ptr[want.len ? i % want.len : 0]);
        return difference == 0;
}

bool http_value_is_safe(struct slice value) {
        for (size_t i = 0; i < value.len; i++) {
                unsigned char c = value.ptr[i];

                if ((c < 0x20 && c != '\t') || c == 0x7f)
                        return false;
        }
        return true;
}

/* tchar of RFC 9110 5.6.2. */
static const bool token_byte[256] = {
    ['!'] = 1,
    ['#'] = 1,
    ['$'] = 1,
    ['%'] = 1,
    ['&'] = 1,
    ['\''] = 1,
    ['*'] = 1,
    ['+'] = 1,
    ['-'] = 1,
    ['.'] = 1,
    ['^'] = 1,
    ['_'] = 1,
    ['`'] = 1,
    ['|'] = 1,
    ['~'] = 1,
    ['0' ... '9'] = 1,
    ['A' ... 'Z'] = 1,
    ['a' ... 'z'] = 1,
};

bool http_is_token(struct slice s) {
        for (size_t i = 0; i < s.len; i++)
                if (!token_byte[(unsigned char)s.ptr[i]])
                        return false;
        return s.len > 0;
}

bool http_target_is_valid(struct slice s) {
        for (size_t i = 0; i < s.len; i++) {
                unsigned char c = s.ptr[i];

                if (c <= 0x20 || c >= 0x7f || c == '#')
                        return false;
        }
        return s.len > 0;
}

struct slice http_method_text(enum http_method m) {
        switch (m) {
        case HTTP_METHOD_GET:
                return SLICE_LIT("GET");
        case HTTP_METHOD_HEAD:
                return SLICE_LIT("HEAD");
        case HTTP_METHOD_POST:
                return SLICE_LIT("POST");
        case HTTP_METHOD_PUT:
                return SLICE_LIT("PUT");
        case HTTP_METHOD_DELETE:
                return SLICE_LIT("DELETE");
        case HTTP_METHOD_OPTIONS:
                return SLICE_LIT("OPTIONS");
        case HTTP_METHOD_PATCH:
                return SLICE_LIT("PATCH");
        case HTTP_METHOD_OTHER:
                break;
        }
        return SLICE_NONE;
}

bool http_status_has_no_body(int status) {
        return status < 200 || status == 204 || status == 304;
}

const char *http_status_text(int status) {
        switch (status) {
        case 100:
                return "Continue";
        case 200:
                return "OK";
        case 201:
                return "Created";
        case 202:
                return "Accepted";
        case 204:
                return "No Content";
        case 206:
                return "Partial Content";
        case 301:
                return "Moved Permanently";
        case 302:
                return "Found";
        case 303:
                return "See Other";
        case 304:
                return "Not Modified";
        case 307:
                return "Temporary Redirect";
        case 308:
                return "Permanent Redirect";
        case 400:
                return "Bad Request";
        case 401:
                return "Unauthorized";
        case 403:
                return "Forbidden";
        case 404:
                return "Not Found";
        case 405:
                return "Method Not Allowed";
        case 406:
                return "Not Acceptable";
        case 408:
                return "Request Timeout";
        case 409:
                return "Conflict";
        case 410:
                return "Gone";
        case 411:
                return "Length Required";
        case 412:
                return "Precondition Failed";
        case 413:
                return "Content Too Large";
        case 414:
                return "URI Too Long";
        case 415:
                return "Unsupported Media Type";
        case 416:
                return "Range Not Satisfiable";
        case 417:
                return "Expectation Failed";
        case 421:
                return "Misdirected Request";
        case 422:
                return "Unprocessable Content";
        case 424:
                return "Failed Dependency";
        case 425:
                return "Too Early";
        case 428:
                return "Precondition Required";
        case 429:
                return "Too Many Requests";
        case 431:
                return "Request Header Fields Too Large";
        case 499:
                return "Client Closed Request";
        case 500:
                return "Internal Server Error";
        case 501:
                return "Not Implemented";
        case 502:
                return "Bad Gateway";
        case 503:
                return "Service Unavailable";
        case 504:
                return "Gateway Timeout";
        case 505:
                return "HTTP Version Not Supported";
        case 507:
                return "Insufficient Storage";
        default:
                return "Unknown";
        }
}

const char *http_failure_text(enum http_failure f) {
        switch (f) {
        case HTTP_OK:
                return "complete";
        case HTTP_FAIL_RESOLVE:
                return "name not resolved";
        case HTTP_FAIL_CONNECT:
                return "not connected";
        case HTTP_FAIL_SEND:
                return "request not sent";
        case HTTP_FAIL_NO_RESPONSE:
                return "closed without an answer";
        case HTTP_FAIL_TIMEOUT:
                return "timed out";
        case HTTP_FAIL_PROTOCOL:
                return "answer is not valid HTTP";
        case HTTP_FAIL_TRUNCATED:
                return "answer cut off";
        case HTTP_FAIL_ABORTED:
                return "aborted";
        }
        return "unknown";
}
