/* direct.c - reading the cache of another process on this host: one copy, made by the kernel. */
#include "comm/core.h"
#include <errno.h>

bool direct_proves(const struct wire_message *welcome) {
        uint8_t proof[WIRE_PROOF_BYTES];
        struct iovec here = {proof, sizeof(proof)}, there = {(void *)(uintptr_t)welcome->proof_at, sizeof(proof)};

        if (welcome->pid == 0 || welcome->pid > INT32_MAX)
                return false;
        return process_vm_readv((pid_t)welcome->pid, &here, 1, &there, 1, 0) == (ssize_t)sizeof(proof) &&
               memcmp(proof, welcome->proof, sizeof(proof)) == 0;
}

int direct_copy(uint64_t pid, struct pieces *here, struct pieces *there) {
        struct iovec to[TURN_PIECES], from[TURN_PIECES];
        struct pieces here_before = *here, there_before = *there;
        size_t to_bytes, from_bytes, bytes, to_count, from_count;
        ssize_t copied;

        /* As many bytes as the pieces of both sides reach. */
        pieces_gather(here, TURN_BYTES, to, TURN_PIECES, &to_bytes);
        pieces_gather(there, to_bytes, from, TURN_PIECES, &from_bytes);
        bytes = to_bytes < from_bytes ? to_bytes : from_bytes;
        if (bytes == 0)
                return 0;
        *here = here_before;
        *there = there_before;
        to_count = pieces_gather(here, bytes, to, TURN_PIECES, &to_bytes);
        from_count = pieces_gather(there, bytes, from, TURN_PIECES, &from_bytes);
        copied = process_vm_readv((pid_t)pid, to, to_count, from, from_count, 0);
        if (copied < 0)
                return -errno;
        return (size_t)copied == bytes ? 1 : -EFAULT;
}
