/* tls.h - TLS as a filter between a connection's socket and its user: OpenSSL on memory BIOs. Private to http/. */
#pragma once
#include "http/http.h"
#include <sys/uio.h>

struct http_tls_context; /* certificates and policy of one server or client */
struct http_tls;         /* one connection */

int http_tls_context_server(const struct http_tls_files *files, struct http_tls_context **ret_context, struct error *e);
int http_tls_context_client(const char *ca, bool verify_off, struct http_tls_context **ret_context, struct error *e);
void http_tls_context_free(struct http_tls_context *t); /* NULL is fine */

/* NULL when memory is out. */
struct http_tls *http_tls_accept(struct http_tls_context *t);
/* `host` is checked against the certificate, and sent as SNI unless it is an address. */
struct http_tls *http_tls_connect(struct http_tls_context *t, struct slice host);
void http_tls_free(struct http_tls *t); /* NULL is fine */

/* Bytes from the socket. Returns 0 or -ENOMEM. */
int http_tls_put(struct http_tls *t, struct slice cipher);
/* Go on with the handshake. Returns 1 when it is done, 0 when the peer's bytes are needed, -EPROTO, -ENOMEM. */
int http_tls_handshake(struct http_tls *t);
/* Decrypted bytes into `out`: >0 how many, 0 when more cipher bytes are needed, -ECONNRESET never, -EPIPE at the peer's
 * close_notify, -EPROTO, -ENOMEM. */
ssize_t http_tls_read(struct http_tls *t, char *out, size_t size);
/* Encrypt; everything is taken. Returns 0, -EPROTO, -ENOMEM. */
int http_tls_write(struct http_tls *t, struct slice plain);
void http_tls_shutdown(struct http_tls *t);
/* Bytes for the socket: a view, valid until the next call on t. Drop them with http_tls_sent(). */
struct slice http_tls_pending(struct http_tls *t);
void http_tls_sent(struct http_tls *t);

const char *http_tls_error_text(const struct http_tls *t);
