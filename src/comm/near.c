/* near.c - see near.h. */
#include "comm/near.h"
#include "base/rng.h"
#include <errno.h>
#include <fcntl.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECRET_BYTES 16u
#define MEMFD_NAME   "baton-inbox"
#define RING_MIN     ((size_t)16 << 10)
#define SEALS        (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* Bytes from one writer. Both positions only grow; their difference is what has not been read. */
struct ring {
        alignas(64) _Atomic uint64_t written;
        _Atomic uint32_t opened; /* the writer has this memory mapped */
        alignas(64) _Atomic uint64_t read;
};

/* The head of an inbox; rings follow, then their bytes. */
struct box {
        uint8_t secret[SECRET_BYTES];
        alignas(64) _Atomic uint32_t dozes; /* a change is to be told on the socket */
        struct ring rings[];
};

struct inbox {
        struct box *box;
        size_t bytes, ring_bytes;
        uint32_t ranks;
        int fd;
        unsigned spin_us;
        uint8_t secret[SECRET_BYTES];
};

struct near_link {
        struct inbox *own;
        struct box *theirs;
        struct ring *in, *out; /* in: in the own inbox */
        char *in_bytes, *out_bytes;
        uint64_t read, written; /* ours: what lies in the memory may be anything */
};

/* The same for all who know how many ranks there are. */
static size_t ring_bytes_for(uint32_t ranks) {
        size_t bytes = NEAR_RING_BYTES;

        while (bytes > RING_MIN && bytes * ranks > NEAR_INBOX_BYTES)
                bytes /= 2;
        return bytes;
}

static size_t head_bytes(uint32_t ranks) {
        return (sizeof(struct box) + ranks * sizeof(struct ring) + 4095) & ~(size_t)4095;
}

static char *ring_at(struct box *box, uint32_t ranks, uint32_t writer) {
        return (char *)box + head_bytes(ranks) + writer * ring_bytes_for(ranks);
}

/* ---- life --------------------------------------------------------------------------------------------------------------- */

int inbox_new(uint32_t ranks, struct inbox **ret_inbox) {
        struct inbox *b = calloc(1, sizeof(*b));
        int r = -ENOMEM;

        if (!b)
                return r;
        b->ranks = ranks;
        b->ring_bytes = ring_bytes_for(ranks);
        b->bytes = head_bytes(ranks) + ranks * b->ring_bytes;
        b->box = MAP_FAILED;
        b->fd = memfd_create(MEMFD_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (b->fd < 0 || ftruncate(b->fd, (off_t)b->bytes) < 0 || fcntl(b->fd, F_ADD_SEALS, SEALS) < 0)
                goto fail;
        b->box = mmap(NULL, b->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, b->fd, 0);
        if (b->box == MAP_FAILED)
                goto fail;
        rng_secure(b->secret, SECRET_BYTES);
        memcpy(b->box->secret, b->secret, SECRET_BYTES);
        *ret_inbox = b;
        return 0;

fail:
        r = -errno;
        inbox_free(b);
        return r;
}

void inbox_free(struct inbox *b) {
        if (!b)
                return;
        if (b->box != MAP_FAILED)
                munmap(b->box, b->bytes);
        if (b->fd >= 0)
                close(b->fd);
        free(b);
}

void inbox_set_spin(struct inbox *b, unsigned us) {
        b->spin_us = us;
}

unsigned inbox_spin_us(const struct inbox *b) {
        return b->spin_us;
}

/* PID FD SECRET */
void inbox_offer(const struct inbox *b, char ret_text[NEAR_OFFER_MAX]) {
        size_t used = (size_t)snprintf(ret_text, NEAR_OFFER_MAX, "%d %d ", (int)getpid(), b->fd);

        for (size_t i = 0; i < SECRET_BYTES; i++)
                used += (size_t)snprintf(ret_text + used, NEAR_OFFER_MAX - used, "%02x", b->secret[i]);
}

/* ---- a peer's inbox ----------------------------------------------------------------------------------------------------- */

struct offer {
        uint64_t pid, fd;
        char secret[2 * SECRET_BYTES + 1];
};

static int read_offer(struct slice text, struct offer *ret) {
        struct slice pid, fd;

        if (!slice_split(&text, ' ', &pid) || !slice_split(&text, ' ', &fd) || slice_to_u64(pid, &ret->pid) < 0 ||
            slice_to_u64(fd, &ret->fd) < 0 || ret->pid > INT32_MAX || ret->fd > INT32_MAX ||
            text.len != 2 * SECRET_BYTES)
                return -EPROTO;
        memcpy(ret->secret, text.ptr, text.len);
        ret->secret[text.len] = '\0';
        return 0;
}

/* Only what is such a memory by its name is opened at all: opening another's descriptor of another kind may do things. */
static int open_memory(const struct offer *o) {
        char path[64], name[64] = "";
        ssize_t n;
        int fd;

        snprintf(path, sizeof(path), "/proc/%llu/fd/%llu", (unsigned long long)o->pid, (unsigned long long)o->fd);
        n = readlink(path, name, sizeof(name) - 1);
        if (n <= 0 || strncmp(name, "/memfd:" MEMFD_NAME, strlen("/memfd:" MEMFD_NAME)) != 0)
                return -EREMOTE;
        fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        return fd < 0 ? -EREMOTE : fd;
}

static bool is_right(const struct box *box, const struct offer *o) {
        char secret[2 * SECRET_BYTES + 1];

        for (size_t i = 0; i < SECRET_BYTES; i++)
                snprintf(secret + 2 * i, 3, "%02x", box->secret[i]);
        return memcmp(secret, o->secret, sizeof(secret)) == 0;
}

static int map_peer(const struct offer *o, size_t bytes, struct box **ret_box) {
        int fd = open_memory(o), seals;
        struct stat st;
        void *box;

        if (fd < 0)
                return fd;
        seals = fcntl(fd, F_GET_SEALS);
        if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || fstat(fd, &st) < 0 || (uint64_t)st.st_size != bytes) {
                close(fd);
                return -EREMOTE;
        }
        box = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        if (box == MAP_FAILED)
                return -ENOMEM;
        if (!is_right(box, o)) {
                munmap(box, bytes);
                return -EREMOTE;
        }
        *ret_box = box;
        return 0;
}

int near_open(struct inbox *own_box, uint32_t own, uint32_t peer, struct slice offer, struct near_link **ret_link) {
        struct near_link *l;
        struct offer o;
        int r = read_offer(offer, &o);

        if (r < 0)
                return r;
        l = calloc(1, sizeof(*l));
        if (!l)
                return -ENOMEM;
        r = map_peer(&o, own_box->bytes, &l->theirs);
        if (r < 0) {
                free(l);
                return r;
        }
        l->own = own_box;
        l->in = &own_box->box->rings[peer];
        l->in_bytes = ring_at(own_box->box, own_box->ranks, peer);
        l->out = &l->theirs->rings[own];
        l->out_bytes = ring_at(l->theirs, own_box->ranks, own);
        atomic_store(&l->out->opened, 1);
        *ret_link = l;
        return 0;
}

bool near_is_mutual(const struct near_link *l) {
        return atomic_load(&l->in->opened) != 0;
}

void near_close(struct near_link *l) {
        if (!l)
                return;
        munmap(l->theirs, l->own->bytes);
        free(l);
}

/* ---- bytes -------------------------------------------------------------------------------------------------------------- */

/* The change is in memory before we look whether the peer dozes, and it looks for changes after it has said that it does: one
 * of the two sees the other. */
static void tell(struct near_link *l, int fd) {
        atomic_thread_fence(memory_order_seq_cst);
        if (atomic_load(&l->theirs->dozes) && atomic_exchange(&l->theirs->dozes, 0))
                (void)!send(fd, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT); /* one that is full will wake it as well */
}

ssize_t near_write(struct near_link *l, int fd, const void *bytes, size_t count) {
        size_t size = l->own->ring_bytes, at = l->written % size, room, first;
        uint64_t held = l->written - atomic_load_explicit(&l->out->read, memory_order_acquire);

        if (held > size)
                return -EPROTO;
        room = size - held;
        count = count < room ? count : room;
        if (count == 0)
                return 0;
        first = count < size - at ? count : size - at;
        memcpy(l->out_bytes + at, bytes, first);
        memcpy(l->out_bytes, (const char *)bytes + first, count - first);
        l->written += count;
        atomic_store_explicit(&l->out->written, l->written, memory_order_release);
        tell(l, fd);
        return (ssize_t)count;
}

ssize_t near_read(struct near_link *l, int fd, void *bytes, size_t count) {
        size_t size = l->own->ring_bytes, at = l->read % size, first;
        uint64_t held = atomic_load_explicit(&l->in->written, memory_order_acquire) - l->read;

        if (held > size)
                return -EPROTO;
        count = count < held ? count : held;
        if (count == 0)
                return 0;
        first = count < size - at ? count : size - at;
        memcpy(bytes, l->in_bytes + at, first);
        memcpy((char *)bytes + first, l->in_bytes, count - first);
        l->read += count;
        atomic_store_explicit(&l->in->read, l->read, memory_order_release);
        if (held > size / 2) /* the writer may have waited for room */
                tell(l, fd);
        return (ssize_t)count;
}

bool near_has_bytes(const struct near_link *l) {
        return atomic_load(&l->in->written) != l->read;
}

/* ---- sleeping ----------------------------------------------------------------------------------------------------------- */

void inbox_doze(struct inbox *b) {
        atomic_store(&b->box->dozes, 1);
        atomic_thread_fence(memory_order_seq_cst);
}

void inbox_rouse(struct inbox *b) {
        atomic_store(&b->box->dozes, 0);
}

int near_drain(int fd) {
        char bytes[64];
        ssize_t n;

        while ((n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0)
                if (n < (ssize_t)sizeof(bytes))
                        return 0;
        return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -ECONNRESET;
}
