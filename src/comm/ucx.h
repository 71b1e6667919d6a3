/* ucx.h - reading another host's cache through UCX: one-sided, by RDMA where the network can (private to comm/).
 *
 * Each side registers its pool once and tells its worker's address and the pool's key in the welcome; a reader makes an endpoint
 * of them and gets pieces. Everything here happens on comm's thread: UCX's worker is progressed when its descriptor says so.
 *
 * Endpoints handle the death of a peer (UCP_ERR_HANDLING_MODE_PEER): UCX leaves its shared memory aside then, which is why memory
 * of the same host is read directly (direct.c), and its emulation of one-sided reads over TCP is slow, which is why a stream
 * is used there (lease.c). So UCX is for networks with RDMA, unless asked for. */
#pragma once
#include "comm/pieces.h"
#include <uv.h>

/* Longest address or key that is taken from a peer; those of UCX 1.13 to 1.18 have a few hundred bytes. */
#define UCX_BLOB_MAX 4096u

struct ucx;      /* of one comm */
struct ucx_peer; /* an endpoint to a producer, and its pool's key */

bool ucx_has_rdma(void); /* this host has a device for it */

/* 0, -ENODEV with UCX's reason, -ENOMEM. The pool is registered, and with RDMA pinned. */
int ucx_new(uv_loop_t *loop, const struct kv_pool *pool, struct ucx **ret_ucx, struct error *e);
/* For the welcome; valid for the life of the ucx. */
struct slice ucx_address(const struct ucx *u);
struct slice ucx_key(const struct ucx *u);
void ucx_close(struct ucx *u); /* its handle, on comm's thread; peers are gone */
void ucx_free(struct ucx *u);  /* after the loop has run out; NULL is fine */

/* `on_broken` is called once at most, when the peer cannot be reached any more. 0, -EPROTO (blobs that are none), -ENOMEM, -EIO. */
int ucx_peer_new(struct ucx *u, struct slice address, struct slice key,
    void (*on_broken)(void *context, const char *why), void *context, struct ucx_peer **ret_peer);
/* What is under way ends with -ECANCELED before this returns. Not to be called from on_broken or on_end. */
void ucx_peer_free(struct ucx_peer *p);

/* One read: zeroed but for the first four, which are kept until on_end. */
struct ucx_read {
        struct pieces here, there; /* of as many bytes */
        void (*on_end)(struct ucx_read *read, int result);
        struct ucx_peer *peer;
        unsigned under_way;
        uint64_t ended; /* gets, so far: does it move? */
        int result;
        bool stopped, issuing;
};
/* Begin. Ends with one on_end, perhaps before this returns, when nothing is written to `here` any more. */
void ucx_read_begin(struct ucx_read *r);
/* Ask for no more; on_end comes with what is under way, with -ECANCELED. */
void ucx_read_stop(struct ucx_read *r);
