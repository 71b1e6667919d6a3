/* wire.h - the messages between ranks (private to comm/). Sans-I/O; everything read is hostile until checked.
 *
 * A message is a head of 16 bytes and a body; numbers are little-endian. A DATA message is followed by its payload.
 *
 *     u32 body bytes   u8 kind   u8[3] 0   u64 tag     tag names a fetch on its connection
 *
 *     HELLO    u16 version, name engine, u16 n, n x (name fact, name value)
 *     WELCOME  the same, u32 block_tokens, u32 blocks, u64 base, u64 pid, u64 proof's address, u8[16] proof, name UCX address,
 *              name UCX key (pid 0: this host's memory is not to be read; empty names: there is no UCX)
 *     BEAT     name lease
 *     RELEASE  name lease
 *     FETCH    name lease, u32 first, u32 end, u32 group, u8 direct, u8 checksum
 *     BLOCKS   u64 checksum, u32 n, n x u32 block        the answer when direct
 *     DATA     u64 checksum, u64 payload bytes           the answer when not
 *     REFUSED  u32 errno, name text
 *     CLOSE
 *     CLOSED   u8 valid
 *
 * A prefiller that pushes introduces itself in the same way; then, on a connection of its own for each prompt,
 *
 *     PUSH     name lease, u32 first, u32 end, u32 block_tokens, u32 blocks, u64 base, u64 pid, u64 proof's address,
 *              u8[16] proof      (pid 0: its memory is not to be read)
 *     READY    u8 direct, u8 checksum                    the answer, or REFUSED
 *     ROWS     u32 layer, u32 first, u32 end, u32 n, n x u32 block    tokens of one layer: with the blocks where they lie when
 *              direct, else without, and followed by their bytes
 *     COMPLETE u64 checksum                              all was sent; the decoder answers CLOSE when it has it, then comes CLOSED
 *
 * A name is u16 bytes and as many. */
#pragma once
#include "base/buf.h"
#include "comm/comm.h"

#define WIRE_VERSION    1u
#define WIRE_HEAD_BYTES 16u
/* To a producer go names and numbers only. To a consumer also block tables: a million tokens in blocks of 4. */
#define WIRE_REQUEST_MAX 16384u
#define WIRE_ANSWER_MAX  (1u << 20)
/* Tokens in one ROWS: their table fits a request, and their bytes are one turn's work. */
#define WIRE_ROWS_MAX    1024u
#define WIRE_FACTS_MAX   32u
#define WIRE_PROOF_BYTES 16u

enum wire_kind {
        WIRE_HELLO = 1,
        WIRE_WELCOME,
        WIRE_BEAT,
        WIRE_RELEASE,
        WIRE_FETCH,
        WIRE_BLOCKS,
        WIRE_DATA,
        WIRE_REFUSED,
        WIRE_CLOSE,
        WIRE_CLOSED,
        WIRE_PUSH,
        WIRE_READY,
        WIRE_ROWS,
        WIRE_COMPLETE
};

struct wire_facts {
        struct slice names[WIRE_FACTS_MAX], values[WIRE_FACTS_MAX];
        size_t count;
};

/* One message; which members count says the table above. Slices are views of what was parsed. */
struct wire_message {
        enum wire_kind kind;
        uint64_t tag;
        uint32_t version;
        struct slice engine;
        struct wire_facts facts;
        uint32_t block_tokens, blocks;
        uint64_t base, pid, proof_at;
        uint8_t proof[WIRE_PROOF_BYTES];
        struct slice ucx_address, ucx_key;
        struct slice lease;
        uint32_t layer, first, end, group;
        bool direct, checksum_wanted;
        uint64_t checksum, payload;
        struct slice table; /* n x u32, unaligned: wire_block() */
        uint32_t table_count;
        uint32_t error;
        struct slice text;
        bool valid;
};

void wire_write(struct buf *out, const struct wire_message *m); /* check buf_ok() */
/* Take a message out of the front of `in`, whose body has at most `most` bytes. Returns its bytes, 0 when it is not all
 * there, -EPROTO when it is none. */
int wire_read(struct slice in, size_t most, struct wire_message *ret_message);
uint32_t wire_block(const struct wire_message *m, uint32_t at); /* at < table_count */
