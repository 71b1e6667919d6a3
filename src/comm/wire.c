/* wire.c - see wire.h. */
#include "comm/wire.h"
#include <endian.h>
#include <errno.h>

/* ---- writing ----------------------------------------------------------------------------------------------------------- */

static void put(struct buf *b, uint64_t value, size_t bytes) {
        uint64_t le = htole64(value);

        buf_append(b, &le, bytes);
}

static void put_name(struct buf *b, struct slice name) {
        put(b, name.len, 2);
        buf_add(b, name);
}

static void put_introduction(struct buf *b, const struct wire_message *m) {
        put(b, m->version, 2);
        put_name(b, m->engine);
        put(b, m->facts.count, 2);
        for (size_t i = 0; i < m->facts.count; i++) {
                put_name(b, m->facts.names[i]);
                put_name(b, m->facts.values[i]);
        }
}

static void put_memory(struct buf *b, const struct wire_message *m) {
        put(b, m->block_tokens, 4);
        put(b, m->blocks, 4);
        put(b, m->base, 8);
        put(b, m->pid, 8);
        put(b, m->proof_at, 8);
        buf_append(b, m->proof, sizeof(m->proof));
}

static void put_body(struct buf *b, const struct wire_message *m) {
        switch (m->kind) {
        case WIRE_HELLO:
                put_introduction(b, m);
                break;
        case WIRE_WELCOME:
                put_introduction(b, m);
                put_memory(b, m);
                put_name(b, m->ucx_address);
                put_name(b, m->ucx_key);
                break;
        case WIRE_BEAT:
        case WIRE_RELEASE:
                put_name(b, m->lease);
                break;
        case WIRE_FETCH:
                put_name(b, m->lease);
                put(b, m->first, 4);
                put(b, m->end, 4);
                put(b, m->group, 4);
                put(b, m->direct, 1);
                put(b, m->checksum_wanted, 1);
                break;
        case WIRE_BLOCKS:
                put(b, m->checksum, 8);
                put(b, m->table_count, 4);
                buf_add(b, m->table);
                break;
        case WIRE_DATA:
                put(b, m->checksum, 8);
                put(b, m->payload, 8);
                break;
        case WIRE_REFUSED:
                put(b, m->error, 4);
                put_name(b, m->text);
                break;
        case WIRE_CLOSE:
                break;
        case WIRE_CLOSED:
                put(b, m->valid, 1);
                break;
        case WIRE_PUSH:
                put_name(b, m->lease);
                put(b, m->first, 4);
                put(b, m->end, 4);
                put_memory(b, m);
                break;
        case WIRE_READY:
                put(b, m->direct, 1);
                put(b, m->checksum_wanted, 1);
                break;
        case WIRE_ROWS:
                put(b, m->layer, 4);
                put(b, m->first, 4);
                put(b, m->end, 4);
                put(b, m->table_count, 4);
                buf_add(b, m->table);
                break;
        case WIRE_COMPLETE:
                put(b, m->checksum, 8);
                break;
        }
}

void wire_write(struct buf *out, const struct wire_message *m) {
        size_t head = out->len;
        uint32_t bytes;

        put(out, 0, 4);
        put(out, m->kind, 4);
        put(out, m->tag, 8);
        put_body(out, m);
        if (!buf_ok(out))
                return;
        bytes = htole32((uint32_t)(out->len - head - WIRE_HEAD_BYTES));
        memcpy(out->ptr + head, &bytes, sizeof(bytes));
}

/* ---- reading ----------------------------------------------------------------------------------------------------------- */

/* What is left of a body; `bad` once more was asked for than there is. */
struct reader {
        struct slice in;
        bool bad;
};

static struct slice take(struct reader *r, size_t bytes) {
        if (bytes > r->in.len) {
                r->bad = true;
                return SLICE_NONE;
        }
        return slice_take(&r->in, bytes);
}

static uint64_t get(struct reader *r, size_t bytes) {
        struct slice s = take(r, bytes);
        uint64_t le = 0;

        if (s.len)
                memcpy(&le, s.ptr, s.len);
        return le64toh(le);
}

static struct slice get_name(struct reader *r) {
        return take(r, get(r, 2));
}

static void get_introduction(struct reader *r, struct wire_message *m) {
        m->version = (uint32_t)get(r, 2);
        m->engine = get_name(r);
        m->facts.count = get(r, 2);
        if (m->facts.count > WIRE_FACTS_MAX) {
                m->facts.count = 0;
                r->bad = true;
        }
        for (size_t i = 0; i < m->facts.count; i++) {
                m->facts.names[i] = get_name(r);
                m->facts.values[i] = get_name(r);
        }
}

static void get_memory(struct reader *r, struct wire_message *m) {
        struct slice proof;

        m->block_tokens = (uint32_t)get(r, 4);
        m->blocks = (uint32_t)get(r, 4);
        m->base = get(r, 8);
        m->pid = get(r, 8);
        m->proof_at = get(r, 8);
        proof = take(r, sizeof(m->proof));
        if (proof.len)
                memcpy(m->proof, proof.ptr, proof.len);
}

static void get_body(struct reader *r, struct wire_message *m) {
        switch (m->kind) {
        case WIRE_HELLO:
                get_introduction(r, m);
                break;
        case WIRE_WELCOME:
                get_introduction(r, m);
                get_memory(r, m);
                m->ucx_address = get_name(r);
                m->ucx_key = get_name(r);
                break;
        case WIRE_BEAT:
        case WIRE_RELEASE:
                m->lease = get_name(r);
                break;
        case WIRE_FETCH:
                m->lease = get_name(r);
                m->first = (uint32_t)get(r, 4);
                m->end = (uint32_t)get(r, 4);
                m->group = (uint32_t)get(r, 4);
                m->direct = get(r, 1) != 0;
                m->checksum_wanted = get(r, 1) != 0;
                break;
        case WIRE_BLOCKS:
                m->checksum = get(r, 8);
                m->table_count = (uint32_t)get(r, 4);
                m->table = take(r, (size_t)m->table_count * 4);
                break;
        case WIRE_DATA:
                m->checksum = get(r, 8);
                m->payload = get(r, 8);
                break;
        case WIRE_REFUSED:
                m->error = (uint32_t)get(r, 4);
                m->text = get_name(r);
                break;
        case WIRE_CLOSE:
                break;
        case WIRE_CLOSED:
                m->valid = get(r, 1) != 0;
                break;
        case WIRE_PUSH:
                m->lease = get_name(r);
                m->first = (uint32_t)get(r, 4);
                m->end = (uint32_t)get(r, 4);
                get_memory(r, m);
                break;
        case WIRE_READY:
                m->direct = get(r, 1) != 0;
                m->checksum_wanted = get(r, 1) != 0;
                break;
        case WIRE_ROWS:
                m->layer = (uint32_t)get(r, 4);
                m->first = (uint32_t)get(r, 4);
                m->end = (uint32_t)get(r, 4);
                m->table_count = (uint32_t)get(r, 4);
                m->table = take(r, (size_t)m->table_count * 4);
                break;
        case WIRE_COMPLETE:
                m->checksum = get(r, 8);
                break;
        default:
                r->bad = true;
        }
}

int wire_read(struct slice in, size_t most, struct wire_message *ret_message) {
        struct reader head = {.in = in}, body;
        struct wire_message m = {0};
        size_t bytes;

        if (in.len < WIRE_HEAD_BYTES)
                return 0;
        bytes = get(&head, 4);
        m.kind = (enum wire_kind)get(&head, 4);
        m.tag = get(&head, 8);
        if (bytes > most)
                return -EPROTO;
        if (bytes > head.in.len)
                return 0;
        body = (struct reader){.in = slice_take(&head.in, bytes)};
        get_body(&body, &m);
        if (body.bad || body.in.len)
                return -EPROTO;
        *ret_message = m;
        return (int)(WIRE_HEAD_BYTES + bytes);
}

uint32_t wire_block(const struct wire_message *m, uint32_t at) {
        uint32_t le;

        memcpy(&le, m->table.ptr + (size_t)at * 4, 4);
        return le32toh(le);
}
