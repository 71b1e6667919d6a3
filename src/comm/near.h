/* near.h - bytes between ranks of one host through memory that both have mapped (private to comm/).
 *
 * Each rank has an inbox: a memfd with a ring for every rank that may write to it. Its offer, a line of text, goes round when the
 * group forms; who is on the same host opens it through /proc (same user, or one that may trace it), and knows by the secret inside
 * that it is the right one. Nothing has a name in a file system, so nothing is left behind by whoever is killed.
 *
 * The socket between the two stays: its end tells that the peer is gone, and a byte on it wakes a peer that sleeps.
 *
 * A peer can write what it wants: contents are for the reader to judge, positions are checked here (-EPROTO), and the size is
 * sealed, so that no access can fault. One thread. */
#pragma once
#include "base/slice.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* A ring holds a decode step's tokens; what does not fit goes as the reader makes room. */
#define NEAR_RING_BYTES ((size_t)1 << 20)
/* All rings of an inbox; with very many ranks each is smaller. Pages are taken when they are first written. */
#define NEAR_INBOX_BYTES ((size_t)64 << 20)
#define NEAR_OFFER_MAX   96

struct inbox;
struct near_link; /* to and from one rank */

/* An inbox for `ranks` writers. 0 or a negative errno (-ENOSYS, -ENOMEM …). */
int inbox_new(uint32_t ranks, struct inbox **ret_inbox);
void inbox_free(struct inbox *b); /* NULL is fine; links first */
/* How long it is worth looking before sleeping: nothing at first, and where others need the core. */
void inbox_set_spin(struct inbox *b, unsigned us);
unsigned inbox_spin_us(const struct inbox *b);
void inbox_offer(const struct inbox *b, char ret_text[NEAR_OFFER_MAX]);

/* Map a peer's inbox, as rank `own` of it, and empty the ring to and from it; the peer's rank is `peer`. 0, or why bytes must go by
 * the socket: -EREMOTE (not of this host, as far as can be seen), -EPROTO, -ENOMEM. */
int near_open(struct inbox *own_box, uint32_t own, uint32_t peer, struct slice offer, struct near_link **ret_link);
/* The memory is in use from here on when both have opened (asked when both must have). */
bool near_is_mutual(const struct near_link *l);
void near_close(struct near_link *l); /* NULL is fine */

/* What goes without waiting. Bytes moved, or -EPROTO. `fd`: the socket, to wake the peer. */
ssize_t near_write(struct near_link *l, int fd, const void *bytes, size_t count);
ssize_t near_read(struct near_link *l, int fd, void *bytes, size_t count);
bool near_has_bytes(const struct near_link *l);

/* Around a wait on the sockets: between the two each change that a peer makes is told by a byte on its socket. After
 * inbox_doze() look once more before waiting. */
void inbox_doze(struct inbox *b);
void inbox_rouse(struct inbox *b);
/* Take the bytes that woke us. 0, or -ECONNRESET: the peer is gone. */
int near_drain(int fd);
