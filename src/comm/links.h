/* links.h - blocking sockets with deadlines, and exchanging bytes with many peers at once (private to comm/). */
#pragma once
#include "base/buf.h"
#include "base/error.h"
#include "comm/near.h"
#include <stdint.h>

uint64_t links_now(void); /* ms */

/* A listener on the addresses of `host` (NULL: all), port 0: any. Returns the descriptor, or a negative errno. */
int links_listen(const char *host, uint16_t port, uint16_t *ret_port);
/* Connect by `until`. The descriptor, or a negative errno. */
int links_connect(const char *host, uint16_t port, uint64_t until);
/* Accept what has come. The descriptor, or -EAGAIN and others. */
int links_accept(int listener);
/* Numeric address of the peer. 0 or a negative errno. */
int links_peer(int fd, char ret_host[64]);
int links_own(int fd, char ret_host[64]); /* of this end */

/* A short message: u32 bytes, u32 kind, body. 0, -ETIMEDOUT, -ECONNRESET, -EPROTO (another length), … */
int links_send(int fd, uint32_t kind, struct slice body, uint64_t until);
int links_receive(int fd, uint32_t *ret_kind, struct buf *body, uint64_t until);

/* One peer's part in an exchange: all of `out` and then `more` goes, all of `in` comes. */
struct link_job {
        int fd;                 /* -1: none */
        struct near_link *near; /* NULL: bytes go by the socket */
        const char *out, *more;
        size_t out_bytes, more_bytes;
        char *in;
        size_t in_bytes;
        void (*arrived)(
            struct link_job *job); /* `in` is full: may set another, and itself to NULL. NULL: that was all */
        void *context;
        bool gone; /* links_exchange()'s own: the peer of a near link has left */
};
/* Send and receive on all jobs at once, until all are done or nothing moves for `silence_ms`. 0, or a negative errno with
 * *ret_at the job that failed (-ETIMEDOUT, -ECONNRESET, …). `once`: only what goes without waiting; 0 then, too. `inbox` is that
 * of the near links; NULL when there are none. */
int links_exchange(
    struct link_job *jobs, size_t count, struct inbox *inbox, unsigned silence_ms, bool once, size_t *ret_at);
/* Has the peer of a near link begun to write, or gone? Does not wait. */
bool links_near_calls(const struct near_link *near, int fd);
