/* tokenizer_load.c - read tokenizer.json and tokenizer_config.json.
 *
 * What the files may ask for is checked before it is believed: an id, a merge or a step that makes no sense refuses the
 * file with a message, and so does any feature that this tokenizer does not have, for it would encode differently. */
#include "base/hash.h"
#include "base/json.h"
#include "text/bytelevel.h"
#include "text/tokenizer.h"
#include <errno.h>
#include <stdlib.h>

static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* A single_word token stands beside none of these (the \w of another library than the one that reads patterns). */
static const char word_pattern[] = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200C}\\x{200D}]";

/* ---- vocabulary ----------------------------------------------------------------------------------------------------- */

static int add_token(struct tokenizer *t, int64_t id, struct slice entry, uint32_t flags, struct error *e) {
        int r = id < 0 ? -ERANGE : vocab_add(&t->vocab, id > UINT32_MAX ? UINT32_MAX : (uint32_t)id, entry, flags);

        switch (r) {
        case -ERANGE:
                return error_set(e, -EINVAL, "token \"%.*s\" has the id %lld (ids are 0..%u)",
                    SLICE_ARG(slice_sub(entry, 0, 64)), (long long)id, VOCAB_IDS_MAX - 1);
        case -EEXIST:
                return error_set(e, -EINVAL, "token \"%.*s\" or its id %lld is there twice",
                    SLICE_ARG(slice_sub(entry, 0, 64)), (long long)id);
        default:
                return r;
        }
}

static int read_vocab(struct tokenizer *t, yyjson_val *vocab, struct error *e) {
        yyjson_obj_iter iter;
        yyjson_val *key;

        if (!yyjson_is_obj(vocab) || yyjson_obj_size(vocab) == 0)
                return error_set(e, -EINVAL, "model.vocab is not an object with entries");
        yyjson_obj_iter_init(vocab, &iter);
        while ((key = yyjson_obj_iter_next(&iter))) {
                int64_t id;
                int r;

                if (json_to_i64(yyjson_obj_iter_get_val(key), &id) < 0)
                        return error_set(e, -EINVAL, "the id of \"%.*s\" in model.vocab is not an integer",
                            SLICE_ARG(slice_sub(json_slice(key), 0, 64)));
                r = add_token(t, id, json_slice(key), 0, e);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* "left right" or ["left", "right"]. */
static bool merge_parts(yyjson_val *v, struct slice *ret_left, struct slice *ret_right) {
        if (yyjson_is_arr(v) && yyjson_arr_size(v) == 2) {
                *ret_left = json_slice(yyjson_arr_get_first(v));
                *ret_right = json_slice(yyjson_arr_get_last(v));
        } else {
                struct slice rest = json_slice(v);

                slice_split(&rest, ' ', ret_left);
                *ret_right = rest;
        }
        return ret_left->len > 0 && ret_right->len > 0;
}

static int read_merges(struct tokenizer *t, yyjson_val *merges, struct error *e) {
        yyjson_arr_iter iter;
        yyjson_val *v;
        struct buf scratch = {0};
        uint32_t rank = 0;
        int r = 0;

        yyjson_arr_iter_init(merges, &iter);
        for (; r == 0 && (v = yyjson_arr_iter_next(&iter)); rank++) {
                struct slice left, right;
                ptrdiff_t left_bytes, right_bytes;
                char *to;

                if (!merge_parts(v, &left, &right)) {
                        r = error_set(e, -EINVAL, "model.merges[%u] is not a pair", rank);
                        break;
                }
                buf_reset(&scratch);
                to = buf_reserve(&scratch, left.len + right.len);
                if (!to) {
                        r = -ENOMEM;
                        break;
                }
                left_bytes = bytelevel_bytes(left, to);
                right_bytes = bytelevel_bytes(right, to + left.len);
                if (left_bytes < 0 || right_bytes < 0)
                        r = -ENOENT;
                else
                        r = bpe_add_merge(&t->bpe, slice_of(to, (size_t)left_bytes),
                            slice_of(to + left.len, (size_t)right_bytes), rank);
                if (r == -ENOENT)
                        r = error_set(e, -EINVAL,
                            "model.merges[%u] joins what is not in model.vocab: \"%.*s\" \"%.*s\"", rank,
                            SLICE_ARG(slice_sub(left, 0, 64)), SLICE_ARG(slice_sub(right, 0, 64)));
        }
        buf_free(&scratch);
        return r;
}

/* ---- added tokens --------------------------------------------------------------------------------------------------- */

/* The model's own token of this text, which may be one of bytes. */
static int64_t find_entry(const struct tokenizer *t, struct slice entry) {
        char bytes[ADDED_BYTES_MAX];
        int64_t id = vocab_find(&t->vocab, entry, VOCAB_NAME);
        ptrdiff_t n;

        if (id >= 0)
                return id;
        n = bytelevel_bytes(entry, bytes);
        return n < 0 ? -1 : vocab_find(&t->vocab, slice_of(bytes, (size_t)n), VOCAB_BYTES);
}

static int read_added_token(struct tokenizer *t, yyjson_val *v, struct error *e) {
        struct slice text = json_get_slice(v, "content");
        bool special = json_get_bool(v, "special", false);
        bool single_word = json_get_bool(v, "single_word", false);
        uint32_t flags = (json_get_bool(v, "lstrip", false) ? ADDED_LSTRIP : 0) |
                         (json_get_bool(v, "rstrip", false) ? ADDED_RSTRIP : 0) | (single_word ? ADDED_SINGLE_WORD : 0);
        int64_t id, known;
        int r;

        if (json_to_i64(json_get(v, "id"), &id) < 0 || text.len == 0)
                return error_set(e, -EINVAL, "an entry of added_tokens has no id or no content");
        if (text.len > ADDED_BYTES_MAX)
                return error_set(e, -EINVAL, "added token %lld has %zu bytes (at most %u)", (long long)id, text.len,
                    ADDED_BYTES_MAX);
        known = find_entry(t, text);
        if (known >= 0 && known != id)
                return error_set(e, -EINVAL, "added token \"%.*s\" has the ids %lld and %lld", SLICE_ARG(text),
                    (long long)known, (long long)id);
        /* One that the model has keeps its place there; any other is found by its name only. */
        r = add_token(t, id, text, (special ? TOKEN_SPECIAL : 0) | (known >= 0 ? 0 : TOKEN_IS_NAME), e);
        if (r == 0 && single_word && !t->word_character)
                r = split_compile(slice_str(word_pattern), &t->word_character, e);
        if (r < 0)
                return r;
        return added_add(json_get_bool(v, "normalized", !special) ? &t->normalized : &t->exact,
            vocab_entry(&t->vocab, (uint32_t)id), (uint32_t)id, flags);
}

static int read_added(struct tokenizer *t, yyjson_val *added, struct error *e) {
        yyjson_arr_iter iter;
        yyjson_val *v;
        int r = 0;

        yyjson_arr_iter_init(added, &iter);
        while (r == 0 && (v = yyjson_arr_iter_next(&iter)))
                r = read_added_token(t, v, e);
        return r;
}

/* The texts were still moving while tokens came in. */
static void finish_added(struct tokenizer *t, struct added_set *set) {
        for (size_t i = 0; i < set->count; i++)
                set->tokens[i].text = vocab_entry(&t->vocab, set->tokens[i].id);
        added_finish(set);
}

/* ---- model ---------------------------------------------------------------------------------------------------------- */

static bool is_set(yyjson_val *object, const char *key) {
        yyjson_val *v = json_get(object, key);

        return v && !yyjson_is_null(v) && !yyjson_is_false(v) && !(yyjson_is_str(v) && yyjson_get_len(v) == 0) &&
               !(yyjson_is_num(v) && yyjson_get_num(v) == 0);
}

/* With an entry for every byte that UTF-8 can have, there is nothing unknown to fall back from. */
static bool knows_all_bytes(const struct bpe *b) {
        for (unsigned i = 0; i < 256; i++)
                if (b->byte_ids[i] < 0 && i != 0xc0 && i != 0xc1 && i < 0xf5)
                        return false;
        return true;
}

static int read_model(struct tokenizer *t, yyjson_val *root, struct error *e) {
        static const char *const refused[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix"};
        yyjson_val *model = json_get(root, "model"), *merges = json_get(model, "merges");
        struct slice type = json_get_slice(model, "type");
        int r;

        if (!yyjson_is_obj(model))
                return error_set(e, -EINVAL, "has no model");
        if (type.len && !slice_is(type, "BPE"))
                return error_set(e, -EINVAL, "model type '%.*s' is not supported (BPE is)", SLICE_ARG(type));
        for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++)
                if (is_set(model, refused[i]))
                        return error_set(e, -EINVAL, "model.%s is not supported", refused[i]);
        if (!yyjson_is_arr(merges))
                return error_set(e, -EINVAL, "model.merges is not a list");
        r = read_vocab(t, json_get(model, "vocab"), e);
        if (r == 0)
                r = read_added(t, json_get(root, "added_tokens"), e);
        if (r == 0)
                r = bpe_init(&t->bpe, &t->vocab, yyjson_arr_size(merges));
        if (r == 0)
                r = read_merges(t, merges, e);
        if (r < 0)
                return r;
        if (!knows_all_bytes(&t->bpe) && (is_set(model, "byte_fallback") || is_set(model, "unk_token")))
                return error_set(
                    e, -EINVAL, "a model with unknown bytes and byte_fallback or unk_token is not supported");
        t->bpe.ignore_merges = json_get_bool(model, "ignore_merges", false);
        finish_added(t, &t->exact);
        finish_added(t, &t->normalized);
        return 0;
}

/* ---- pre-tokenizer -------------------------------------------------------------------------------------------------- */

static const struct {
        const char *name;
        enum split_behavior behavior;
} behaviors[] = {
    {"Isolated", SPLIT_ISOLATED},
    {"Removed", SPLIT_REMOVED},
    {"MergedWithPrevious", SPLIT_MERGED_WITH_PREVIOUS},
    {"MergedWithNext", SPLIT_MERGED_WITH_NEXT},
    {"Contiguous", SPLIT_CONTIGUOUS},
};

static int read_split(struct tokenizer *t, yyjson_val *v, struct error *e) {
        yyjson_val *pattern = json_get(v, "pattern");
        struct slice name = json_get_slice(v, "behavior");
        bool invert = json_get_bool(v, "invert", false);
        size_t i = 0;

        while (i < sizeof(behaviors) / sizeof(*behaviors) && !slice_is(name, behaviors[i].name))
                i++;
        if (i == sizeof(behaviors) / sizeof(*behaviors))
                return error_set(e, -EINVAL, "Split has the unknown behavior '%.*s'", SLICE_ARG(name));
        if (yyjson_is_str(json_get(pattern, "Regex")))
                return splitter_add_regex(
                    &t->splitter, json_get_slice(pattern, "Regex"), behaviors[i].behavior, invert, e);
        if (yyjson_is_str(json_get(pattern, "String")))
                return splitter_add_string(
                    &t->splitter, json_get_slice(pattern, "String"), behaviors[i].behavior, invert, e);
        return error_set(e, -EINVAL, "Split has neither a Regex nor a String");
}

static int read_digits(struct tokenizer *t, yyjson_val *v, struct error *e) {
        return splitter_add_regex(&t->splitter, SLICE_LIT("\\p{N}"),
            json_get_bool(v, "individual_digits", false) ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, false, e);
}

static int read_byte_level(struct tokenizer *t, yyjson_val *v, struct error *e) {
        int r = 0;

        if (json_get_bool(v, "add_prefix_space", true))
                r = splitter_add_prefix_space(&t->splitter, e);
        if (r == 0 && json_get_bool(v, "use_regex", true))
                r = splitter_add_regex(&t->splitter, slice_str(gpt2_pattern), SPLIT_ISOLATED, false, e);
        return r;
}

/* *done: ByteLevel was there; what comes after it would see its characters instead of the text. */
static int read_step(struct tokenizer *t, yyjson_val *v, bool *done, struct error *e) {
        struct slice type = json_get_slice(v, "type");
        yyjson_arr_iter iter;
        yyjson_val *inner;
        int r = 0;

        if (slice_is(type, "Sequence")) {
                /* The file's depth is limited, and so is this recursion. */
                yyjson_arr_iter_init(json_get(v, "pretokenizers"), &iter);
                while (r == 0 && (inner = yyjson_arr_iter_next(&iter)))
                        r = read_step(t, inner, done, e);
                return r;
        }
        if (*done)
                return error_set(e, -EINVAL, "pre_tokenizer has a step after ByteLevel, which is not supported");
        if (slice_is(type, "Split"))
                return read_split(t, v, e);
        if (slice_is(type, "Digits"))
                return read_digits(t, v, e);
        if (slice_is(type, "ByteLevel")) {
                *done = true;
                return read_byte_level(t, v, e);
        }
        return error_set(e, -EINVAL,
            "pre_tokenizer '%.*s' is not supported (Split, Digits, ByteLevel and Sequence are)",
            SLICE_ARG(slice_sub(type, 0, 64)));
}

static int read_pre_tokenizer(struct tokenizer *t, yyjson_val *root, struct error *e) {
        bool done = false;
        int r = read_step(t, json_get(root, "pre_tokenizer"), &done, e);

        if (r == 0 && !done)
                return error_set(e, -EINVAL, "pre_tokenizer has no ByteLevel: not a byte-level vocabulary");
        return r;
}

/* Nothing, or a Sequence of nothing but `type` (NULL: of nothing at all). */
static bool is_only(yyjson_val *v, const char *type, const char *list) {
        yyjson_arr_iter iter;
        yyjson_val *inner;

        if (!v || yyjson_is_null(v))
                return true;
        if (type && slice_is(json_get_slice(v, "type"), type))
                return true;
        if (!slice_is(json_get_slice(v, "type"), "Sequence"))
                return false;
        yyjson_arr_iter_init(json_get(v, list), &iter);
        while ((inner = yyjson_arr_iter_next(&iter)))
                if (!is_only(inner, type, list))
                        return false;
        return true;
}

static int check_surroundings(yyjson_val *root, struct error *e) {
        if (!is_only(json_get(root, "normalizer"), NULL, "normalizers"))
                return error_set(e, -EINVAL, "normalizer '%.*s' is not supported (none is)",
                    SLICE_ARG(json_get_slice(json_get(root, "normalizer"), "type")));
        if (!is_only(json_get(root, "decoder"), "ByteLevel", "decoders"))
                return error_set(e, -EINVAL, "decoder '%.*s' is not supported (ByteLevel is)",
                    SLICE_ARG(json_get_slice(json_get(root, "decoder"), "type")));
        return 0;
}

/* ---- special tokens around a text ----------------------------------------------------------------------------------- */

static int add_affix(struct affix *a, const struct tokenizer *t, struct slice token, struct error *e) {
        int64_t id = tokenizer_find(t, token);

        if (id < 0)
                return error_set(
                    e, -EINVAL, "post_processor names the unknown token \"%.*s\"", SLICE_ARG(slice_sub(token, 0, 64)));
        if (a->count == TOKENIZER_AFFIX_MAX)
                return error_set(
                    e, -EINVAL, "post_processor puts more than %u tokens beside a text", TOKENIZER_AFFIX_MAX);
        a->ids[a->count++] = (uint32_t)id;
        return 0;
}

/* TemplateProcessing.single: special tokens, the text, special tokens. */
static int read_template(struct tokenizer *t, yyjson_val *single, struct error *e) {
        yyjson_arr_iter iter;
        yyjson_val *v;
        bool behind = false;
        int r = 0;

        yyjson_arr_iter_init(single, &iter);
        while (r == 0 && (v = yyjson_arr_iter_next(&iter))) {
                if (json_get(v, "Sequence"))
                        behind = true;
                else
                        r = add_affix(
                            behind ? &t->suffix : &t->prefix, t, json_get_slice(json_get(v, "SpecialToken"), "id"), e);
        }
        return r;
}

static int read_post_processor(struct tokenizer *t, yyjson_val *v, struct error *e) {
        struct slice type = json_get_slice(v, "type");
        yyjson_arr_iter iter;
        yyjson_val *inner;
        int r = 0;

        if (!v || yyjson_is_null(v) || slice_is(type, "ByteLevel"))
                return 0;
        if (slice_is(type, "TemplateProcessing"))
                return read_template(t, json_get(v, "single"), e);
        if (!slice_is(type, "Sequence"))
                return error_set(e, -EINVAL,
                    "post_processor '%.*s' is not supported (ByteLevel, TemplateProcessing and Sequence are)",
                    SLICE_ARG(slice_sub(type, 0, 64)));
        yyjson_arr_iter_init(json_get(v, "processors"), &iter);
        while (r == 0 && (inner = yyjson_arr_iter_next(&iter)))
                r = read_post_processor(t, inner, e);
        return r;
}

/* A token of tokenizer_config.json: its text, or an object around it. */
static int named_token(
    const struct tokenizer *t, yyjson_val *config, const char *key, int64_t *ret_id, struct error *e) {
        yyjson_val *v = json_get(config, key);
        struct slice text = yyjson_is_obj(v) ? json_get_slice(v, "content") : json_slice(v);

        *ret_id = -1;
        if (text.len == 0)
                return 0;
        *ret_id = tokenizer_find(t, text);
        return *ret_id >= 0 ? 0
                            : error_set(e, -EINVAL,
                                  "tokenizer_config.json has the %s \"%.*s\", which tokenizer.json does not know", key,
                                  SLICE_ARG(slice_sub(text, 0, 64)));
}

/* add_bos_token and add_eos_token. The Llama classes go by them (BOS by default) whatever the post-processor says; others
 * only where the post-processor adds nothing. */
static int read_config(struct tokenizer *t, yyjson_val *config, struct error *e) {
        bool llama = slice_starts(json_get_slice(config, "tokenizer_class"), SLICE_LIT("Llama"));
        bool template = t->prefix.count || t->suffix.count;
        int r = named_token(t, config, "bos_token", &t->bos, e);

        if (r == 0)
                r = named_token(t, config, "eos_token", &t->eos, e);
        if (r < 0 || (template && !llama))
                return r;
        t->prefix.count = t->suffix.count = 0;
        if (t->bos >= 0 && json_get_bool(config, "add_bos_token", llama))
                t->prefix.ids[t->prefix.count++] = (uint32_t)t->bos;
        if (t->eos >= 0 && json_get_bool(config, "add_eos_token", false))
                t->suffix.ids[t->suffix.count++] = (uint32_t)t->eos;
        return 0;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------ */

static int build(yyjson_val *root, yyjson_val *config, struct tokenizer **ret_tokenizer, struct error *e) {
        struct tokenizer *t = calloc(1, sizeof(*t));
        int r;

        if (!t)
                return -ENOMEM;
        t->bos = t->eos = -1;
        t->vocab.seed = hash_seed();
        r = check_surroundings(root, e);
        if (r == 0)
                r = read_pre_tokenizer(t, root, e);
        if (r == 0)
                r = read_model(t, root, e);
        if (r == 0)
                r = read_post_processor(t, json_get(root, "post_processor"), e);
        if (r == 0)
                r = read_config(t, config, e);
        if (r < 0) {
                tokenizer_free(t);
                return r == -ENOMEM ? error_set(e, r, "out of memory") : r;
        }
        *ret_tokenizer = t;
        return 0;
}

int tokenizer_parse(struct slice json, struct slice config, struct tokenizer **ret_tokenizer, struct error *e) {
        yyjson_doc *doc = NULL, *config_doc = NULL;
        int r = json_parse(json, &doc, e);

        if (r == 0 && config.len)
                r = json_parse(config, &config_doc, e);
        if (r == 0)
                r = build(yyjson_doc_get_root(doc), yyjson_doc_get_root(config_doc), ret_tokenizer, e);
        yyjson_doc_free(doc);
        yyjson_doc_free(config_doc);
        return r == -E2BIG ? -EINVAL : r;
}

int tokenizer_load(const char *dir, struct tokenizer **ret_tokenizer, struct error *e) {
        struct arena arena = {0};
        const char *path = arena_printf(&arena, "%s/tokenizer.json", dir);
        const char *config_path = arena_printf(&arena, "%s/tokenizer_config.json", dir);
        yyjson_doc *doc = NULL, *config = NULL;
        int r;

        if (!path || !config_path) {
                r = error_set(e, -ENOMEM, "out of memory");
                goto out;
        }
        r = json_parse_file(path, TOKENIZER_FILE_MAX, &doc, e);
        if (r < 0)
                goto out;
        /* A tokenizer without a config is whole: it just has no BOS, EOS and chat template. */
        r = json_parse_file(config_path, TOKENIZER_CONFIG_MAX, &config, e);
        if (r < 0 && r != -ENOENT)
                goto out;
        r = build(yyjson_doc_get_root(doc), yyjson_doc_get_root(config), ret_tokenizer, e);
        if (r < 0)
                error_prefix(e, r, "%s", path);
out:
        yyjson_doc_free(doc);
        yyjson_doc_free(config);
        arena_free(&arena);
        return r == -E2BIG || r == -EFBIG ? -EINVAL : r;
}

void tokenizer_free(struct tokenizer *t) {
        if (!t)
                return;
        added_free(&t->exact);
        added_free(&t->normalized);
        pcre2_code_free(t->word_character);
        splitter_free(&t->splitter);
        bpe_free(&t->bpe);
        vocab_free(&t->vocab);
        free(t);
}
