/* relay.c - see relay.h. */
#include "gateway/relay.h"
#include "http/sse.h"
#include <assert.h>
#include <stdio.h>

/* An event's object and its choice have about ten members; more than this and it is passed as it is. */
#define MEMBERS 48

/* ---- cuts ----------------------------------------------------------------------------------------------------------- */

void cuts_add(struct cuts *c, struct slice what, struct slice with) {
        assert(c->count < CUTS_MAX);
        if (what.ptr)
                c->items[c->count++] = (struct cut){what, with};
}

void cuts_write(struct cuts *c, struct slice text, struct buf *out) {
        const char *at = text.ptr;

        for (size_t i = 1; i < c->count; i++) {
                struct cut item = c->items[i];
                size_t k = i;

                for (; k > 0 && c->items[k - 1].what.ptr > item.what.ptr; k--)
                        c->items[k] = c->items[k - 1];
                c->items[k] = item;
        }
        for (size_t i = 0; i < c->count; i++) {
                buf_append(out, at, (size_t)(c->items[i].what.ptr - at));
                buf_add(out, c->items[i].with);
                at = c->items[i].what.ptr + c->items[i].what.len;
        }
        buf_append(out, at, (size_t)(text.ptr + text.len - at));
}

static struct slice number_text(int64_t value, char memory[24]) {
        return slice_of(memory, (size_t)snprintf(memory, 24, "%lld", (long long)value));
}

void relay_fix_cached(struct slice usage, int64_t cached_tokens, char number[24], struct cuts *cuts) {
        struct openai_member m[MEMBERS];
        struct slice details, cached;
        size_t n, at;

        if (cached_tokens < 0 || openai_scan(usage, m, MEMBERS, &n, &at) < 0)
                return;
        details = openai_find(m, n, "prompt_tokens_details");
        if (openai_scan(details, m, MEMBERS, &n, &at) < 0)
                return;
        cached = openai_find(m, n, "cached_tokens");
        if (!openai_is_null(cached))
                cuts_add(cuts, cached, number_text(cached_tokens, number));
}

/* ---- life ----------------------------------------------------------------------------------------------------------- */

void relay_init(struct relay *r, const struct facts *facts) {
        *r = (struct relay){
            .facts = facts,
            .cached_tokens = -1,
            .usage_prompt = -1,
            .usage_completion = -1,
        };
}

void relay_free(struct relay *r) {
        buf_free(&r->head);
        buf_free(&r->prompt_ids);
        buf_free(&r->ids);
        buf_free(&r->held);
        buf_free(&r->scratch);
        buf_free(&r->error);
}

const char *relay_obstacle(const struct relay *r) {
        if (r->ids_sent == 0 && !r->opaque && r->chars_sent == 0)
                return NULL;
        if (r->opaque)
                return "the stream holds what only its own engine can go on with (reasoning, tool calls, several "
                       "choices)";
        if (r->facts->echo)
                return "echo";
        if (!r->track || r->prompt_ids.len == 0 || r->ids_sent == 0)
                return "the engine returned no token ids";
        if (!r->model.ptr) /* chunks of our own, and those of a chat that goes on, need a frame */
                return "the engine's chunks lack id, created or model";
        if (r->facts->stop.ptr)
                return "stop";
        return r->facts->bound;
}

void relay_restart(struct relay *r, bool reframe) {
        buf_reset(&r->held);
        r->ids.len = r->sent_bytes;
        r->ids_seen = r->ids_sent;
        r->ids_before = r->ids_sent;
        r->chars_before = r->chars_sent;
        r->reframe = reframe;
        r->restarted = true;
        r->done = false;
        buf_reset(&r->error);
}

/* ---- one event ------------------------------------------------------------------------------------------------------ */

/* An event taken apart; slices of its data. */
struct chunk {
        struct slice data;
        struct slice id, created, model, usage, choices, fingerprint, error, choice;
        struct slice index, text, delta, logprobs, finish, stop_reason, ids;
        struct slice prompt_ids; /* at the top in a chat, in the choice in completions */
        struct slice text_offset;
        bool has_role, several, foreign; /* foreign: a delta with more than role and content */
        uint32_t id_count;
};

/* Where a member goes. Keys of an engine are compared as they stand: this runs for every event of every stream. */
struct field {
        const char *name;
        size_t len, offset;
};
#define FIELD(name, member)                                                                                            \
        { name, sizeof(name) - 1, offsetof(struct chunk, member) }

static const struct field top_fields[] = {
    FIELD("id", id),
    FIELD("created", created),
    FIELD("model", model),
    FIELD("choices", choices),
    FIELD("usage", usage),
    FIELD("error", error),
    FIELD("prompt_token_ids", prompt_ids),
    FIELD("system_fingerprint", fingerprint),
};
static const struct field choice_fields[] = {
    FIELD("index", index),
    FIELD("delta", delta),
    FIELD("text", text),
    FIELD("logprobs", logprobs),
    FIELD("finish_reason", finish),
    FIELD("stop_reason", stop_reason),
    FIELD("token_ids", ids),
    FIELD("prompt_token_ids", prompt_ids),
};

static void take_fields(
    const struct openai_member *m, size_t n, const struct field *fields, size_t count, struct chunk *c) {
        for (size_t i = 0; i < n; i++)
                for (size_t k = 0; k < count; k++)
                        if (m[i].key.len == fields[k].len && !memcmp(m[i].key.ptr, fields[k].name, fields[k].len)) {
                                *(struct slice *)((char *)c + fields[k].offset) = m[i].value;
                                break;
                        }
}

static void read_delta(struct slice delta, struct chunk *c) {
        struct openai_member m[MEMBERS];
        size_t n, at;

        if (openai_scan(delta, m, MEMBERS, &n, &at) < 0) {
                c->foreign = true;
                return;
        }
        for (size_t i = 0; i < n; i++) {
                if (slice_eq(m[i].key, SLICE_LIT("content")))
                        c->text = m[i].value;
                else if (slice_eq(m[i].key, SLICE_LIT("role")))
                        c->has_role = true;
                else if (!openai_is_null(m[i].value) && !slice_is(m[i].value, "[]"))
                        c->foreign = true;
        }
}

static void read_logprobs(struct chunk *c) {
        struct openai_member m[MEMBERS];
        size_t n, at;

        if (!openai_is_null(c->logprobs) && openai_scan(c->logprobs, m, MEMBERS, &n, &at) == 0)
                c->text_offset = openai_find(m, n, "text_offset");
}

/* A list of numbers, at least one, and nothing else: what an engine calls ids goes into the body of another leg. */
static bool is_id_list(struct slice v) {
        bool any = false;

        if (v.len < 3 || v.ptr[0] != '[')
                return false;
        for (size_t i = 1; i + 1 < v.len; i++) {
                bool digit = v.ptr[i] >= '0' && v.ptr[i] <= '9';

                if (!digit && v.ptr[i] != ',' && v.ptr[i] != ' ')
                        return false;
                any |= digit;
        }
        return any;
}

static bool read_choice(struct slice choice, struct chunk *c) {
        struct openai_member m[MEMBERS];
        size_t n, at;

        if (openai_scan(choice, m, MEMBERS, &n, &at) < 0)
                return false;
        c->choice = choice;
        take_fields(m, n, choice_fields, sizeof(choice_fields) / sizeof(*choice_fields), c);
        if (!c->text.ptr)
                read_delta(c->delta, c);
        read_logprobs(c);
        c->id_count = is_id_list(c->ids) ? (uint32_t)openai_count_items(c->ids) : 0;
        return true;
}

/* Read the event's data. Returns false when it is no JSON object. */
static bool read_data(struct chunk *c) {
        struct openai_member m[MEMBERS];
        size_t n, at;

        if (openai_scan(c->data, m, MEMBERS, &n, &at) < 0)
                return false;
        take_fields(m, n, top_fields, sizeof(top_fields) / sizeof(*top_fields), c);
        return true;
}

/* False: not a chunk of an answer. */
static bool read_chunk(struct chunk *c) {
        struct slice rest = c->choices, choice, second;

        if (rest.len == 0 || rest.ptr[0] != '[')
                return false;
        if (!openai_next_item(&rest, &choice))
                return true;
        c->several = openai_next_item(&rest, &second);
        return read_choice(choice, c);
}

/* Remember what the frame of a later chunk needs. */
static void learn(struct relay *r, const struct chunk *c) {
        if (!r->model.ptr && c->created.ptr && c->model.ptr && c->id.ptr) {
                size_t at[3] = {r->head.len, 0, 0};

                buf_add(&r->head, c->created);
                at[1] = r->head.len;
                buf_add(&r->head, c->model);
                at[2] = r->head.len;
                buf_add(&r->head, c->id);
                if (!buf_ok(&r->head))
                        return;
                r->created = slice_of(r->head.ptr + at[0], at[1] - at[0]);
                r->model = slice_of(r->head.ptr + at[1], at[2] - at[1]);
                if (!r->id.ptr)
                        r->id = slice_of(r->head.ptr + at[2], r->head.len - at[2]);
        }
        if (r->track && r->prompt_ids.len == 0 && is_id_list(c->prompt_ids) && r->ids_before == 0)
                buf_add(&r->prompt_ids, c->prompt_ids);
}

/* ---- usage ---------------------------------------------------------------------------------------------------------- */

static int64_t integer_or(struct slice v, int64_t otherwise) {
        int64_t n;

        return openai_is_null(v) || facts_integer(v, &n) < 0 ? otherwise : n;
}

/* Memory for the numbers that cuts point to. */
struct numbers {
        char prompt[24], completion[24], cached[24], index[24];
};

/* Counts of this leg as the client counts them: what earlier legs sent is part of this leg's prompt. */
static void cut_usage(struct relay *r, struct slice usage, struct numbers *numbers, struct cuts *cuts) {
        struct openai_member m[MEMBERS];
        struct slice prompt, completion;
        int64_t p, c;
        size_t n, at;

        if (openai_is_null(usage) || openai_scan(usage, m, MEMBERS, &n, &at) < 0)
                return;
        prompt = openai_find(m, n, "prompt_tokens");
        completion = openai_find(m, n, "completion_tokens");
        p = integer_or(prompt, -1);
        c = integer_or(completion, -1);
        if (r->ids_before > 0 && p >= 0 && c >= 0) {
                p -= r->ids_before;
                c += r->ids_before;
                cuts_add(cuts, prompt, number_text(p, numbers->prompt));
                cuts_add(cuts, completion, number_text(c, numbers->completion));
        }
        r->usage_prompt = p;
        r->usage_completion = c;
        relay_fix_cached(usage, r->cached_tokens, numbers->cached, cuts);
}

/* ---- writing -------------------------------------------------------------------------------------------------------- */

/* text_offset of a leg that continues: counted from the begin of the whole text. */
static void write_offsets(struct relay *r, struct slice offsets, struct buf *out) {
        struct slice item;
        bool first = true;

        buf_add_char(out, '[');
        while (openai_next_item(&offsets, &item)) {
                if (!first)
                        buf_add_char(out, ',');
                first = false;
                buf_add_i64(out, integer_or(item, 0) + (int64_t)r->chars_before);
        }
        buf_add_char(out, ']');
}

/* The event with its values replaced. Data of one line lies within the event, else it is framed anew. */
static void write_event(struct relay *r, struct slice event, const struct chunk *c, struct buf *out) {
        struct numbers numbers;
        struct cuts cuts = {0};
        struct buf offsets = {0};
        bool inside = c->data.ptr >= event.ptr && c->data.ptr < event.ptr + event.len;

        if (r->track && !r->facts->return_token_ids) {
                if (!openai_is_null(c->ids))
                        cuts_add(&cuts, c->ids, SLICE_LIT("null"));
                if (!openai_is_null(c->prompt_ids))
                        cuts_add(&cuts, c->prompt_ids, SLICE_LIT("null"));
        }
        if (r->id.ptr && c->id.ptr && !slice_eq(r->id, c->id))
                cuts_add(&cuts, c->id, r->id);
        if (r->many && c->index.ptr)
                cuts_add(&cuts, c->index, number_text(r->index, numbers.index));
        if (r->chars_before > 0 && c->text_offset.ptr) {
                write_offsets(r, c->text_offset, &offsets);
                cuts_add(&cuts, c->text_offset, buf_slice(&offsets));
        }
        cut_usage(r, c->usage, &numbers, &cuts);
        if (inside) {
                cuts_write(&cuts, event, out);
        } else {
                size_t begin;

                buf_add_str(out, "data: ");
                begin = out->len;
                cuts_write(&cuts, c->data, out);
                /* Line breaks between JSON's tokens only; inside strings they are escaped. */
                for (size_t i = begin; i < out->len; i++)
                        if (out->ptr[i] == '\n')
                                out->ptr[i] = ' ';
                buf_add_str(out, "\n\n");
        }
        buf_free(&offsets);
}

static void write_frame(const struct relay *r, struct buf *out) {
        buf_add_str(out, "data: {\"id\":");
        buf_add(out, r->id);
        buf_add_str(out, r->facts->api == API_CHAT ? ",\"object\":\"chat.completion.chunk\",\"created\":"
                                                   : ",\"object\":\"text_completion\",\"created\":");
        buf_add(out, r->created);
        buf_add_str(out, ",\"model\":");
        buf_add(out, r->model);
}

/* A chunk of a completions leg in the chat's frame. */
static void write_as_chat(struct relay *r, const struct chunk *c, struct buf *out) {
        struct numbers numbers;
        struct cuts cuts = {0};

        write_frame(r, out);
        if (!c->choice.ptr) {
                buf_add_str(out, ",\"choices\":[]");
        } else {
                buf_add_str(out, ",\"choices\":[{\"index\":");
                buf_add_u64(out, r->index);
                buf_add_str(out, ",\"delta\":{\"content\":");
                buf_add(out, c->text);
                buf_add_str(out, "},\"logprobs\":null,\"finish_reason\":");
                buf_add(out, c->finish.ptr ? c->finish : SLICE_LIT("null"));
                if (!openai_is_null(c->finish)) {
                        buf_add_str(out, ",\"stop_reason\":");
                        buf_add(out, c->stop_reason.ptr ? c->stop_reason : SLICE_LIT("null"));
                }
                buf_add_str(out, ",\"token_ids\":");
                buf_add(out, r->facts->return_token_ids && c->ids.ptr ? c->ids : SLICE_LIT("null"));
                buf_add_str(out, "}]");
        }
        if (!openai_is_null(c->usage)) {
                buf_add_str(out, ",\"usage\":");
                cut_usage(r, c->usage, &numbers, &cuts);
                cuts_write(&cuts, c->usage, out);
        }
        if (!openai_is_null(c->fingerprint)) {
                buf_add_str(out, ",\"system_fingerprint\":");
                buf_add(out, c->fingerprint);
        }
        buf_add_str(out, "}\n\n");
}

static void write_chunk(struct relay *r, struct slice event, const struct chunk *c, struct buf *out) {
        if (r->reframe)
                write_as_chat(r, c, out);
        else
                write_event(r, event, c, out);
}

/* ---- the rule about text -------------------------------------------------------------------------------------------- */

static void add_ids(struct relay *r, const struct chunk *c) {
        struct slice list = c->ids, item;

        while (openai_next_item(&list, &item)) {
                if (r->ids.len > 0)
                        buf_add_char(&r->ids, ',');
                buf_add(&r->ids, item);
        }
        r->ids_seen += c->id_count;
}

/* Everything read so far is at the client now. */
static void confirm(struct relay *r, struct buf *out) {
        buf_add(out, buf_slice(&r->held));
        buf_reset(&r->held);
        r->ids_sent = r->ids_seen;
        r->sent_bytes = r->ids.len;
}

static void take_choice(struct relay *r, struct slice event, const struct chunk *c, struct buf *out) {
        bool ends = !openai_is_null(c->finish), silent = openai_inside(c->text).len == 0;

        if (c->several || c->foreign || integer_or(c->index, 0) != 0)
                r->opaque = true;
        if (c->has_role && silent && !ends && c->id_count == 0) {
                if (r->role_sent && r->restarted)
                        return;
                r->role_sent = true;
                write_chunk(r, event, c, out);
                r->any_sent = true;
                return;
        }
        if (r->track && c->id_count > 0)
                add_ids(r, c);
        if (r->track && !r->opaque && silent && !ends && c->id_count > 0 && r->held.len < RELAY_HELD_MAX) {
                write_chunk(r, event, c, &r->held);
                return;
        }
        confirm(r, out);
        r->chars_sent += openai_length(openai_inside(c->text));
        /* Text without ids: this engine does not return them, or not here. */
        if (!silent && c->id_count == 0 && r->track)
                r->track = false;
        write_chunk(r, event, c, out);
        r->any_sent = true;
        r->finished |= ends;
}

enum relay_verdict relay_event(struct relay *r, struct slice event, struct buf *out) {
        struct chunk c = {0};

        buf_reset(&r->scratch);
        if (!buf_reserve(&r->scratch, event.len))
                return RELAY_NO_MEMORY;
        c.data = sse_data(event, r->scratch.ptr);
        if (!c.data.ptr) { /* a comment, or a field that we do not know */
                buf_add(out, event);
                return RELAY_MORE;
        }
        if (slice_is(slice_trim(c.data), "[DONE]")) {
                confirm(r, out);
                r->done = true;
                return RELAY_DONE;
        }
        if (!read_data(&c)) {
                r->opaque = r->any_sent = true;
                confirm(r, out);
                buf_add(out, event);
                return RELAY_MORE;
        }
        if (!openai_is_null(c.error)) {
                buf_reset(&r->error);
                buf_add(&r->error, c.data);
                return RELAY_ERROR;
        }
        if (!read_chunk(&c)) {
                r->opaque = r->any_sent = true;
                confirm(r, out);
                buf_add(out, event);
                return RELAY_MORE;
        }
        if (slice_is(c.stop_reason, "\"recomputed\""))
                return RELAY_RECOMPUTED;
        learn(r, &c);
        if (c.choice.ptr) {
                take_choice(r, event, &c, out);
        } else if (r->many) {
                struct cuts cuts = {0};
                struct numbers numbers;

                cut_usage(r, c.usage, &numbers, &cuts); /* for the sum */
        } else {
                confirm(r, out);
                write_chunk(r, event, &c, out);
                r->any_sent = true;
                r->usage_sent |= !openai_is_null(c.usage);
        }
        return buf_ok(out) && buf_ok(&r->ids) && buf_ok(&r->held) && buf_ok(&r->head) && buf_ok(&r->prompt_ids)
                   ? RELAY_MORE
                   : RELAY_NO_MEMORY;
}

/* ---- ends ------------------------------------------------------------------------------------------------------------ */

void relay_write_usage(const struct relay *first, int64_t prompt_tokens, int64_t completion_tokens, struct buf *out) {
        write_frame(first, out);
        buf_add_str(out, ",\"choices\":[],\"usage\":{\"prompt_tokens\":");
        buf_add_i64(out, prompt_tokens);
        buf_add_str(out, ",\"total_tokens\":");
        buf_add_i64(out, prompt_tokens + completion_tokens);
        buf_add_str(out, ",\"completion_tokens\":");
        buf_add_i64(out, completion_tokens);
        buf_add_str(out, "}}\n\n");
}

void relay_end_at_length(struct relay *r, struct buf *out) {
        write_frame(r, out);
        buf_add_str(out, ",\"choices\":[{\"index\":");
        buf_add_u64(out, r->index);
        buf_add_str(out, r->facts->api == API_CHAT ? ",\"delta\":{\"content\":\"\"}" : ",\"text\":\"\"");
        buf_add_str(out, ",\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null}]}\n\n");
        r->finished = true;
        r->usage_prompt = r->usage_completion = -1; /* of the leg that was lost */
        relay_end_usage(r, -1, out);
}

void relay_end_usage(struct relay *r, int64_t prompt_tokens, struct buf *out) {
        if (r->usage_prompt < 0 && r->prompt_ids.len > 0)
                r->usage_prompt = (int64_t)openai_count_items(buf_slice(&r->prompt_ids));
        if (r->usage_prompt < 0)
                r->usage_prompt = prompt_tokens;
        if (r->usage_completion < 0 && r->ids_sent > 0)
                r->usage_completion = r->ids_sent;
        if (!r->facts->include_usage || r->many || r->usage_sent || r->usage_prompt < 0 || r->usage_completion < 0 ||
            !r->model.ptr)
                return;
        relay_write_usage(r, r->usage_prompt, r->usage_completion, out);
        r->usage_sent = true;
}
