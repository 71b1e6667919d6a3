/* tokenizer.h - what a tokenizer is made of, for the files of this room that load and use it. */
#pragma once
#include "text/added.h"
#include "text/bpe.h"
#include "text/split.h"
#include "text/text.h"

/* The largest known tokenizer.json has 33 MB. */
#define TOKENIZER_FILE_MAX (128u << 20)
/* tokenizer_config.json: the chat template is most of it, but some list every added token. */
#define TOKENIZER_CONFIG_MAX (8u << 20)
/* Ids that stand before or behind every text: one, in all that is known. */
#define TOKENIZER_AFFIX_MAX 8u

struct affix {
        uint32_t ids[TOKENIZER_AFFIX_MAX];
        unsigned count;
};

struct tokenizer {
        struct vocab vocab;
        struct bpe bpe;
        struct splitter splitter;
        /* Found in the text as it is, before those found in what is left of it: the order of the reference tokenizer. */
        struct added_set exact, normalized;
        pcre2_code *word_character; /* NULL unless a token asks to stand alone */
        struct affix prefix, suffix;
        int64_t bos, eos;
};

/* As tokenizer_load() from memory; `config` may be empty. */
int tokenizer_parse(struct slice json, struct slice config, struct tokenizer **ret_tokenizer, struct error *e);
