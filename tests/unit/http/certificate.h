/* certificate.h - certificates for tests, made when they are needed: none lies in the tree that may expire. */
#pragma once
#include "net.h"
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

static void add_extension(X509 *cert, int nid, const char *value) {
        X509V3_CTX context;
        X509_EXTENSION *extension;

        X509V3_set_ctx(&context, cert, cert, NULL, NULL, 0);
        extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
        assert_non_null(extension);
        X509_add_ext(cert, extension, -1);
        X509_EXTENSION_free(extension);
}

/* A self-signed certificate for `names`, valid for an hour. */
static void make_certificate(const char *cert_file, const char *key_file, const char *names) {
        EVP_PKEY *key = EVP_EC_gen("P-256");
        X509 *cert = X509_new();
        X509_NAME *subject = X509_get_subject_name(cert);
        FILE *f;

        assert_non_null(key);
        X509_set_version(cert, 2);
        ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
        X509_gmtime_adj(X509_getm_notBefore(cert), -60);
        X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
        X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)"baton test", -1, -1, 0);
        X509_set_issuer_name(cert, subject);
        X509_set_pubkey(cert, key);
        add_extension(cert, NID_basic_constraints, "critical,CA:TRUE");
        add_extension(cert, NID_subject_alt_name, names);
        assert_true(X509_sign(cert, key, EVP_sha256()) > 0);
        f = fopen(cert_file, "w");
        PEM_write_X509(f, cert);
        fclose(f);
        f = fopen(key_file, "w");
        PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL);
        fclose(f);
        X509_free(cert);
        EVP_PKEY_free(key);
}
