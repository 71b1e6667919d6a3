/* ucx.c - see ucx.h. */
#include "comm/ucx.h"
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <ucp/api/ucp.h>

/* Gets under way for one fetch: enough to fill a 400 Gbit/s network with pieces of a megabyte, few enough to stop soon. */
#define GETS_MAX  32u
#define GET_BYTES (4u << 20)

/* UCX is loaded when it is wanted, and stays: its libraries patch functions of libc and look after the signals of whoever has
 * them. */
#define FUNCTIONS(F)                                                                                                   \
        F(ucp_init_version)                                                                                            \
        F(ucp_config_read)                                                                                             \
        F(ucp_config_release)                                                                                          \
        F(ucp_cleanup)                                                                                                 \
        F(ucp_worker_create)                                                                                           \
        F(ucp_worker_destroy)                                                                                          \
        F(ucp_worker_get_address)                                                                                      \
        F(ucp_worker_release_address)                                                                                  \
        F(ucp_worker_progress)                                                                                         \
        F(ucp_worker_arm)                                                                                              \
        F(ucp_worker_get_efd)                                                                                          \
        F(ucp_mem_map)                                                                                                 \
        F(ucp_mem_unmap)                                                                                               \
        F(ucp_rkey_pack)                                                                                               \
        F(ucp_rkey_buffer_release)                                                                                     \
        F(ucp_ep_create)                                                                                               \
        F(ucp_ep_rkey_unpack)                                                                                          \
        F(ucp_rkey_destroy)                                                                                            \
        F(ucp_ep_close_nbx)                                                                                            \
        F(ucp_request_check_status)                                                                                    \
        F(ucp_request_free)                                                                                            \
        F(ucp_get_nbx)

struct functions {
#define F(name) typeof(name) *name;
        FUNCTIONS(F)
#undef F
        typeof(ucs_status_string) *ucs_status_string;
};

struct ucx {
        void *ucs, *ucp; /* the libraries */
        struct functions call;
        ucp_context_h context;
        ucp_worker_h worker;
        ucp_mem_h memory;
        ucp_address_t *address;
        size_t address_bytes;
        void *key;
        size_t key_bytes;
        uv_poll_t poll;
};

struct ucx_peer {
        struct ucx *ucx;
        ucp_ep_h endpoint;
        ucp_rkey_h key;
        void (*on_broken)(void *context, const char *why);
        void *context;
};

bool ucx_has_rdma(void) {
        DIR *d = opendir("/sys/class/infiniband");
        struct dirent *entry;
        bool any = false;

        while (d && !any && (entry = readdir(d)))
                any = entry->d_name[0] != '.';
        if (d)
                closedir(d);
        return any;
}

/* ---- the libraries ----------------------------------------------------------------------------------------------------- */

static int load(struct ucx *u, struct error *e) {
        u->ucs = dlopen("libucs.so.0", RTLD_NOW | RTLD_GLOBAL);
        u->ucp = u->ucs ? dlopen("libucp.so.0", RTLD_NOW) : NULL;
        if (!u->ucp)
                return error_set(e, -ENODEV, "UCX is not installed (package libucx0): %s", dlerror());
#define F(name)                                                                                                        \
        u->call.name = (typeof(name) *)dlsym(u->ucp, #name);                                                           \
        if (!u->call.name)                                                                                             \
                return error_set(e, -ENODEV, "UCX lacks " #name);
        FUNCTIONS(F)
#undef F
        u->call.ucs_status_string = (typeof(ucs_status_string) *)dlsym(u->ucs, "ucs_status_string");
        return u->call.ucs_status_string ? 0 : error_set(e, -ENODEV, "UCX lacks ucs_status_string");
}

/* ---- the worker -------------------------------------------------------------------------------------------------------- */

/* Do what can be done, until the descriptor will say that there is more. */
static void progress(struct ucx *u) {
        do {
                while (u->call.ucp_worker_progress(u->worker))
                        ;
        } while (u->call.ucp_worker_arm(u->worker) == UCS_ERR_BUSY);
}

static void on_event(uv_poll_t *poll, int status, int events) {
        progress(poll->data);
}

static ucs_status_t make_context(struct ucx *u) {
        ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME,
            .features = UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP,
            .name = "baton"};
        ucp_config_t *config;
        ucs_status_t s = u->call.ucp_config_read(NULL, NULL, &config);

        if (s != UCS_OK)
                return s;
        s = u->call.ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &u->context);
        u->call.ucp_config_release(config);
        return s;
}

static ucs_status_t make_worker(struct ucx *u) {
        ucp_worker_params_t params = {
            .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE, .thread_mode = UCS_THREAD_MODE_SERIALIZED};
        ucs_status_t s = u->call.ucp_worker_create(u->context, &params, &u->worker);

        return s == UCS_OK ? u->call.ucp_worker_get_address(u->worker, &u->address, &u->address_bytes) : s;
}

static ucs_status_t register_pool(struct ucx *u, const struct kv_pool *pool) {
        ucp_mem_map_params_t params = {.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
            .address = pool->base,
            .length = (size_t)pool->blocks * pool->layers * pool->block_tokens * pool->row_bytes};
        ucs_status_t s = u->call.ucp_mem_map(u->context, &params, &u->memory);

        return s == UCS_OK ? u->call.ucp_rkey_pack(u->context, u->memory, &u->key, &u->key_bytes) : s;
}

static int watch(struct ucx *u, uv_loop_t *loop) {
        int fd, r;

        if (u->call.ucp_worker_get_efd(u->worker, &fd) != UCS_OK)
                return -ENODEV;
        r = uv_poll_init(loop, &u->poll, fd);
        if (r < 0)
                return r;
        u->poll.data = u;
        uv_poll_start(&u->poll, UV_READABLE, on_event); /* fails for handles that are being closed alone */
        progress(u);
        return 0;
}

int ucx_new(uv_loop_t *loop, const struct kv_pool *pool, struct ucx **ret_ucx, struct error *e) {
        struct ucx *u = calloc(1, sizeof(*u));
        ucs_status_t s;
        int r;

        if (!u)
                return error_set(e, -ENOMEM, "out of memory");
        r = load(u, e);
        if (r < 0) {
                ucx_free(u);
                return r;
        }
        s = make_context(u);
        if (s == UCS_OK)
                s = make_worker(u);
        if (s == UCS_OK)
                s = register_pool(u, pool);
        if (s != UCS_OK)
                r = error_set(e, -ENODEV, "UCX: %s", u->call.ucs_status_string(s));
        else if (u->address_bytes > UCX_BLOB_MAX || u->key_bytes > UCX_BLOB_MAX)
                r = error_set(e, -ENODEV, "UCX: its addresses are longer than %u bytes", UCX_BLOB_MAX);
        else if ((r = watch(u, loop)) < 0)
                error_set(e, r, "UCX cannot be waited for: %s", uv_strerror(r));
        if (r < 0) {
                ucx_free(u);
                return r;
        }
        *ret_ucx = u;
        return 0;
}

struct slice ucx_address(const struct ucx *u) {
        return slice_of(u->address, u->address_bytes);
}

struct slice ucx_key(const struct ucx *u) {
        return slice_of(u->key, u->key_bytes);
}

void ucx_close(struct ucx *u) {
        if (!uv_is_closing((uv_handle_t *)&u->poll))
                uv_close((uv_handle_t *)&u->poll, NULL);
}

void ucx_free(struct ucx *u) {
        if (!u)
                return;
        if (u->key)
                u->call.ucp_rkey_buffer_release(u->key);
        if (u->memory)
                u->call.ucp_mem_unmap(u->context, u->memory);
        if (u->address)
                u->call.ucp_worker_release_address(u->worker, u->address);
        if (u->worker)
                u->call.ucp_worker_destroy(u->worker);
        if (u->context)
                u->call.ucp_cleanup(u->context);
        free(u);
}

/* ---- peers ------------------------------------------------------------------------------------------------------------- */

static void on_endpoint_error(void *peer, ucp_ep_h endpoint, ucs_status_t status) {
        struct ucx_peer *p = peer;

        if (p->on_broken)
                p->on_broken(p->context, p->ucx->call.ucs_status_string(status));
}

int ucx_peer_new(struct ucx *u, struct slice address, struct slice key,
    void (*on_broken)(void *context, const char *why), void *context, struct ucx_peer **ret_peer) {
        struct ucx_peer *p = calloc(1, sizeof(*p));
        ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS |
                                                UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER,
            .address = (const ucp_address_t *)(const void *)address.ptr,
            .err_mode = UCP_ERR_HANDLING_MODE_PEER,
            .err_handler = {.cb = on_endpoint_error, .arg = p}};

        if (!p)
                return -ENOMEM;
        *p = (struct ucx_peer){.ucx = u, .on_broken = on_broken, .context = context};
        if (u->call.ucp_ep_create(u->worker, &params, &p->endpoint) != UCS_OK) {
                free(p);
                return -EIO;
        }
        if (u->call.ucp_ep_rkey_unpack(p->endpoint, key.ptr, &p->key) != UCS_OK) {
                ucx_peer_free(p);
                return -EPROTO;
        }
        progress(u);
        *ret_peer = p;
        return 0;
}

void ucx_peer_free(struct ucx_peer *p) {
        ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS, .flags = UCP_EP_CLOSE_FLAG_FORCE};
        struct ucx *u = p->ucx;
        ucs_status_ptr_t closing;

        p->on_broken = NULL;
        if (p->key)
                u->call.ucp_rkey_destroy(p->key);
        closing = u->call.ucp_ep_close_nbx(p->endpoint, &param);
        while (UCS_PTR_IS_PTR(closing) && u->call.ucp_request_check_status(closing) == UCS_INPROGRESS)
                u->call.ucp_worker_progress(u->worker);
        if (UCS_PTR_IS_PTR(closing))
                u->call.ucp_request_free(closing);
        progress(u);
        free(p);
}

/* ---- reads ------------------------------------------------------------------------------------------------------------- */

static void go_on(struct ucx_read *r);

static void on_got(void *request, ucs_status_t status, void *read) {
        struct ucx_read *r = read;

        r->peer->ucx->call.ucp_request_free(request);
        r->under_way--;
        r->ended++;
        if (status != UCS_OK && r->result == 0)
                r->result = status == UCS_ERR_CANCELED ? -ECANCELED : -EIO;
        go_on(r);
}

/* One get of the bytes that lie in one piece on both sides. False: nothing is left. */
static bool get_one(struct ucx_read *r) {
        ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
            .cb.send = on_got,
            .user_data = r};
        struct pieces there_before = r->there;
        struct iovec to, from = pieces_take(&r->there, GET_BYTES);
        ucs_status_ptr_t request;

        if (!from.iov_len)
                return false;
        to = pieces_take(&r->here, from.iov_len);
        if (to.iov_len < from.iov_len) {
                r->there = there_before;
                from = pieces_take(&r->there, to.iov_len);
        }
        request = r->peer->ucx->call.ucp_get_nbx(
            r->peer->endpoint, to.iov_base, to.iov_len, (uint64_t)(uintptr_t)from.iov_base, r->peer->key, &param);
        if (UCS_PTR_IS_ERR(request))
                r->result = -EIO;
        else if (request)
                r->under_way++;
        return true;
}

/* Called again by what it calls, when gets end at once. */
static void go_on(struct ucx_read *r) {
        if (r->issuing)
                return;
        r->issuing = true;
        while (r->result == 0 && !r->stopped && r->under_way < GETS_MAX)
                if (!get_one(r))
                        break;
        r->issuing = false;
        if (r->under_way == 0)
                r->on_end(r, r->stopped ? -ECANCELED : r->result);
}

void ucx_read_begin(struct ucx_read *r) {
        struct ucx *u = r->peer->ucx;

        go_on(r);
        progress(u);
}

void ucx_read_stop(struct ucx_read *r) {
        r->stopped = true;
}
