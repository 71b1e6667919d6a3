"""`baton quantize` from the command line, and what `baton serve` makes of the copies."""
import contextlib
import json
import os
import signal
import tempfile

from gateway_case import COMPLETIONS
from harness import BATON, MODEL, Process, Serve, TestCase, baton, free_port, http, metric, wait_until
from test_ep import Rank
from test_pd import ASKED, COMMON, transfer

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

    def test_one_text_over_ranks_and_hand_overs_with_drafts(self):
        prompts = [f"Once upon a time there {'was a girl ' * n}" for n in range(1, 9)]
        body = {"max_tokens": 40, "ignore_eos": True, "logprobs": 2, "temperature": 0.8, "seed": 3}
        copy = self.make("w8a8-dynamic")
        flags = ("--quantization", "ascend", "--speculative-config", '{"num_speculative_tokens":1,"method":"deepseek_mtp"}')

        def ask(engine, prompt, **more):
            answer = http(engine.port, "POST", COMPLETIONS, {"prompt": prompt, **body, **more})
            self.assertEqual(answer.status, 200, answer.body)
            return answer.json()

        with contextlib.ExitStack() as stack:
            start = stack.enter_context
            one = start(Serve(*COMMON, model=copy))
            prefiller = start(Serve(*COMMON, *transfer("kv_producer", free_port()), *flags, model=copy))
            decoder = start(Serve(*COMMON, *transfer("kv_consumer"), *flags, model=copy))
            dp_port = free_port()
            ranks = [start(Rank(i, 2, dp_port, *flags, model=copy)) for i in range(2)]
            for rank in ranks:
                rank.ready()
            for prompt in prompts:
                want = ask(one, prompt)["choices"]
                params = ask(prefiller, prompt, max_tokens=1, kv_transfer_params=ASKED)["kv_transfer_params"]
                self.assertEqual(ask(decoder, prompt, kv_transfer_params=params)["choices"], want)
                for rank in ranks:
                    self.assertEqual(ask(rank, prompt)["choices"], want)
            for engine in (decoder, *ranks):
                self.assertGreater(metric(engine.port, "vllm:spec_decode_num_accepted_tokens_total"), 50)
            self.assertGreater(metric(decoder.port, "vllm:external_prefix_cache_hits_total"), 0)

    def test_ctrl_c_leaves_nothing_behind(self):
        out = self.path("out")
        with open(self.prompts, "w", encoding="utf-8") as f:  # far more than is done before the signal comes
            f.write(("The capital of Norway is Oslo, and that of Sweden is Stockholm. " * 8 + "\n") * 2000)
        with Process([BATON, "quantize", MODEL, out, "--format", "w8a8-static", "--calibration", self.prompts]) as p:
            wait_until(lambda: os.path.exists(out + ".partial") or not p.alive(), "it has begun")
            p.signal(signal.SIGINT)
            self.assertEqual(p.wait(), 1, p.output())
            self.assertIn("interrupted", p.output())
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
