"""What a real vLLM was asked, `baton serve` is asked too: status, headers that matter, members, their order and types, and the
order of events must be the same (tests/data/vllm-http; the texts differ, it is another model). What differs on purpose is
named here with its reason, and told to users in docs/vllm-differences.md."""
import json
import os
import re

from harness import ROOT, Connection, Serve, TestCase

# Served there, refused here: constrained decoding and beam search do not exist here.
REFUSED = {"chat-response-format-json", "chat-structured-choice", "chat-structured-regex", "comp-response-format-json",
           "comp-beam"}
# Endpoints that are not here.
ABSENT = {"get-kv-event-sources", "err-responses-missing", "err-messages-missing", "generate", "render-chat",
          "render-completion"}
# The same refusal with other words.
OTHER_WORDS = {"chat-content-null", "chat-role-missing", "comp-response-format-bad"}
HEADERS = ["content-type", "allow", "vary", "location", "access-control-allow-origin", "access-control-allow-methods",
           "access-control-allow-headers", "access-control-max-age"]
# May differ with the model's choice of tokens.
BY_CHANCE = {"finish_reason", "stop_reason"}


def recorded(name):
    with open(os.path.join(ROOT, "tests", "data", "vllm-http", name + ".jsonl"), encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def body_of(x):
    """As it was sent; but this model would end some answers at once, where the recorded one went on."""
    body = x["body"]
    if x["status"] == 200 and "completions" in x["path"] and body.startswith("{") and "eos" not in x["name"]:
        body = '{"ignore_eos": true, ' + body[1:]
    return body.encode() if body or x["method"] == "POST" else None


def ask(port, x):
    headers = {k: v for k, v in x["headers"]}
    body = body_of(x)
    lines = [f"{x['method']} {x['path']} HTTP/1.1", "Host: engine", "Connection: close"]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{k}: {v}" for k, v in headers.items()]
    with Connection(port) as c:
        c.send("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))
        return c.response(head_only=x["method"] == "HEAD")


def kind(value):
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    return {int: "number", float: "number", str: "text"}.get(type(value), "?")


def shape(value, key=""):
    """Members in order with the types of their values; of lists of one kind, one item."""
    if isinstance(value, dict):
        if key in ("top_logprobs", "prompt_logprobs") or (value and all(k.isdigit() for k in value)):
            return {"*": shape(next(iter(value.values())))} if value else {}
        return {k: "any" if k in BY_CHANCE else shape(v, k) for k, v in value.items()}
    if isinstance(value, list):
        shapes = []
        for item in value:
            s = shape(item, key)
            if s not in shapes:
                shapes.append(s)
        return [json.dumps(s) for s in shapes] if key != "bytes" else "bytes"
    return kind(value)


def events(text):
    out = []
    for event in text.split("\n\n"):
        if event:
            assert event.startswith("data: "), event
            out.append(event[6:])
    return out


def stream_shape(text):
    """Shapes of the events in order, choice by choice; one for any number of equal ones, as another model makes another number
    of tokens, and as choices do not wait for each other."""
    out = {}
    for event in events(text):
        value = None if event == "[DONE]" else json.loads(event)
        choice = value["choices"][0]["index"] if value and value["choices"] else "end"
        s = json.dumps(shape(value)) if value else event
        if not out.get(choice) or out[choice][-1] != s:
            out.setdefault(choice, []).append(s)
    return out


def without_model(text):
    """Error messages without what is the model's own: the size of its vocabulary."""
    return re.sub(r"\b(512|1536)\b", "N", text)


class Recorded(TestCase):
    def compare(self, x, answer):
        name, text = x["name"], answer.body.decode()
        if name in REFUSED:
            self.assertEqual(answer.status, 400, text)
            self.assertIn("not", json.loads(text)["error"]["message"])
            return
        self.assertEqual(answer.status, x["status"], text)
        theirs = dict((k.lower(), v) for k, v in x["response_headers"])
        for header in HEADERS:
            if header == "content-type" and "metrics" in name:
                continue
            self.assertEqual(answer.header(header), theirs.get(header), f"{header} of {text[:200]}")
        if "x-request-id" in theirs and any(k.lower() == "x-request-id" for k, _ in x["headers"]):
            self.assertEqual(answer.header("x-request-id"), theirs["x-request-id"])
        elif "x-request-id" in theirs:
            self.assertRegex(answer.header("x-request-id"), "^[0-9a-f]{32}$")
        else:
            self.assertIsNone(answer.header("x-request-id"))
        if not x["response"]:
            self.assertEqual(text, "")
        elif x["response"].startswith("data: "):
            self.assertEqual(stream_shape(text), stream_shape(x["response"]))
        elif not x["response"].startswith("{"):
            self.assertEqual(text, x["response"])
        elif x["status"] >= 400 and name not in OTHER_WORDS:
            self.assertEqual(without_model(text), without_model(x["response"]))
        else:
            self.assertEqual(json.dumps(shape(json.loads(text))), json.dumps(shape(json.loads(x["response"]))))

    def replay(self, recording, *args):
        with Serve("--max-model-len", "512", "--max-num-seqs", "8", "--generation-config", "vllm", *args) as server:
            for x in recorded(recording):
                if x["name"] in ABSENT:
                    continue
                with self.subTest(exchange=x["name"]):
                    self.compare(x, ask(server.port, x))

    def test_plain_server_answers_as_recorded(self):
        self.replay("base", "--served-model-name", "tiny-v3")

    def test_server_with_flags_answers_as_recorded(self):
        self.replay("flags", "--served-model-name", "tiny-v3", "tiny-alias", "--api-key", "secret-1",
                    "--enable-prompt-tokens-details", "--enable-request-id-headers", "--enable-force-include-usage",
                    "--enable-server-load-tracking", "--allowed-origins", '["http://example.org"]')
