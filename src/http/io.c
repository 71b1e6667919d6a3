/* io.c - see io.h. */
#include "http/io.h"
#include "base/clock.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* How long a Date line is used before the clock is read again. */
#define DATE_MS 250

int http_io_init(struct http_io *io, uv_loop_t *loop, bool tls) {
        *io = (struct http_io){.loop = loop};
        list_init(&io->deferred);
        io->read_buffer = malloc(HTTP_IO_READ_BYTES);
        io->scratch = malloc(HTTP_IO_SCRATCH_BYTES);
        io->plain_buffer = tls ? malloc(HTTP_IO_READ_BYTES) : NULL;
        if (!io->read_buffer || !io->scratch || (tls && !io->plain_buffer)) {
                http_io_free(io);
                return -ENOMEM;
        }
        return 0;
}

void http_io_start(struct http_io *io) {
        if (io->started)
                return;
        /* Neither call can fail or allocates. */
        uv_timer_init(io->loop, &io->timer);
        uv_unref((uv_handle_t *)&io->timer);
        uv_idle_init(io->loop, &io->idle);
        io->timer.data = io->idle.data = io;
        io->timer_at = WHEEL_NEVER;
        wheel_init(&io->wheel, uv_now(io->loop));
        io->started = true;
}

void http_io_free(struct http_io *io) {
        struct http_chunk *c;

        while ((c = io->spare_chunks)) {
                io->spare_chunks = c->next;
                free(c);
        }
        while (io->count_spare_arenas)
                arena_free(&io->spare_arenas[--io->count_spare_arenas]);
        free(io->read_buffer);
        free(io->plain_buffer);
        free(io->scratch);
        io->read_buffer = io->plain_buffer = io->scratch = NULL;
}

static void on_handle_closed(uv_handle_t *handle) {
        struct http_io *io = handle->data;

        if (--io->open_handles == 0)
                io->on_closed(io);
}

void http_io_close(struct http_io *io, void (*on_closed)(struct http_io *io)) {
        assert(io->started && list_empty(&io->deferred));
        io->on_closed = on_closed;
        io->open_handles = 2;
        uv_close((uv_handle_t *)&io->timer, on_handle_closed);
        uv_close((uv_handle_t *)&io->idle, on_handle_closed);
}

/* ---- deadlines ------------------------------------------------------------------------------------------------ */

static void on_timer(uv_timer_t *timer);

static void arm(struct http_io *io) {
        uint64_t next = wheel_next(&io->wheel), now = uv_now(io->loop);

        if (next >= io->timer_at)
                return;
        io->timer_at = next;
        uv_timer_start(&io->timer, on_timer, next > now ? next - now : 0, 0);
}

static void on_timer(uv_timer_t *timer) {
        struct http_io *io = timer->data;

        io->timer_at = WHEEL_NEVER;
        wheel_advance(&io->wheel, uv_now(io->loop));
        if (!uv_is_closing((uv_handle_t *)timer))
                arm(io);
}

void http_io_deadline(struct http_io *io, struct wheel_timer *t, uint64_t at) {
        if (wheel_set(&io->wheel, t, at, uv_now(io->loop)))
                arm(io);
}

/* ---- deferred work -------------------------------------------------------------------------------------------- */

static void on_idle(uv_idle_t *idle) {
        struct http_io *io = idle->data;
        struct list batch, *link;

        /* Work that is deferred by this work waits for the next turn. */
        list_init(&batch);
        while ((link = list_pop_front(&io->deferred)))
                list_push_back(&batch, link);
        while ((link = list_pop_front(&batch))) {
                struct http_task *t = list_item(link, struct http_task, link);

                t->run(t);
        }
        if (list_empty(&io->deferred) && !uv_is_closing((uv_handle_t *)idle))
                uv_idle_stop(idle);
}

void http_task_init(struct http_task *t, void (*run)(struct http_task *t)) {
        list_init(&t->link);
        t->run = run;
}

void http_io_defer(struct http_io *io, struct http_task *t) {
        if (!list_empty(&t->link))
                return;
        list_push_back(&io->deferred, &t->link);
        uv_idle_start(&io->idle, on_idle);
}

void http_task_cancel(struct http_task *t) {
        list_remove(&t->link);
}

/* ---- memory --------------------------------------------------------------------------------------------------- */

struct http_chunk *http_io_chunk(struct http_io *io, size_t at_least) {
        size_t size = at_least > HTTP_IO_CHUNK_BYTES ? at_least : HTTP_IO_CHUNK_BYTES;
        struct http_chunk *c = io->spare_chunks;

        if (size > UINT32_MAX)
                return NULL;
        if (c && size == HTTP_IO_CHUNK_BYTES) {
                io->spare_chunks = c->next;
                io->count_spare_chunks--;
        } else {
                c = malloc(sizeof(*c) + size);
                if (!c)
                        return NULL;
                c->size = (uint32_t)size;
        }
        c->next = NULL;
        c->from = c->to = 0;
        return c;
}

void http_io_chunk_free(struct http_io *io, struct http_chunk *c) {
        if (c->size != HTTP_IO_CHUNK_BYTES || io->count_spare_chunks >= HTTP_IO_SPARE_CHUNKS) {
                free(c);
                return;
        }
        c->next = io->spare_chunks;
        io->spare_chunks = c;
        io->count_spare_chunks++;
}

struct arena http_io_arena(struct http_io *io) {
        if (io->count_spare_arenas)
                return io->spare_arenas[--io->count_spare_arenas];
        return (struct arena){0};
}

void http_io_arena_free(struct http_io *io, struct arena *a) {
        if (a->chunks && a->used <= HTTP_IO_SPARE_ARENA_BYTES && io->count_spare_arenas < HTTP_IO_SPARE_ARENAS) {
                arena_reset(a);
                io->spare_arenas[io->count_spare_arenas++] = *a;
        } else {
                arena_free(a);
        }
        *a = (struct arena){0};
}

/* RFC 9110 5.6.7, in English whatever the locale. */
struct slice http_io_date(struct http_io *io) {
        static const char days[][4] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
        static const char months[][4] = {
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
        uint64_t now = uv_now(io->loop);
        struct tm tm;
        time_t seconds;

        if (!io->date[0] || now - io->date_at >= DATE_MS) {
                seconds = (time_t)(clock_wall_ns() / NS_PER_S);
                gmtime_r(&seconds, &tm);
                snprintf(io->date, sizeof(io->date), "Date: %s, %02d %s %d %02d:%02d:%02d GMT\r\n", days[tm.tm_wday],
                    tm.tm_mday, months[tm.tm_mon], tm.tm_year + 1900, tm.tm_hour, tm.tm_min, tm.tm_sec);
                io->date_at = now;
        }
        return slice_str(io->date);
}
