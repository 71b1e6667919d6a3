/* io.h - what all connections of one server or client share on their loop: read buffer, scratch for heads, output chunks,
 * deadlines, the Date line, and work put off to the next turn of the loop. Private to http/. */
#pragma once
#include "http/http.h"
#include "http/wheel.h"

/* One read; a client's body or an upstream's burst comes in pieces of at most this. */
#define HTTP_IO_READ_BYTES (64u << 10)
/* Heads and small bodies are put together here to leave in one write. */
#define HTTP_IO_SCRATCH_BYTES (16u << 10)
/* Data of one output chunk; queues of slow readers are made of these. */
#define HTTP_IO_CHUNK_BYTES ((16u << 10) - 64)
/* Free chunks and arenas kept for the next need. */
#define HTTP_IO_SPARE_CHUNKS 64
#define HTTP_IO_SPARE_ARENAS 64
/* An arena that has grown beyond this is freed rather than kept. */
#define HTTP_IO_SPARE_ARENA_BYTES (16u << 10)

struct http_chunk {
        struct http_chunk *next;
        uint32_t from, to, size;
        char data[];
};

/* Work for the next turn of the loop. A zeroed link pair is made ready with http_task_init(). */
struct http_task {
        struct list link;
        void (*run)(struct http_task *t);
};

struct http_io {
        uv_loop_t *loop;
        uv_timer_t timer;
        uv_idle_t idle; /* active while there is deferred work, so that the loop does not sleep */
        uint64_t timer_at;
        struct wheel wheel;
        struct list deferred;
        struct http_chunk *spare_chunks;
        unsigned count_spare_chunks, count_spare_arenas;
        struct arena spare_arenas[HTTP_IO_SPARE_ARENAS];
        char date[48];
        uint64_t date_at;
        unsigned open_handles;
        bool started;
        void (*on_closed)(struct http_io *io);
        char *read_buffer;  /* HTTP_IO_READ_BYTES */
        char *plain_buffer; /* the same for decrypted bytes; NULL without TLS */
        char *scratch;      /* HTTP_IO_SCRATCH_BYTES */
};

/* Buffers only; handles are made by http_io_start(), so that a server that never listened is freed without a loop turn. */
int http_io_init(struct http_io *io, uv_loop_t *loop, bool tls);
void http_io_start(struct http_io *io); /* again is fine */
/* Close the handles, then call on_closed (from the loop). Deferred work must be done. */
void http_io_close(struct http_io *io, void (*on_closed)(struct http_io *io));
/* Free the buffers; handles are closed or were never made. */
void http_io_free(struct http_io *io);

static inline uint64_t http_io_now(const struct http_io *io) {
        return uv_now(io->loop);
}

/* Set a timer's deadline in the loop's milliseconds; WHEEL_NEVER for none. Cheap when it only moves later. */
void http_io_deadline(struct http_io *io, struct wheel_timer *t, uint64_t at);

void http_task_init(struct http_task *t, void (*run)(struct http_task *t));
void http_io_defer(struct http_io *io, struct http_task *t); /* twice is once */
void http_task_cancel(struct http_task *t);

struct http_chunk *http_io_chunk(struct http_io *io, size_t at_least); /* NULL when memory is out */
void http_io_chunk_free(struct http_io *io, struct http_chunk *c);
struct arena http_io_arena(struct http_io *io);
void http_io_arena_free(struct http_io *io, struct arena *a);

/* "Date: …\r\n", at most a second old. */
struct slice http_io_date(struct http_io *io);
