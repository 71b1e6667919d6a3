"""The small model's evaluation, answered by `baton serve`, gives the accuracies that the model's README states for every
task. Its figures come from transformers, so this is the whole chain at once: template, tokenizer, arithmetic, batching,
prefix cache, parsers."""
import json
import os
import re
import tempfile

from gateway_case import CHAT, in_threads
from harness import MODEL, Connection, Serve, TestCase, baton

FIRST = 60  # of each file: what the README's table is over
CLIENTS = 64
ANSWER_TOKENS = 256  # no right answer is longer; some wrong ones would never end
# How many answers may turn. None does in f32, whatever the instruction set; another order of sums may one day turn one whose
# two best words nearly tie. Small faults turn more: a YaRN factor of 3.9 for 4 three, a routed scaling of 2.4 for 2.5 ten.
TURNED_MAX = 2
# By how many right answers a quantised copy may differ: one standard deviation of what 1550 answers of 56 % are.
NOISE = 20


def stated():
    """The README's table: {(task, thinking): (right, asked)}."""
    table = {}
    with open(os.path.join(MODEL, "README.md"), encoding="utf-8") as f:
        for line in f:
            row = re.match(r"\| (\w+) \|[^|]+\|([^|]+)\|([^|]+)\|$", line)
            for thinking, cell in enumerate(row.groups()[1:] if row else ()):
                count = re.search(r"\((\d+)/(\d+)\)", cell)
                if count:
                    table[row.group(1), bool(thinking)] = int(count.group(1)), int(count.group(2))
    return table


def questions():
    folder = os.path.join(MODEL, "eval")
    for name in sorted(os.listdir(folder)):
        if name.endswith(".jsonl") and name != "greedy.jsonl":
            with open(os.path.join(folder, name), encoding="utf-8") as f:
                yield from (json.loads(line) for _, line in zip(range(FIRST), f))


def ask(connection, question):
    body = {"messages": question["messages"], "max_tokens": ANSWER_TOKENS,
            "chat_template_kwargs": {"thinking": question["thinking"]}}
    if "tools" in question:
        body["tools"] = question["tools"]
    connection.request("POST", CHAT, body)
    response = connection.response()
    if response.status != 200:
        raise AssertionError(f"{response.status} for {question}: {response.body!r}")
    return response.json()["choices"][0]["message"]


def as_written(message):
    """The text that the parser of tool calls read."""
    calls = "".join(f"<｜tool▁call▁begin｜>{c['function']['name']}<｜tool▁sep｜>{c['function']['arguments']}<｜tool▁call▁end｜>"
                    for c in message.get("tool_calls") or [])
    return (message["content"] or "") + (f"<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>" if calls else "")


def evaluate(*flags, model=MODEL):
    """{(task, thinking): (right, asked)} of a model folder under `baton serve`."""
    answered = []
    waiting = iter(list(questions()))

    def client(port):
        with Connection(port) as connection:
            for question in waiting:  # shared: each question goes to one client
                right = as_written(ask(connection, question)) == question["expected"]
                answered.append((question["task"], question["thinking"], right))

    with Serve("--enable-auto-tool-choice", "--tool-call-parser", "deepseek_v31", "--reasoning-parser", "deepseek_v3", *flags,
               model=model) as s:
        in_threads([lambda: client(s.port)] * CLIENTS)

    got = {}
    for task, thinking, right in answered:
        hits, asked = got.get((task, thinking), (0, 0))
        got[task, thinking] = hits + right, asked + 1
    return got


class Accuracy(TestCase):
    def test_every_task_is_answered_as_well_as_the_readme_says(self):
        want, got = stated(), evaluate()

        self.assertEqual({k: asked for k, (_, asked) in want.items()}, {k: asked for k, (_, asked) in got.items()})
        off = {k: (got[k][0], right) for k, (right, _) in want.items() if got[k][0] != right}
        self.assertLessEqual(sum(abs(a - b) for a, b in off.values()), TURNED_MAX,
                             f"{{(task, thinking): (right answers, those stated)}}: {off}")


class QuantisedAccuracy(TestCase):
    """Copies that `baton quantize` makes answer as well as the model, but for the noise of so many questions."""

    def check(self, name, *flags, serve=()):
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, name)
            code, _, words = baton("quantize", MODEL, out, "--format", name, *flags)
            self.assertEqual(code, 0, words)
            got = evaluate("--quantization", "fp8" if name == "fp8" else "ascend", *serve, model=out)
        right, asked = (sum(column) for column in zip(*got.values()))
        want = sum(right for right, _ in stated().values())
        self.assertEqual(asked, sum(asked for _, asked in stated().values()))
        self.assertLessEqual(abs(right - want), NOISE, f"{name}: {right} of {asked} right answers, the model has {want}")

    def test_w8a8_dynamic(self):
        self.check("w8a8-dynamic")

    def test_w8a8_static(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as prompts:
            for number, question in enumerate(questions()):
                if number % 31 == 0:
                    prompts.write(json.dumps({"messages": question["messages"]}) + "\n")
            prompts.flush()
            self.check("w8a8-static", "--calibration", prompts.name)

    def test_fp8_with_drafts(self):
        self.check("fp8", serve=("--speculative-config", '{"num_speculative_tokens":1,"method":"deepseek_mtp"}'))
