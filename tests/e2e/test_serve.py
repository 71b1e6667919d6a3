"""`baton serve` as its users meet it: answers, streams, equivalences, wrong input, leaving clients, ending."""
import json
import os
import signal
import socket
import tempfile
import threading

from harness import (BATON, MODEL, Connection, Process, Serve, TestCase, answers, baton, free_port, http, metric,
                     stream, wait_until)

QUESTION = {"messages": [{"role": "user", "content": "What is the capital of Norway?"}], "temperature": 0}


def text_of(answer):
    return answer.json()["choices"][0]["message"]["content"]


def streamed_text(events):
    return "".join(e["choices"][0]["delta"].get("content", "") for e in events if e["choices"])


class Answers(TestCase):
    @classmethod
    def setUpClass(cls):
        cls.engine = Serve("--served-model-name", "tiny", "alias", "--threads", "2", "--block-size", "16", "--enable-prompt-tokens-details")
        cls.port = cls.engine.port

    @classmethod
    def tearDownClass(cls):
        cls.engine.stop()

    def complete(self, **body):
        answer = http(self.port, "POST", "/v1/completions", {"temperature": 0, **body})
        self.assertEqual(200, answer.status, answer.body)
        return answer.json()

    def test_a_question_is_answered(self):
        answer = http(self.port, "POST", "/v1/chat/completions", QUESTION)
        self.assertEqual("The capital of Norway is Oslo.", text_of(answer))
        self.assertEqual("stop", answer.json()["choices"][0]["finish_reason"])

    def test_streamed_is_not_streamed(self):
        whole = text_of(http(self.port, "POST", "/v1/chat/completions", QUESTION))
        events = stream(self.port, "/v1/chat/completions", {**QUESTION, "stream": True, "stream_options": {"include_usage": True}})
        self.assertEqual(whole, streamed_text(events))
        self.assertEqual("assistant", events[0]["choices"][0]["delta"]["role"])
        self.assertEqual([], events[-1]["choices"])
        self.assertGreater(events[-1]["usage"]["completion_tokens"], 5)

    def test_a_prefix_hit_gives_the_same_as_a_miss(self):
        prompt = "Tell me about the dolphin. " * 12
        first = self.complete(prompt=prompt, max_tokens=24, return_token_ids=True, cache_salt="hit")
        again = self.complete(prompt=prompt, max_tokens=24, return_token_ids=True, cache_salt="hit")
        self.assertEqual(first["choices"][0]["token_ids"], again["choices"][0]["token_ids"])
        self.assertEqual(0, first["usage"]["prompt_tokens_details"]["cached_tokens"])
        self.assertGreater(again["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
        other = self.complete(prompt=prompt, max_tokens=24, cache_salt="another tenant")
        self.assertEqual(0, other["usage"]["prompt_tokens_details"]["cached_tokens"])

    def test_a_batch_is_its_singles(self):
        prompts = ["The capital of France is", "The opposite of deep is", "A dolphin is", "One two three"]
        batch = self.complete(prompt=prompts, max_tokens=8, return_token_ids=True)
        self.assertEqual([0, 1, 2, 3], [c["index"] for c in batch["choices"]])
        for prompt, choice in zip(prompts, batch["choices"]):
            single = self.complete(prompt=prompt, max_tokens=8, return_token_ids=True)
            self.assertEqual(single["choices"][0]["token_ids"], choice["token_ids"])
            self.assertEqual(single["choices"][0]["text"], choice["text"])

    def test_ids_and_text_are_the_same_prompt(self):
        ids = http(self.port, "POST", "/tokenize", {"prompt": "The capital of France is"}).json()["tokens"]
        self.assertEqual(self.complete(prompt="The capital of France is", max_tokens=5)["choices"][0]["text"],
                         self.complete(prompt=ids, max_tokens=5)["choices"][0]["text"])
        self.assertTrue(http(self.port, "POST", "/detokenize", {"tokens": ids}).json()["prompt"].endswith("The capital of France is"))

    def test_seeds_make_sampling_reproducible(self):
        body = {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 1.0, "seed": 7, "n": 3}
        first, again = self.complete(**body), self.complete(**body)
        self.assertEqual([c["text"] for c in first["choices"]], [c["text"] for c in again["choices"]])
        self.assertGreater(len({c["text"] for c in first["choices"]}), 1)

    def test_stop_strings_are_found_across_tokens(self):
        full = self.complete(prompt="The capital of France is", max_tokens=12, ignore_eos=True)["choices"][0]["text"]
        stop = full[3:7]
        body = {"prompt": "The capital of France is", "max_tokens": 12, "ignore_eos": True, "stop": [stop]}
        cut = self.complete(**body)["choices"][0]
        self.assertEqual(full[:full.index(stop)], cut["text"])
        self.assertEqual(("stop", stop), (cut["finish_reason"], cut["stop_reason"]))
        kept = self.complete(**body, include_stop_str_in_output=True)["choices"][0]["text"]
        self.assertEqual(full[:full.index(stop)] + stop, kept)
        events = stream(self.port, "/v1/completions", {**body, "temperature": 0, "stream": True})
        self.assertEqual(cut["text"], "".join(e["choices"][0]["text"] for e in events))

    def test_tools_and_log_probabilities(self):
        answer = http(self.port, "POST", "/v1/chat/completions", {**QUESTION, "logprobs": True, "top_logprobs": 3}).json()
        entries = answer["choices"][0]["logprobs"]["content"]
        self.assertEqual("The capital of Norway is Oslo.", b"".join(bytes(e["bytes"]) for e in entries[:-1]).decode())
        for e in entries:
            self.assertEqual(3, len(e["top_logprobs"]))
            self.assertAlmostEqual(e["logprob"], e["top_logprobs"][0]["logprob"], places=4)

    def test_every_name_is_served_and_no_other(self):
        names = [m["id"] for m in http(self.port, "GET", "/v1/models").json()["data"]]
        self.assertEqual(["tiny", "alias"], names)
        self.assertEqual(200, http(self.port, "POST", "/v1/chat/completions", {**QUESTION, "model": "alias"}).status)
        self.assertEqual(404, http(self.port, "POST", "/v1/chat/completions", {**QUESTION, "model": "gpt"}).status)

    def test_many_at_once_are_all_right(self):
        results = [None] * 24

        def ask(i):
            results[i] = streamed_text(stream(self.port, "/v1/chat/completions", {**QUESTION, "stream": True}))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(results))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(["The capital of Norway is Oslo."] * len(results), results)

    def test_a_client_that_leaves_frees_its_blocks(self):
        body = {"prompt": "Once upon a time", "max_tokens": 2000, "ignore_eos": True, "temperature": 1.0}
        for streamed in (True, False):
            for leave in ("close", "reset"):
                c = Connection(self.port)
                c.request("POST", "/v1/completions", {**body, "stream": streamed})
                if streamed:
                    c.read_until(b"data: ")
                else:
                    wait_until(lambda: metric(self.port, "vllm:num_requests_running") > 0, "the request runs")
                getattr(c, leave)()
                wait_until(lambda: metric(self.port, "vllm:num_requests_running") == 0 and
                           metric(self.port, "vllm:kv_cache_usage_perc") == 0, "everything is given back")

    def test_metrics_count(self):
        before = metric(self.port, "vllm:request_success_total", finished_reason="length")
        self.complete(prompt="x", max_tokens=3, ignore_eos=True)
        self.assertEqual(before + 1, metric(self.port, "vllm:request_success_total", finished_reason="length"))
        self.assertIsNotNone(metric(self.port, "vllm:time_to_first_token_seconds_count"))


class Equivalences(TestCase):
    """The same prompts under settings that must not change a token."""
    PROMPTS = ["The capital of France is", "Tell me about the dolphin. " * 20, "a", "What is the opposite of deep? " * 5]
    SETTINGS = [[], ["--max-num-batched-tokens", "7", "--max-num-seqs", "4"], ["--threads", "2"], ["--no-enable-prefix-caching"],
                ["--no-enable-chunked-prefill"], ["--block-size", "8", "--kv-cache-blocks", "260", "--max-num-seqs", "64"],
                ["--speculative-config", '{"num_speculative_tokens":2,"method":"deepseek_mtp"}'], ["--isa", "avx2"]]

    def test_settings_change_no_token(self):
        wanted = None
        for setting in self.SETTINGS:
            with Serve("--max-model-len", "2048", *(setting if "--threads" in setting else ["--threads", "1", *setting])) as engine:
                body = {"prompt": self.PROMPTS * 2, "max_tokens": 40, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
                got = [c["token_ids"] for c in http(engine.port, "POST", "/v1/completions", body).json()["choices"]]
                wanted = wanted or got
                self.assertEqual(wanted, got, setting)


class Ports(TestCase):
    def test_a_port_that_others_have_on_another_address_is_free(self):
        with socket.socket(socket.AF_INET6) as other:
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            port = free_port()
            try:
                other.bind(("::1", port))
            except OSError:
                return  # a machine without IPv6
            other.listen()
            with Process([BATON, "serve", MODEL, "--port", str(port)]) as s:
                wait_until(lambda: answers(port) or not s.alive(), "baton serve is ready")
                self.assertTrue(s.alive(), s.output())


class Keys(TestCase):
    def test_v1_needs_the_key_and_nothing_else_does(self):
        with Serve("--api-key", "secret-1", "--threads", "1", "--enable-request-id-headers") as engine:
            self.assertEqual(401, http(engine.port, "GET", "/v1/models").status)
            self.assertEqual(401, http(engine.port, "GET", "/v1/models", headers={"Authorization": "Bearer secret-2"}).status)
            self.assertEqual(200, http(engine.port, "GET", "/v1/models", headers={"Authorization": "bearer secret-1"}).status)
            self.assertEqual(200, http(engine.port, "POST", "/tokenize", {"prompt": "x"}).status)
            answer = http(engine.port, "POST", "/v1/completions", {"prompt": "x", "max_tokens": 1},
                          {"Authorization": "Bearer secret-1", "X-Request-Id": "abc"})
            self.assertEqual(("cmpl-abc", "abc"), (answer.json()["id"], answer.header("x-request-id")))
            self.assertNotIn("secret-1", engine.output())


class Ending(TestCase):
    def test_sigterm_lets_a_stream_end(self):
        engine = Serve("--threads", "1")
        self.addCleanup(engine.stop)
        with Connection(engine.port) as c:
            c.request("POST", "/v1/completions", {"prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True, "temperature": 0, "stream": True})
            events = c.events()
            next(events)
            engine.signal(signal.SIGTERM)
            rest = list(events)
            self.assertEqual("[DONE]", rest[-1])
            self.assertEqual("length", json.loads(rest[-2])["choices"][0]["finish_reason"])
        self.assertEqual(0, engine.wait())

    def test_wrong_use_is_explained(self):
        for args, words in [
            (["/no/such/model"], "/no/such/model"),
            ([MODEL, "--max-num-sqs", "3"], "did you mean --max-num-seqs?"),
            ([MODEL, "--max-model-len", "999999"], "max_position_embeddings 2048"),
            ([MODEL, "--kv-cache-blocks", "2"], "max-model-len"),
            ([MODEL, "--pipeline-parallel-size", "2"], "parallel"),
            ([MODEL, "--quantization", "ascend"], "quant_model_description"),
            ([MODEL, "--reasoning-parser", "x"], "deepseek_r1"),
            ([], "which model folder"),
        ]:
            code, out, err = baton("serve", *args, "--port", str(free_port()))
            self.assertEqual((2, ""), (code, out), err)
            self.assertIn(words, err)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            code, _, err = baton("serve", MODEL, "--host", "127.0.0.1", "--port", str(taken.getsockname()[1]))
            self.assertEqual(2, code)
            self.assertIn("in use by another program", err)

    def test_what_is_cheap_is_checked_before_the_weights(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in os.listdir(MODEL):
                if not name.endswith(".safetensors"):
                    os.symlink(os.path.join(MODEL, name), os.path.join(folder, name))
            port = str(free_port())
            for args, words in [
                (["--max-model-len", "999999"], "max_position_embeddings 2048"),
                (["--reasoning-parser", "x"], "deepseek_r1"),
                (["--tokenizer", "/no/such"], "/no/such/tokenizer.json"),
                (["--override-generation-config", "x"], "--override-generation-config: not JSON"),
                (["--default-chat-template-kwargs", "[]"], "--default-chat-template-kwargs: not a JSON object"),
                (["--allowed-origins", "[1]"], "--allowed-origins"),
                (["--ssl-certfile", "/no/such", "--ssl-keyfile", "/no/such"], "/no/such"),
                ([], "safetensors"),
            ]:
                code, _, err = baton("serve", folder, "--port", port, *args)
                self.assertEqual(2, code, err)
                self.assertIn(words, err)

    def test_what_would_be_a_silent_lie_is_refused(self):
        for args, words in [
            (["--config", "vllm.yaml"], "vllm.yaml"),
            (["--chat-template", "/no/such.jinja"], "--chat-template"),
            (["--chat-template", "{{ messages }}"], "none of DeepSeek"),
            (["--chat-template", "x.jinja", "--chat-format", "deepseek-v3"], "leave one out"),
            (["--generation-config", "/no/such"], "/no/such/generation_config.json"),
            (["--ssl-ciphers", "HIGH"], "--ssl-ciphers"),
            (["--ssl-cert-reqs", "2"], "--ssl-cert-reqs 2"),
            (["--ssl-ca-certs", "/no/such"], "--ssl-ca-certs"),
        ]:
            code, _, err = baton("serve", MODEL, "--port", str(free_port()), *args)
            self.assertEqual(2, code, err)
            self.assertIn(words, err)

    def test_tokenizer_and_template_of_another_folder_count(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("config.json", "generation_config.json", "model.safetensors"):
                os.symlink(os.path.join(MODEL, name), os.path.join(folder, name))
            with Serve("--tokenizer", MODEL, "--threads", "1", model=folder) as engine:
                self.assertEqual("The capital of Norway is Oslo.", text_of(http(engine.port, "POST", "/v1/chat/completions", QUESTION)))
            template = os.path.join(folder, "v2.jinja")
            with open(template, "w", encoding="utf-8") as f:
                f.write("User: {{ m }} Assistant: {{ m }}{{ 'Assistant:' }}")
            with Serve("--tokenizer", MODEL, "--chat-template", template, "--threads", "1", model=folder) as engine:
                ids = http(engine.port, "POST", "/tokenize", {"messages": QUESTION["messages"]}).json()["tokens"]
                self.assertIn("\n\nAssistant:", http(engine.port, "POST", "/detokenize", {"tokens": ids}).json()["prompt"])

    def test_options_without_effect_are_named_once(self):
        with Serve("--threads", "1", "--trust-remote-code", "--async-scheduling") as engine:
            self.assertEqual(1, engine.output().count("--async-scheduling"))


class Cluster(TestCase):
    def test_up_serves_and_down_leaves_nothing(self):
        ports = [free_port() for _ in range(3)]
        path = os.path.join("/tmp", f"baton-e2e-{os.getpid()}.yaml")
        with open(path, "w", encoding="utf-8") as f:
            f.write(f"model: {{path: {MODEL}, served_name: tiny, max_len: 512}}\n"
                    "engine: {kind: embedded, args: {threads: 1, kv-cache-blocks: 64}}\nplatform: cpu\n"
                    "nodes: {d0: {ip: 127.0.0.1}, d1: {ip: 127.0.0.1}}\n"
                    f"decode: {{groups: [[d0], [d1]], host: 127.0.0.1, api_port: {ports[0]}}}\n"
                    f"gateway: {{node: d0, host: 127.0.0.1, port: {ports[1]}}}\nsupervise: {{ready_seconds: 60, stop_seconds: 10}}\n")
        self.addCleanup(os.unlink, path)
        code, _, err = baton("up", path)
        self.addCleanup(baton, "down", path)
        self.assertEqual(0, code, err)
        self.assertEqual("The capital of Norway is Oslo.", text_of(http(ports[1], "POST", "/v1/chat/completions", QUESTION)))
        code, _, err = baton("up", path)
        self.assertEqual(2, code)
        self.assertIn("is up already", err)
        status = json.loads(baton("status", path, "--format", "json")[1])
        victim = next(p for p in status["processes"] if p["name"] == "d1.0")
        os.kill(victim["pid"], signal.SIGKILL)

        def restarted():
            now = json.loads(baton("status", path, "--format", "json")[1])
            p = next(p for p in now["processes"] if p["name"] == "d1.0")
            return p["state"] == "healthy" and p["pid"] != victim["pid"]

        wait_until(restarted, "d1.0 is started again")
        pids = [p["pid"] for p in json.loads(baton("status", path, "--format", "json")[1])["processes"]]
        self.assertEqual(0, baton("down", path)[0])
        for pid in pids:
            self.assertFalse(os.path.exists(f"/proc/{pid}"), pid)
        self.assertEqual(1, baton("status", path)[0])

    def test_a_taken_port_starts_nothing(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            path = os.path.join("/tmp", f"baton-e2e-taken-{os.getpid()}.yaml")
            with open(path, "w", encoding="utf-8") as f:
                f.write(f"model: {{path: {MODEL}}}\nengine: {{kind: embedded}}\nnodes: {{a: {{ip: 127.0.0.1}}}}\n"
                        f"decode: {{groups: [[a]], host: 127.0.0.1, api_port: {port}}}\n")
            self.addCleanup(os.unlink, path)
            code, _, err = baton("up", path)
            self.assertNotEqual(0, code)
            self.assertIn(f"port {port}, planned for a.0, is in use", err)
