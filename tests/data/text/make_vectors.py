#!/usr/bin/env python3
"""Write split.jsonl and bpe.jsonl from the `tokenizers` library (PyPI, 0.23): what its pre-tokenizers cut, and what small
made-up tokenizers encode. Run by hand when a kind of vector is added; the tests read only its output.

    python3 -m venv /tmp/v && /tmp/v/bin/pip install tokenizers && /tmp/v/bin/python make_vectors.py
"""
import json
import os
import random

from tokenizers import Tokenizer

random.seed(20)
here = os.path.dirname(os.path.abspath(__file__))


def alphabet():
    """GPT-2's byte -> character table."""
    shown = [b for b in range(256) if 0x21 <= b <= 0x7E or 0xA1 <= b <= 0xAC or 0xAE <= b]
    table = {b: chr(b) for b in shown}
    for n, b in enumerate(b for b in range(256) if b not in table):
        table[b] = chr(256 + n)
    return table


CHARS = alphabet()
BYTES = {c: b for b, c in CHARS.items()}


def spell(text):
    return "".join(CHARS[b] for b in text.encode())


def tokenizer(pre, vocab, merges, added=(), **model):
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": list(added), "normalizer": None,
        "pre_tokenizer": pre, "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True,
        "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab, "merges": merges, **model},
    }


PLAIN = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
TEXTS = ["", "a", " ", "ab12cd", "12ab34", "--a--", "a--b---c", "---", "a-b-", "-a-b", "x  y", "  x ", "1 22 333",
         "Hello, world! It's 2024.\n\n  We'll see\t\ttabs \r\n", "中文123かな, é\u0301 ½²Ⅷ", "\u00a0a\u2003b\u180ec",
         "I'M HERE'S", " 'tis '", "a\nb\n\nc\n", "don't 'don't'", "😀👩\u200d👩 x", "_a_b__", "aaa", "abcabc", "a.b..c"]


def split_vectors():
    pres = []
    for behavior in ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]:
        for invert in [False, True]:
            for pattern in [{"Regex": "-"}, {"Regex": r"\p{N}+"}, {"Regex": r"\s"}, {"Regex": "x*"}, {"String": "-"},
                            {"String": "."}, {"Regex": r"\w+|[^\w\s]+"}, {"Regex": "^.|b$"}, {"Regex": r"(?<=a)b|(?i:C)"}]:
                pres.append([{"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}])
    for individual in [False, True]:
        pres.append([{"type": "Digits", "individual_digits": individual}])
    for pattern in [r"\s+$", r"\S+\s*", r"\d+|\D", r"[\w']+", r"[^\s\d]+", r"[[:alpha:]]+", r"[^[:punct:]x]+", r"[[:alnum:][:space:]]", r"[[:upper:][:digit:]]|[[:lower:]]+", r"[\u4e00-\u9fff]+", r"\W+",
                    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
                    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
                    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"]:
        pres.append([{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}])
    pres.append([{"type": "Split", "pattern": {"Regex": "-"}, "behavior": "Removed", "invert": False},
                 {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}]}])
    with open(f"{here}/split.jsonl", "w") as out:
        for steps in pres:
            for last in [PLAIN]:
                write_split(out, {"type": "Sequence", "pretokenizers": steps + [last]})
        for prefix in [False, True]:
            for regex in [False, True]:
                write_split(out, {**PLAIN, "add_prefix_space": prefix, "use_regex": regex})
        write_split(out, {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": False},
                          {**PLAIN, "add_prefix_space": True, "use_regex": True}]})


def write_split(out, pre):
    t = Tokenizer.from_str(json.dumps(tokenizer(pre, {CHARS[b]: b for b in range(256)}, [])))
    cuts = []
    for text in TEXTS:
        pieces = [bytes(BYTES[c] for c in p).decode() for p, _ in t.pre_tokenizer.pre_tokenize_str(text)] if text else []
        cuts.append([text, [p for p in pieces if p]])
    out.write(json.dumps({"pre_tokenizer": pre, "cuts": cuts}, ensure_ascii=False) + "\n")


def random_merges(letters, count):
    vocab, parts, merges = {}, list(letters), []
    for c in letters:
        vocab[c] = len(vocab)
    while len(merges) < count:
        a, b = random.choice(parts), random.choice(parts)
        if [a, b] in merges or len(a + b) > 9:
            continue
        merges.append([a, b])
        if a + b not in vocab:
            vocab[a + b] = len(vocab)
            parts.append(a + b)
    return vocab, merges


def added(i, content, **flags):
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": False, **flags}


def case(out, name, json_tokenizer, texts, decode=()):
    t = Tokenizer.from_str(json.dumps(json_tokenizer))
    rows = []
    for text in texts:
        ids = t.encode(text, add_special_tokens=False).ids
        rows.append({"text": text, "ids": ids, "decoded": t.decode(ids, skip_special_tokens=False),
                     "decoded_skip_special": t.decode(ids, skip_special_tokens=True)})
    for ids in decode:
        rows.append({"ids": ids, "decoded": t.decode(ids, skip_special_tokens=False),
                     "decoded_skip_special": t.decode(ids, skip_special_tokens=True)})
    out.write(json.dumps({"name": name, "tokenizer": json_tokenizer, "cases": rows}, ensure_ascii=False) + "\n")


def bpe_vectors():
    with open(f"{here}/bpe.jsonl", "w") as out:
        for n in range(12):
            letters = "abcd"[: 2 + n % 3]
            vocab, merges = random_merges(letters, 6 + 3 * n)
            if n % 2:
                merges = [" ".join(m) for m in merges]
            texts = ["".join(random.choice(letters) for _ in range(random.choice([1, 2, 3, 5, 9, 30, 47, 48, 49, 120])))
                     for _ in range(20)] + ["a" * k for k in range(1, 60, 7)] + ["a?b" * 3]
            case(out, f"merges {n}", tokenizer(PLAIN, vocab, merges, ignore_merges=n % 4 == 3), texts)
        vocab = {CHARS[b]: b for b in range(256)}
        vocab.update({"ab": 256, "abc": 257, "bc": 258, spell(" x"): 259})
        merges = [["b", "c"], ["a", "bc"], ["a", "b"]]
        texts = ["abc", "ab", "xabcx", " x", "é中😀"]
        case(out, "a later pair", tokenizer(PLAIN, vocab, merges), texts)
        case(out, "the same pair twice", tokenizer(PLAIN, vocab, merges + [["b", "c"]]), texts)
        case(out, "entries without merges", tokenizer(PLAIN, vocab, []), texts)
        case(out, "entries win over merges", tokenizer(PLAIN, vocab, [], ignore_merges=True), texts)

        tokens = [added(260, "<a>"), added(261, "<ab>"), added(262, "<a", special=True), added(263, "word", single_word=True),
                  added(264, "[L]", lstrip=True), added(265, "[R]", rstrip=True), added(266, "[B]", lstrip=True, rstrip=True),
                  added(267, "norm", normalized=True), added(268, "normal", normalized=True), added(269, "|X|"),
                  added(270, "mal|X"), added(271, "中文"), added(272, "éé", special=True), added(273, "Ġq"),
                  added(274, "solo", single_word=True, normalized=True, lstrip=True)]
        texts = ["<a>", "<ab>", "<a", "<a<ab><a>>", "x<ab>y", "word", "a word here", "words", "sword", "word_", "_word",
                 "wordword", "éword", "word中", "-word-", "x  [L]  y", "x  [R]  y", "x  [B]  y", "[L]", "  [L]", "[R]  ",
                 "[R] [L]", "[B] [B]", " \u3000[B]\u2003 ", "norm", "normal", "normal|X|", "norm|X|al", "no中文rm", "éé", "Ġq q",
                 " solo ", "a solo", "solos", "a  solo.", "[R]  solo", "xbx", "\u200dword", "word\u200d", "word٣", "a\u0301word"]
        case(out, "added tokens", tokenizer(PLAIN, vocab, merges, tokens), texts,
             decode=[[272, 65, 273], [0xE4, 272, 0xB8, 0xAD], [999, 65], [0xF0, 0x9F], [0xF0, 0x9F, 260, 0x98, 0x80],
                     [0xED, 0xA0, 0x80], [0xC0, 0x80], [0xF4, 0x90, 0x80, 0x80], [0xE2, 0x82, 0x41], [0xFF, 0xFE]])
        gpt2 = {**PLAIN, "use_regex": True, "add_prefix_space": True}
        case(out, "prefix space beside added tokens", tokenizer(gpt2, vocab, merges, tokens), ["x<ab>y z", " x<ab> y", "<ab>", "a word b"])
        holes = {CHARS[b]: b for b in range(256) if b not in (0x62, 0xE4)}
        case(out, "bytes without an entry", tokenizer(PLAIN, {**holes, "ac": 400}, [["a", "c"]]), ["abc", "b", "中", "xbby", "abac" * 20])


split_vectors()
bpe_vectors()
