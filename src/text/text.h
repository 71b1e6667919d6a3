/* text.h - between people's text and the model's tokens: tokenizer, streaming detokenizer, chat formats, and the parsers
 * that find reasoning and tool calls in what the model wrote.
 *
 * A struct tokenizer and a struct chat_format never change after loading and may be used by several threads at once.
 * Everything read from files or requests is hostile until checked; limits stand beside what they limit. */
#pragma once
#include "base/arena.h"
#include "base/buf.h"
#include "base/error.h"
#include "openai/openai.h"

/* ---- tokenizer (tokenizer.json, byte-level BPE) ------------------------------------------------------------------- */

struct tokenizer;

/* Read DIR/tokenizer.json and, where it is there, DIR/tokenizer_config.json. -EINVAL (says what is wrong or not
 * supported), -ENOMEM, or why a file cannot be read (-ENOENT …). */
int tokenizer_load(const char *dir, struct tokenizer **ret_tokenizer, struct error *e);
void tokenizer_free(struct tokenizer *t);
uint32_t tokenizer_size(const struct tokenizer *t); /* highest known id + 1 */
/* Bytes of the longest token: a text of n bytes has at least n / this tokens, which refuses a text that is far too long
 * before any work is spent on it (not where an added token takes white space along; none of the released ones does). */
uint32_t tokenizer_longest(const struct tokenizer *t);
int64_t tokenizer_bos(const struct tokenizer *t); /* -1: none */
int64_t tokenizer_eos(const struct tokenizer *t);
bool tokenizer_is_special(const struct tokenizer *t, uint32_t id); /* dropped by skip_special_tokens */
/* The id of a token by its text (an added token, or a vocabulary entry's bytes), or -1. */
int64_t tokenizer_find(const struct tokenizer *t, struct slice token);
/* The bytes of a token; empty for ids without text. */
struct slice tokenizer_bytes(const struct tokenizer *t, uint32_t id);
/* The token as its vocabulary writes it ("Ġthe"), for /tokenize's token_strs. */
struct slice tokenizer_entry(const struct tokenizer *t, uint32_t id);

struct token_list {
        uint32_t *ids; /* in the arena given */
        size_t count;
};
/* Bytes. A million tokens of dense text are 5 MB; the worst text takes about 30 times its size while it is encoded. */
#define TOKENIZER_TEXT_MAX (16u << 20)

enum tokenize_mode {
        TOKENIZE_PLAIN,
        TOKENIZE_ADD_SPECIAL /* BOS in front (and EOS behind) where the tokenizer adds one */
};
/* Added tokens in the text are recognised. Invalid UTF-8 reads as U+FFFD. 0, -ENOMEM, -E2BIG (beyond TOKENIZER_TEXT_MAX,
 * or a pattern of the file would take too long on this text). */
int tokenizer_encode(const struct tokenizer *t, struct slice text, enum tokenize_mode mode, struct arena *arena,
    struct token_list *ret_list);
/* The text of ids; bytes that are no UTF-8 become U+FFFD. Errors are those of the buf. */
void tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t count, bool skip_special, struct buf *out);

/* Tokens one by one, text in whole characters: bytes of an unfinished character wait for the next token. */
struct detokenizer {
        const struct tokenizer *tokenizer;
        bool skip_special;
        unsigned held; /* bytes in hold */
        char hold[8];
};
void detokenizer_init(struct detokenizer *d, const struct tokenizer *t, bool skip_special);
void detokenizer_push(struct detokenizer *d, uint32_t id, struct buf *out);
void detokenizer_flush(struct detokenizer *d, struct buf *out); /* what is held becomes U+FFFD */

/* ---- chat formats --------------------------------------------------------------------------------------------------- */

enum chat_family {
        CHAT_NONE,
        CHAT_V2,
        CHAT_V3, /* also R1's first template */
        CHAT_R1,
        CHAT_V31,
        CHAT_ROLES, /* <|role|>text, as small test models have it */
};

/* How the system part lists the tools of a request. */
enum chat_tool_list {
        CHAT_TOOLS_UNSEEN, /* not at all: most released templates do not read `tools` */
        CHAT_TOOLS_SHORT,  /* as models/baton-tiny's template does */
        CHAT_TOOLS_CARD, /* the text that V3.1's model card gives; a template that lists them in other words gets it too */
};

/* What a template does; all of it is recognised by its text. */
struct chat_format {
        enum chat_family family;
        enum chat_tool_list tools;
        bool compact;               /* V3.1 as models/baton-tiny's template has it (chat.c says where it differs) */
        bool answers_anyone;        /* V3.1 Terminus: a generation prompt also where the last turn is no user's */
        bool reads_enable_thinking; /* V3.1: chat_template_kwargs.enable_thinking counts too */
        bool cuts_thinking;         /* V3: an earlier answer loses what stands before its last </think> */
        bool opens_think;           /* V3, R1: the generation prompt ends in <think> and a line feed */
};

/* Recognise the format by the template of the model in DIR (chat_template.jinja, else tokenizer_config.json). 0; -EINVAL:
 * there is no template, or it is none of ours (the caller may go on without chat); or why a file cannot be read. */
int chat_format_detect(const char *dir, struct chat_format *ret_format, struct error *e);
/* The same for one template by itself: a file, or its text where it has a '{' (as --chat-template takes it). */
int chat_format_named(const char *template, struct chat_format *ret_format, struct error *e);
/* The same for the text of a template; false: none of ours. */
bool chat_format_of(struct slice template, struct chat_format *ret_format);
/* A name as --chat-format takes it: "deepseek-v2", "deepseek-v3", "deepseek-r1", "deepseek-v3.1", and
 * "deepseek-v3.1-tools", which also lists the tools. -EINVAL with the nearest. */
int chat_format_parse(struct slice name, struct chat_format *ret_format, struct error *e);

/* Append the prompt, BOS included, exactly as the template prints it. Where a template would fail on a message without
 * content or a tool without a description, nothing is printed for it. -EINVAL with a text: a final message to be continued
 * that the template does not print; -ENOMEM. `out` is undefined then. */
int chat_render(const struct chat_format *f, const struct tokenizer *t, const struct openai_request *r, struct buf *out,
    struct error *e);

/* What a rendered prompt says about reasoning, for output_parser_options. */
enum chat_reasoning { CHAT_REASONING_UNSAID, CHAT_REASONING_OPEN /* ends in <think> */, CHAT_REASONING_CLOSED };
enum chat_reasoning chat_prompt_reasoning(struct slice prompt);

/* ---- reasoning and tool calls --------------------------------------------------------------------------------------- */

enum reasoning_parser { REASONING_NONE, REASONING_DEEPSEEK_R1, REASONING_DEEPSEEK_V3 };
enum tool_parser { TOOLS_NONE, TOOLS_DEEPSEEK_V3, TOOLS_DEEPSEEK_V31 };
int reasoning_parser_parse(struct slice name, enum reasoning_parser *ret_parser, struct error *e);
int tool_parser_parse(struct slice name, enum tool_parser *ret_parser, struct error *e);

/* Splits generated text, fed in pieces of any cut, into reasoning, content and tool calls. Text that may be the start of
 * a marker is held back until it is known; whatever the cut, the pieces of a part add up to the same text. One per choice.
 *
 * Reasoning: REASONING_DEEPSEEK_R1 takes everything up to the first </think> for reasoning (a <think> in front is
 * dropped) unless the prompt closed it; REASONING_DEEPSEEK_V3 does so when thinking, else all is content.
 * Tools: a call is given out when its name is complete, its arguments then as they come. What begins like a call and is
 * none is content, markers included. Text behind the calls is content again. */
struct output_parser;

enum output_part {
        OUTPUT_REASONING,
        OUTPUT_CONTENT,
        OUTPUT_TOOL_NAME,      /* a new call begins: text is its name */
        OUTPUT_TOOL_ARGUMENTS, /* a fragment of the current call's arguments */
};
struct output_piece {
        enum output_part part;
        unsigned tool_index;
        struct slice text; /* valid until the next call on this parser */
};
struct output_parser_options {
        enum reasoning_parser reasoning;
        enum tool_parser tools;     /* TOOLS_NONE unless the request has tools and tool_choice is not "none" */
        enum chat_reasoning prompt; /* of chat_prompt_reasoning() */
        bool thinking;              /* chat_template_kwargs, for REASONING_DEEPSEEK_V3 */
};
struct output_parser *output_parser_new(const struct output_parser_options *options); /* NULL: memory */
void output_parser_free(struct output_parser *p);
/* Feed text, then take pieces until it returns 0. `last`: no more text comes, everything held is given out (a broken
 * tool call as content). output_parser_feed: 0 or -ENOMEM; output_parser_next: 1 with a piece, 0. */
int output_parser_feed(struct output_parser *p, struct slice text, bool last);
int output_parser_next(struct output_parser *p, struct output_piece *ret_piece);
