"""Every exchange recorded from a real vLLM 0.32 (tests/data/vllm-http), made with `baton serve`: same status, same content
type, same members of the same kinds in the same order of events. Texts differ: the models do. docs/vllm-differences.md has
the differences and their reasons; DIFFERENT below lists their names here."""
import json
import os

from harness import ROOT, Connection, Serve, TestCase

# Exchanges that differ on purpose; the reasons are in docs/vllm-differences.md.
DIFFERENT = {
    # constrained decoding is refused instead of done
    "chat-response-format-json", "chat-structured-choice", "chat-structured-regex", "chat-structured-two", "comp-response-format-json",
    "comp-response-format-bad", "chat-guided-old",
    # endpoints of vLLM that this engine does not have: 404
    "generate", "render-chat", "render-completion", "get-kv-event-sources", "err-messages-missing", "err-responses-missing",
    # CORS is not spoken
    "err-options-cors", "get-cors-origin",
    # the vocabulary and template of the recorded model are its own
    "chat-role-unknown", "comp-logprobs-negative", "chat-echo-stream",
    # NaN is no JSON
    "err-json-nan",
    # beam search
    "comp-beam",
}
# The number of pydantic's errors for unions is not imitated: status, type and code are.
LOOSE_PARAM = {"chat-content-null", "chat-role-missing", "comp-ids-float", "comp-ids-negative", "comp-prompt-mixed", "comp-prompt-number",
               "comp-prompt-object", "err-bad-json", "err-chat-bad-json", "err-two-wrong", "err-json-trailing"}
# Members whose kind depends on the text that the model happens to write.
BY_TEXT = {"content", "reasoning", "stop_reason", "finish_reason", "text", "message", "detail"}


def kind(v):
    if isinstance(v, bool):
        return "bool"
    if isinstance(v, (int, float)):
        return "number"
    return type(v).__name__


def differences(ours, theirs, path=""):
    if isinstance(theirs, dict) and isinstance(ours, dict):
        if path.endswith(("top_logprobs", "]")) and ("prompt_logprobs" in path or "top_logprobs" in path):
            return  # keyed by tokens
        if list(ours) != list(theirs):
            yield f"{path}: members {list(ours)}, recorded {list(theirs)}"
            return
        for key in theirs:
            if key not in BY_TEXT or key == "message" and isinstance(theirs[key], dict):
                yield from differences(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(theirs, list) and isinstance(ours, list):
        if bool(theirs) != bool(ours):
            yield f"{path}: {'empty' if not ours else 'filled'} list"
        elif theirs and kind(theirs[0]) == kind(ours[0]):
            yield from differences(ours[-1], theirs[-1], path + "[]")
    elif kind(ours) != kind(theirs):
        yield f"{path}: {kind(ours)}, recorded {kind(theirs)}"


def events(body):
    return [e[6:] for e in body.split("\n\n") if e.startswith("data: ")]


def shape(event):
    """What a chunk is: its members and its choices' members, without the text."""
    data = json.loads(event)
    choice = data["choices"][0] if data.get("choices") else None
    return (list(data), list(choice) if choice else None, bool(choice and choice.get("finish_reason")))


class Recorded(TestCase):
    def setUp(self):
        self.engine = Serve("--served-model-name", "tiny-v3", "--max-model-len", "512", "--max-num-seqs", "8", "--threads", "1",
                            "--kv-cache-blocks", "64", "--generation-config", "vllm")
        self.addCleanup(self.engine.stop)

    def ask(self, request):
        with Connection(self.engine.port) as c:
            body = request.get("body")
            headers = {k: v for k, v in request["headers"]}
            lines = [f"{request['method']} {request['path']} HTTP/1.1", "Host: engine"] + [f"{k}: {v}" for k, v in headers.items()]
            data = (body or "").encode()
            if body is not None or request["method"] == "POST":
                lines.append(f"Content-Length: {len(data)}")
            c.send("\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + data)
            return c.response(head_only=request["method"] == "HEAD")

    def compare(self, name, ours, theirs):
        if ours.status != int(theirs["status"]):
            return f"status {ours.status}, recorded {theirs['status']}: {ours.body[:300]!r}"
        recorded_type = dict((k.lower(), v) for k, v in theirs["headers"]).get("content-type")
        if recorded_type and (ours.header("content-type") or "").split(";")[0] != recorded_type.split(";")[0]:
            return f"content type {ours.header('content-type')}, recorded {recorded_type}"
        body = ours.body.decode("utf-8", "replace")
        if recorded_type and recorded_type.startswith("text/event-stream"):
            mine, real = events(body), events(theirs["body"])
            if mine[-1] != "[DONE]" or real[-1] != "[DONE]":
                return "no [DONE] at the end"
            # A model that ends at once has one event that is first and last: then only the last is compared.
            chunks = [e for e in mine[:-1] if json.loads(e)["choices"]]
            for where in (0, -2):
                if (where == -2 or not shape(chunks[0])[2]) and shape(mine[where]) != shape(real[where]):
                    return f"event {where}: {shape(mine[where])}, recorded {shape(real[where])}"
            return None
        if not recorded_type or "json" not in recorded_type or not theirs["body"]:
            return None
        mine, real = json.loads(body), json.loads(theirs["body"])
        found = list(differences(mine, real))
        if found:
            return "; ".join(found)
        if isinstance(real, dict) and isinstance(real.get("error"), dict):
            for key in ("type", "code") if name in LOOSE_PARAM else ("type", "code", "param"):
                if mine["error"][key] != real["error"][key]:
                    return f"error.{key} {mine['error'][key]!r}, recorded {real['error'][key]!r}"
        return None

    def test_answers_have_the_recorded_shape(self):
        wrong = []
        count = 0
        with open(os.path.join(ROOT, "tests", "data", "vllm-http", "base.jsonl"), encoding="utf-8") as f:
            for line in f:
                recorded = json.loads(line)
                if recorded["name"] in DIFFERENT:
                    continue
                count += 1
                real = {"status": recorded["status"], "headers": recorded["response_headers"], "body": recorded["response"]}
                problem = self.compare(recorded["name"], self.ask(recorded), real)
                if problem:
                    wrong.append(f"{recorded['name']}: {problem}")
        self.assertGreater(count, 150)
        self.assertEqual([], wrong, "\n" + "\n".join(wrong))
