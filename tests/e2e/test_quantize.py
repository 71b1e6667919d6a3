"""`baton quantize` from the command line, and what `baton serve` makes of the copies."""
import json
import os
import tempfile

from gateway_case import COMPLETIONS
from harness import MODEL, Serve, TestCase, baton, http
from test_pd import transfer

PROMPT = "The capital of Norway is"


def logprobs(*args, model):
    """What a model says, to the last bit that JSON keeps."""
    with Serve("--threads", "1", *args, model=model) as s:
        answer = http(s.port, "POST", COMPLETIONS, {"prompt": PROMPT, "max_tokens": 12, "logprobs": 3, "prompt_logprobs": 1,
                                                    "temperature": 0})
        choice = answer.json()["choices"][0]
        return json.dumps([choice["text"], choice["logprobs"], choice["prompt_logprobs"]])


class Quantize(TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.prompts = self.path("prompts")
        with open(self.prompts, "w", encoding="utf-8") as f:
            f.write("The capital of Sweden is Stockholm.\n\n")
            f.write(json.dumps({"prompt": "Gold is a chemical element."}) + "\n")
            f.write(json.dumps({"messages": [{"role": "user", "content": "What is the opposite of deep?"}]}) + "\n")

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def make(self, name, *args):
        code, _, words = baton("quantize", MODEL, self.path(name), "--format", name, *args)
        self.assertEqual(code, 0, words)
        return self.path(name)

    def refused(self, text, *args):
        code, _, words = baton("quantize", *args)
        self.assertEqual(code, 2, words)
        self.assertIn(text, words)

    def test_wrong_use_is_explained(self):
        out = self.path("out")
        self.refused("which folders?", MODEL, "--format", "fp8")
        self.refused("--format is needed", MODEL, out)
        self.refused("w8a8-static", MODEL, out, "--format", "int8")
        self.refused("give a file of them with --calibration", MODEL, out, "--format", "w8a8-static")
        self.refused("fp8 needs no prompts", MODEL, out, "--format", "fp8", "--calibration", self.prompts)
        self.refused("is there already", MODEL, self.folder.name, "--format", "fp8")
        self.refused("config.json", self.folder.name, out, "--format", "fp8")
        with open(self.prompts, "a", encoding="utf-8") as f:
            f.write('{"question": "?"}\n')
        self.refused(f"{self.prompts}:5: neither", MODEL, out, "--format", "w8a8-mix", "--calibration", self.prompts)
        self.assertEqual(os.listdir(self.folder.name), ["prompts"])

    def test_the_role_decides_how_a_mix_is_computed(self):
        mix = self.make("w8a8-mix", "--calibration", self.prompts)
        static = logprobs(model=self.make("w8a8-static", "--calibration", self.prompts))
        dynamic = logprobs(model=self.make("w8a8-dynamic"))

        self.assertNotEqual(static, dynamic)
        self.assertEqual(logprobs(model=mix), dynamic)
        self.assertEqual(logprobs(*transfer("kv_producer"), model=mix), dynamic)
        self.assertEqual(logprobs(*transfer("kv_both"), model=mix), dynamic)
        self.assertEqual(logprobs(*transfer("kv_consumer"), model=mix), static)
        self.assertEqual(logprobs("--w8a8-mix", "static", model=mix), static)
        self.assertEqual(logprobs("--w8a8-mix", "dynamic", *transfer("kv_consumer"), model=mix), dynamic)
