/* marks.h - the marks of DeepSeek's chat formats: printed into prompts, found in what models write (private to text/). */
#pragma once

#define MARK_USER          "<｜User｜>"
#define MARK_ASSISTANT     "<｜Assistant｜>"
#define MARK_EOS           "<｜end▁of▁sentence｜>"
#define MARK_CALLS_BEGIN   "<｜tool▁calls▁begin｜>"
#define MARK_CALLS_END     "<｜tool▁calls▁end｜>"
#define MARK_CALL_BEGIN    "<｜tool▁call▁begin｜>"
#define MARK_CALL_END      "<｜tool▁call▁end｜>"
#define MARK_SEPARATOR     "<｜tool▁sep｜>"
#define MARK_OUTPUTS_BEGIN "<｜tool▁outputs▁begin｜>"
#define MARK_OUTPUTS_END   "<｜tool▁outputs▁end｜>"
#define MARK_OUTPUT_BEGIN  "<｜tool▁output▁begin｜>"
#define MARK_OUTPUT_END    "<｜tool▁output▁end｜>"
#define MARK_THINK_BEGIN   "<think>"
#define MARK_THINK_END     "</think>"
/* Around the arguments of a call, in V3 and R1. */
#define MARK_FENCE_BEGIN "\n```json\n"
#define MARK_FENCE_END   "\n```"
