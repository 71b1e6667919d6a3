/* tls.c - see tls.h. The socket's bytes go through two memory BIOs; OpenSSL never sees the socket. */
#include "http/tls.h"
#include <arpa/inet.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>

struct http_tls_context {
        SSL_CTX *ssl;
};

struct http_tls {
        SSL *ssl;
        BIO *in, *out; /* owned by ssl */
        char error[160];
};

/* Only HTTP/1.1 is spoken (RFC 7301). */
static const unsigned char alpn[] = "\x08http/1.1";
#define ALPN_LEN (sizeof(alpn) - 1)

/* OpenSSL's word for the last failure; its queue is left empty, as it is shared by all connections of the thread. */
static void openssl_text(char *out, size_t size) {
        unsigned long code = ERR_peek_last_error();
        const char *reason = code ? ERR_reason_error_string(code) : NULL;

        snprintf(out, size, "%s", reason ? reason : "unknown TLS error");
        ERR_clear_error();
}

static int context_failed(struct error *e, const char *what, const char *path) {
        char text[160];

        openssl_text(text, sizeof(text));
        return error_set(e, -EINVAL, "TLS: %s%s%s: %s", what, path ? " " : "", path ? path : "", text);
}

static int new_context(const SSL_METHOD *method, struct http_tls_context **ret_context) {
        struct http_tls_context *t = calloc(1, sizeof(*t));

        if (!t)
                return -ENOMEM;
        t->ssl = SSL_CTX_new(method);
        if (!t->ssl) {
                free(t);
                return -ENOMEM;
        }
        /* RFC 8996 retires what is older. Buffers go back while a connection is idle: streams are mostly silent. */
        SSL_CTX_set_min_proto_version(t->ssl, TLS1_2_VERSION);
        SSL_CTX_set_options(t->ssl, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
        SSL_CTX_set_mode(t->ssl, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        *ret_context = t;
        return 0;
}

static int select_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len, const unsigned char *in,
    unsigned int in_len, void *arg) {
        if (SSL_select_next_proto((unsigned char **)out, out_len, alpn, ALPN_LEN, in, in_len) == OPENSSL_NPN_NEGOTIATED)
                return SSL_TLSEXT_ERR_OK;
        return SSL_TLSEXT_ERR_ALERT_FATAL;
}

int http_tls_context_server(
    const struct http_tls_files *files, struct http_tls_context **ret_context, struct error *e) {
        struct http_tls_context *t;
        int r;

        if (!files->cert || !files->key)
                return error_set(e, -EINVAL, "TLS: certificate and key must be given together");
        r = new_context(TLS_server_method(), &t);
        if (r < 0)
                return r;
        if (SSL_CTX_use_certificate_chain_file(t->ssl, files->cert) != 1) {
                r = context_failed(e, "certificate", files->cert);
        } else if (SSL_CTX_use_PrivateKey_file(t->ssl, files->key, SSL_FILETYPE_PEM) != 1) {
                r = context_failed(e, "key", files->key);
        } else if (SSL_CTX_check_private_key(t->ssl) != 1) {
                r = context_failed(e, "the key does not belong to the certificate", files->cert);
        } else if (files->client_ca) {
                STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(files->client_ca);

                if (!names || SSL_CTX_load_verify_locations(t->ssl, files->client_ca, NULL) != 1) {
                        sk_X509_NAME_pop_free(names, X509_NAME_free);
                        r = context_failed(e, "client CA", files->client_ca);
                } else {
                        SSL_CTX_set_client_CA_list(t->ssl, names);
                        SSL_CTX_set_verify(t->ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
                }
        }
        if (r < 0) {
                http_tls_context_free(t);
                return r;
        }
        SSL_CTX_set_alpn_select_cb(t->ssl, select_alpn, NULL);
        /* Resumption by tickets alone: no cache that grows, and nothing tied to one server's name. */
        SSL_CTX_set_session_cache_mode(t->ssl, SSL_SESS_CACHE_OFF);
        SSL_CTX_set_session_id_context(t->ssl, (const unsigned char *)"baton", 5);
        *ret_context = t;
        return 0;
}

int http_tls_context_client(const char *ca, bool verify_off, struct http_tls_context **ret_context, struct error *e) {
        struct http_tls_context *t;
        int r = new_context(TLS_client_method(), &t);

        if (r < 0)
                return r;
        if (verify_off)
                SSL_CTX_set_verify(t->ssl, SSL_VERIFY_NONE, NULL);
        else
                SSL_CTX_set_verify(t->ssl, SSL_VERIFY_PEER, NULL);
        if (ca && SSL_CTX_load_verify_locations(t->ssl, ca, NULL) != 1)
                r = context_failed(e, "CA", ca);
        else if (!ca && SSL_CTX_set_default_verify_paths(t->ssl) != 1)
                r = context_failed(e, "the system's CAs", NULL);
        if (r < 0) {
                http_tls_context_free(t);
                return r;
        }
        SSL_CTX_set_alpn_protos(t->ssl, alpn, ALPN_LEN);
        *ret_context = t;
        return 0;
}

void http_tls_context_free(struct http_tls_context *t) {
        if (!t)
                return;
        SSL_CTX_free(t->ssl);
        free(t);
}

static struct http_tls *new_tls(struct http_tls_context *context) {
        struct http_tls *t = calloc(1, sizeof(*t));

        if (!t)
                return NULL;
        t->ssl = SSL_new(context->ssl);
        t->in = BIO_new(BIO_s_mem());
        t->out = BIO_new(BIO_s_mem());
        if (!t->ssl || !t->in || !t->out) {
                BIO_free(t->in);
                BIO_free(t->out);
                SSL_free(t->ssl);
                free(t);
                ERR_clear_error();
                return NULL;
        }
        SSL_set_bio(t->ssl, t->in, t->out);
        return t;
}

struct http_tls *http_tls_accept(struct http_tls_context *context) {
        struct http_tls *t = new_tls(context);

        if (t)
                SSL_set_accept_state(t->ssl);
        return t;
}

/* RFC 6066 3: no address literals in SNI. Certificates may name addresses all the same. */
static bool set_peer_name(struct http_tls *t, const char *name) {
        unsigned char address[16];

        if (inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1)
                return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(t->ssl), name) == 1;
        SSL_set_hostflags(t->ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
        return SSL_set_tlsext_host_name(t->ssl, name) == 1 && SSL_set1_host(t->ssl, name) == 1;
}

struct http_tls *http_tls_connect(struct http_tls_context *context, struct slice host) {
        struct http_tls *t = new_tls(context);
        char *name = slice_dup(host);

        if (!t || !name || !set_peer_name(t, name)) {
                http_tls_free(t);
                ERR_clear_error();
                t = NULL;
        } else {
                SSL_set_connect_state(t->ssl);
        }
        free(name);
        return t;
}

void http_tls_free(struct http_tls *t) {
        if (!t)
                return;
        SSL_free(t->ssl);
        free(t);
}

int http_tls_put(struct http_tls *t, struct slice cipher) {
        /* A memory BIO takes everything or is out of memory. */
        if (cipher.len && BIO_write(t->in, cipher.ptr, (int)cipher.len) != (int)cipher.len) {
                ERR_clear_error();
                return -ENOMEM;
        }
        return 0;
}

static int failed(struct http_tls *t) {
        long verify = SSL_get_verify_result(t->ssl);

        if (verify != X509_V_OK && SSL_get_verify_mode(t->ssl) != SSL_VERIFY_NONE) {
                snprintf(t->error, sizeof(t->error), "certificate: %s", X509_verify_cert_error_string(verify));
                ERR_clear_error();
        } else {
                openssl_text(t->error, sizeof(t->error));
        }
        return -EPROTO;
}

int http_tls_handshake(struct http_tls *t) {
        int r;

        ERR_clear_error();
        r = SSL_do_handshake(t->ssl);
        if (r == 1)
                return 1;
        return SSL_get_error(t->ssl, r) == SSL_ERROR_WANT_READ ? 0 : failed(t);
}

ssize_t http_tls_read(struct http_tls *t, char *out, size_t size) {
        int n;

        ERR_clear_error();
        n = SSL_read(t->ssl, out, size > INT32_MAX ? INT32_MAX : (int)size);
        if (n > 0)
                return n;
        switch (SSL_get_error(t->ssl, n)) {
        case SSL_ERROR_WANT_READ:
                return 0;
        case SSL_ERROR_ZERO_RETURN:
                return -EPIPE;
        default:
                return failed(t);
        }
}

int http_tls_write(struct http_tls *t, struct slice plain) {
        ERR_clear_error();
        while (plain.len) {
                int len = plain.len > INT32_MAX ? INT32_MAX : (int)plain.len, n = SSL_write(t->ssl, plain.ptr, len);

                if (n <= 0)
                        return failed(t);
                slice_take(&plain, (size_t)n);
        }
        return 0;
}

void http_tls_shutdown(struct http_tls *t) {
        ERR_clear_error();
        SSL_shutdown(t->ssl);
        ERR_clear_error();
}

struct slice http_tls_pending(struct http_tls *t) {
        char *bytes = NULL;
        long len = BIO_get_mem_data(t->out, &bytes);

        return slice_of(bytes, len > 0 ? (size_t)len : 0);
}

void http_tls_sent(struct http_tls *t) {
        (void)BIO_reset(t->out);
}

const char *http_tls_error_text(const struct http_tls *t) {
        return t->error;
}
