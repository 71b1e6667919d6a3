/* tokens.h - the token ids of a prompt, as the engine will have them: what its KV events name blocks by.
 *
 * Ids stand in the body, or text is tokenised here, with the model's own tokenizer and chat format. Asking an engine
 * (/tokenize) would give the same at the price of a round trip before every prefill and of a second tokenisation in the
 * engine's API process, which is what runs out of time first there. */
#pragma once
#include "gateway/facts.h"
#include "text/text.h"

/* Text is looked at up to here: 64,000 tokens of prose, which take some milliseconds (docs/gateway.md). What lies behind is
 * not matched: whoever has the first 64,000 tokens has likely more. */
#define TOKENS_TEXT_MAX (256u << 10)

/* Loaded once, then never changed. */
struct tokens_reader {
        struct tokenizer *tokenizer; /* NULL: only ids are understood */
        struct chat_format chat;     /* CHAT_NONE: chat is not understood */
};
/* From the model's folder; `chat_format` names one that the folder's template is not known to be (NULL: the folder's). 0, or
 * -EINVAL, -ENOENT, … with a text. A model without a known chat template is fine: *ret_no_chat says why then. */
int tokens_reader_load(const char *dir, const char *chat_format, struct tokens_reader *ret_reader,
    struct error *ret_no_chat, struct error *e);
void tokens_reader_free(struct tokens_reader *r);

/* One of the body's prompts (as facts_prompt). The ids live in `arena`; *ret_whole: they are all of them. 0; -ENOTSUP: it cannot be known what the engine
 * makes of it (no tokenizer, a body that the engine will refuse, a prompt that is to be cut); -ENOMEM. */
int tokens_of_prompt(const struct tokens_reader *r, const struct facts *f, struct slice prompt, struct arena *arena,
    struct token_list *ret_list, bool *ret_whole);
