#!/usr/bin/env python3
"""Write templates.jsonl and chat.jsonl: chat templates, and what transformers' own environment prints with them for messages
of every kind. Run by hand; the tests read only its output.

    python3 -m venv /tmp/v && /tmp/v/bin/pip install transformers jinja2 && /tmp/v/bin/python make_chat_vectors.py [COUNT SEED]
"""
import json
import os
import random
import sys

from transformers.utils.chat_template_utils import render_jinja_template

here = os.path.dirname(os.path.abspath(__file__))
root = os.path.abspath(f"{here}/../../..")


def config(name):
    return json.load(open(f"{here}/tokenizer/{name}.tokenizer_config.json"))["chat_template"]


def change(text, *pairs):
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


V3, R1, V31 = config("deepseek-v3"), config("deepseek-r1"), config("deepseek-v3.1")
CUT = "{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
# R1 began with V3's template and a cut; some months later its generation prompt opened the reasoning.
R1_FIRST = change(V3, ("{%- else %}{{'<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}",
                       "{%- else %}" + CUT + "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}"))
R1_SECOND = change(R1_FIRST, ("{{'<｜Assistant｜>'}}{% endif %}", "{{'<｜Assistant｜><think>\\n'}}{% endif %}"))
# What V3.1's later versions added to it.
TERMINUS = change(
    V31,
    ("is_last_user=false)", "is_last_user=false, is_only_sys=false, is_prefix=false)"),
    ("{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}",
     "{%- endif %}{% set ns.is_only_sys = true %}{%- endif %}{%- endfor %}{{ bos_token }}"),
    ("{%- if ns.is_last_user %}{{'<｜Assistant｜></think>'}}", "{%- if ns.is_last_user or ns.is_only_sys %}{{'<｜Assistant｜></think>'}}"),
    ("{%- set ns.is_last_user = false -%}{%- if ns.is_tool %}{{message['content']",
     "{%- if message['prefix'] is defined and message['prefix'] %}{%- set ns.is_prefix = true -%}{%- endif %}"
     "{%- set ns.is_last_user = false -%}{%- if ns.is_tool %}{{message['content']"),
    ("{%- endif %}{%- endfor -%}{%- if add_generation_prompt and ns.is_last_user and not ns.is_tool %}",
     "{%- endif %}{%- if message['role'] != 'system' %}{% set ns.is_only_sys = false %}{%- endif %}{%- endfor -%}"
     "{% if add_generation_prompt and not ns.is_tool%}{% if ns.is_last_user or ns.is_only_sys or not ns.is_prefix %}"),
    ("{{'<think>'}}{%- endif %}{% endif %}", "{{'<think>'}}{%- endif %}{% endif %}{% endif %}"))
# A user's change: enable_thinking does what thinking does.
ENABLE = change(V31, ("{% set thinking = false %}{% endif %}",
                      "{% set thinking = false %}{% endif %}{% if enable_thinking is defined and enable_thinking %}"
                      "{% set thinking = true %}{% endif %}"))

TEMPLATES = {
    "deepseek-v2": config("deepseek-v2"), "deepseek-v3": V3, "deepseek-r1": R1, "deepseek-v3.1": V31,
    "r1-first": R1_FIRST, "r1-second": R1_SECOND, "v3.1-terminus": TERMINUS, "v3.1-enable": ENABLE,
    "baton-tiny": json.load(open(f"{root}/models/baton-tiny/tokenizer_config.json"))["chat_template"],
    "roles": "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}"
             "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
}
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"

TEXTS = ["", "Hello!", " a ", "two\nlines\n", "<think>x</think>y", "a</think>b</think>c", "x</think>", "中文 😀", "<｜User｜>?",
         "</think>", "{\"a\": 1}", "<think>only"]
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "enum": ["Ö", "\"q\"", "a\\b", "tab\t"]}},
        "required": ["city"], "n": [1, -2, 0.5, 1e16, 1e-5, 123456789012345680.0, 1e22, 100.0, 0.0001, True, False, None]}}},
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {}}},
    {"type": "function", "function": {"name": "f", "description": "<b>&'\"", "parameters": {"type": "object", "properties": {}}}},
]
ARGUMENTS = ["{}", "{\"city\": \"Oslo\"}", "", "{\n  \"x\": [1, 2]\n}", "not json"]


def message(choose):
    role = choose.choice(["user"] * 5 + ["assistant"] * 5 + ["tool"] * 3 + ["system"] * 2 + ["developer"])
    m = {"role": role, "content": choose.choice(TEXTS)}
    if role == "assistant" and choose.random() < 0.45:
        if choose.random() < 0.6:
            m["content"] = None
        m["tool_calls"] = [{"id": f"call_{i}", "type": "function", "function": {
            "name": choose.choice(["get_weather", "now", "f"]), "arguments": choose.choice(ARGUMENTS)}}
            for i in range(choose.choice([1, 1, 2, 3]))]
    if role == "assistant" and choose.random() < 0.2:
        m["prefix"] = choose.random() < 0.8
    if role == "tool":
        m["tool_call_id"] = "call_0"
    return m


def request(choose):
    final = choose.random() < 0.2
    r = {"messages": [message(choose) for _ in range(choose.choice([1, 1, 2, 2, 3, 4, 5, 8]))],
         "add_generation_prompt": not final and choose.random() < 0.75, "continue_final_message": final}
    if choose.random() < 0.6:
        r["chat_template_kwargs"] = choose.choice([{"thinking": True}, {"thinking": False}, {"enable_thinking": True},
                                                   {"enable_thinking": False}, {"thinking": False, "enable_thinking": True}])
    if choose.random() < 0.3:
        r["tools"] = choose.sample(TOOLS, choose.choice([1, 2, 3]))
    return r


def render(name, r):
    bos, eos = (BOS, EOS) if name != "roles" else ("<bos>", "<eos>")
    prompts, _ = render_jinja_template(
        [r["messages"]], tools=r.get("tools"), chat_template=TEMPLATES[name],
        add_generation_prompt=r["add_generation_prompt"], continue_final_message=r["continue_final_message"],
        bos_token=bos, eos_token=eos, **r.get("chat_template_kwargs", {}))
    return prompts[0]


def vectors(count, seed):
    for name in TEMPLATES:
        choose = random.Random(seed)
        done = 0
        while done < count:
            r = request(choose)
            if name == "roles" and any(m["content"] is None for m in r["messages"]):
                continue  # would print the word None; vLLM makes it empty before the template sees it
            try:
                prompt = render(name, json.loads(json.dumps(r)))
            except Exception:  # the template cannot print this
                continue
            done += 1
            yield {"format": name, "request": r, "prompt": prompt}


if __name__ == "__main__":
    if len(sys.argv) > 2:
        for line in vectors(int(sys.argv[1]), int(sys.argv[2])):
            print(json.dumps(line, ensure_ascii=False))
        sys.exit()
    with open(f"{here}/templates.jsonl", "w") as out:
        for name, template in TEMPLATES.items():
            out.write(json.dumps({"name": name, "template": template}, ensure_ascii=False) + "\n")
    with open(f"{here}/chat.jsonl", "w") as out:
        for line in vectors(60, 3):
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
