"""The other order with the real model: the decoder leases its blocks out and asks the gateway for the prefill, the prefiller
writes into them while it computes."""
import http.server
import json
import signal
import threading
import unittest

import test_pd
from gateway_case import CHAT, COMPLETIONS, GatewayCase, in_threads, text_of
from harness import Connection, Serve, TestCase, baton, free_port, http as ask, metric, stream, wait_until
from test_pd import COMMON, at_rest, host, prompts_of_all_lengths


def transfer(role, port, **more):
    return ("--kv-transfer-config", json.dumps({"kv_connector": "MooncakeLayerwiseConnector", "kv_role": role, "kv_port": port,
                                                **more}))


class Prefiller(Serve):
    def __init__(self, *args, **more):
        super().__init__(*COMMON, *transfer("kv_producer", free_port(), **more), *args)


class Decoder(Serve):
    def __init__(self, *args, **more):
        self.kv_port = free_port()
        super().__init__(*COMMON, *transfer("kv_consumer", self.kv_port, **more), *args)

    def received(self):
        return metric(self.port, "vllm:external_prefix_cache_hits_total")


class Metaserver:
    """Takes what decoders ask with, and answers as it is told."""

    def __init__(self, status=200):
        self.asked, self.status = [], status
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                outer.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
                if outer.status is None:
                    return  # hangs up
                self.send_response(outer.status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/metaserver"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def next(self):
        """What the oldest decoder asks with."""
        wait_until(lambda: self.asked, "a decoder asks")
        return self.asked.pop(0)[1]

    def params(self):
        return {"do_remote_decode": False, "do_remote_prefill": True, "metaserver": self.url}


SLOW = ("--max-num-batched-tokens", "1", "--max-num-seqs", "1")  # hundreds of steps for a prompt: it is seen computing
PROMPT = "Once upon a time there was a girl who"


class HandOver(GatewayCase):
    connector = "push"

    @classmethod
    def setUpClass(cls):
        cls.p, cls.d = Prefiller(), Decoder()
        cls.one = Serve(*COMMON)

    @classmethod
    def tearDownClass(cls):
        for e in (cls.p, cls.d, cls.one):
            e.stop()

    def test_the_text_is_one_engines(self):
        """Prompts of all lengths around the borders of blocks and chunks, with a prefix in common and without."""
        prompts = prompts_of_all_lengths(120)
        with self.gateway([host(self.p)], [host(self.d)]) as g:
            def both(ids, i):
                body = {"prompt": ids, "max_tokens": 6, "logprobs": 2, "return_token_ids": True, "seed": i,
                        "temperature": i % 2}
                want = ask(self.one.port, "POST", COMPLETIONS, body).json()["choices"]
                got = ask(g.port, "POST", COMPLETIONS, body)
                self.assertEqual(got.status, 200, got.body)
                self.assertEqual(got.json()["choices"], want)
            before = self.d.received()
            in_threads([lambda n=n: [both(ids, n) for ids in prompts[n::4]] for n in range(4)])
            self.assertGreater(self.d.received() - before, 8000)
            self.assertEqual(g.count("retries_total"), 0)
            self.assert_quiet(g)
        for e in (self.p, self.d):
            at_rest(e)

    def test_chat_streams_and_samples_alike(self):
        body = {"messages": [{"role": "user", "content": "Tell me about the dolphin."}], "max_tokens": 30, "stream": True,
                "temperature": 1, "seed": 5}
        with self.gateway([host(self.p)], [host(self.d)]) as g:
            self.assertEqual(text_of(stream(g.port, CHAT, body)), text_of(stream(self.one.port, CHAT, body)))

    def test_n_choices_and_lists_of_prompts(self):
        with self.gateway([host(self.p)], [host(self.d)]) as g:
            for body in ({"prompt": PROMPT, "n": 3, "seed": 1, "temperature": 1, "max_tokens": 8},
                         {"prompt": [PROMPT, "The dolphin", "x"], "temperature": 0, "max_tokens": 8}):
                got = ask(g.port, "POST", COMPLETIONS, body).json()["choices"]
                self.assertEqual(got, ask(self.one.port, "POST", COMPLETIONS, body).json()["choices"])
            self.assert_quiet(g)

    def test_what_a_decoder_asks_with_and_what_both_tell(self):
        with Metaserver() as m:
            answers = []
            body = {"prompt": [7] * 40, "temperature": 0, "max_tokens": 8}
            c = threading.Thread(target=lambda: answers.append(
                ask(self.d.port, "POST", COMPLETIONS, {**body, "kv_transfer_params": m.params()}, {"X-Request-Id": "abc"})))
            c.start()
            params = m.next()
            self.assertEqual({k: params[k] for k in ("token_ids", "request_id", "do_remote_prefill", "do_remote_decode",
                                                     "remote_block_size", "remote_host", "remote_port", "remote_tp_size",
                                                     "remote_pcp_size", "remote_dcp_size", "remote_cached_tokens",
                                                     "remote_num_tokens")},
                             {"token_ids": [], "request_id": "cmpl-abc-0", "do_remote_prefill": False,
                              "do_remote_decode": True, "remote_block_size": [16], "remote_host": "127.0.0.1",
                              "remote_port": self.d.kv_port, "remote_tp_size": 1, "remote_pcp_size": 1,
                              "remote_dcp_size": 1, "remote_cached_tokens": 0, "remote_num_tokens": 40})
            self.assertEqual([len(g) for g in params["remote_block_ids"]], [3])
            self.assertRegex(params["remote_request_id"], "^[0-9a-f]{32}$")
            good = {**body, "max_tokens": 1, "kv_transfer_params": params}

            def refused(word, **wrong):
                r = ask(self.p.port, "POST", COMPLETIONS, {**good, **wrong})
                self.assertEqual(r.status, 400, r.body)
                self.assertIn(word, r.json()["error"]["message"])
            for key in ("remote_host", "remote_port", "remote_engine_id", "remote_request_id", "remote_num_tokens",
                        "remote_cached_tokens"):
                refused(key, kv_transfer_params={k: v for k, v in params.items() if k != key})
            refused("remote_num_tokens", prompt=[7] * 41)
            refused("remote_cached_tokens", kv_transfer_params={**params, "remote_cached_tokens": 39})
            refused("max_tokens", max_tokens=2)
            refused("list", prompt=[[7], [8]])
            # None of them has used it, nor does who guesses its name.
            r = ask(self.p.port, "POST", COMPLETIONS,
                    {**good, "kv_transfer_params": {**params, "remote_request_id": "0" * 32}})
            self.assertEqual(r.status, 500, r.body)
            r = ask(self.p.port, "POST", COMPLETIONS, good)
            self.assertEqual(r.status, 200, r.body)
            self.assertRegex(r.header("X-Baton-KV"), r"^bytes=\d+, ms=[0-9.]+$")
            c.join()
            self.assertEqual(answers[0].header("X-Baton-KV").split(",")[0], r.header("X-Baton-KV").split(",")[0])
            self.assertEqual(answers[0].json()["choices"], ask(self.one.port, "POST", COMPLETIONS, body).json()["choices"])
            self.assertEqual(ask(self.p.port, "POST", COMPLETIONS, good).status, 500)  # it serves once
            for e in (self.p, self.d):
                at_rest(e)

    def test_a_prefill_that_cannot_be_had_ends_in_an_error(self):
        for status in (404, 500, 302, None):
            with Metaserver(status) as m:
                for more in ({}, {"stream": True}):
                    r = ask(self.d.port, "POST", COMPLETIONS, {"prompt": f"{PROMPT} {status}", "kv_transfer_params": m.params(),
                                                               **more})
                    self.assertEqual(r.status, 500, r.body)
        gone = {**m.params(), "metaserver": f"http://127.0.0.1:{free_port()}/x"}
        self.assertEqual(ask(self.d.port, "POST", COMPLETIONS, {"prompt": "Gone", "kv_transfer_params": gone}).status, 500)
        self.assertIn("answered 404", self.d.output())
        self.assertIn("refused", self.d.output())
        at_rest(self.d)

    def test_params_that_name_nobody_are_refused(self):
        for params in ({"do_remote_prefill": True}, {"do_remote_prefill": True, "metaserver": 5},
                       {"do_remote_prefill": True, "metaserver": "unix:"},
                       {"do_remote_prefill": True, "metaserver": "http://:x"}):
            r = ask(self.d.port, "POST", COMPLETIONS, {"prompt": PROMPT, "kv_transfer_params": params})
            self.assertEqual(r.status, 400, r.body)
            self.assertIn("metaserver", r.json()["error"]["message"])
        # A gateway of the other order is told so.
        r = ask(self.p.port, "POST", COMPLETIONS, {"prompt": PROMPT, "max_tokens": 1, "kv_transfer_params": test_pd.ASKED})
        self.assertEqual(r.status, 400)
        self.assertIn("--connector push", r.json()["error"]["message"])


class Life(GatewayCase):
    connector = "push"

    def test_clients_that_leave_at_any_moment_leave_nothing(self):
        with Prefiller() as p, Decoder("--no-enable-prefix-caching") as d, self.gateway([host(p)], [host(d)]) as g:
            def one(i):
                c = Connection(g.port)
                c.request("POST", COMPLETIONS, {"prompt": [7 + i] * 400, "max_tokens": 300, "ignore_eos": True,
                                                "stream": bool(i % 2)})
                threading.Event().wait(0.002 * (i % 40))
                if i % 3:
                    c.reset()
                else:
                    c.close()
            in_threads([lambda n=n: [one(i) for i in range(n, 120, 12)] for n in range(12)])
            self.assert_quiet(g)
            for e in (p, d):
                at_rest(e)

    def test_a_decoders_own_client_that_leaves_ends_the_prefill(self):
        """With the metaserver's call open, answered, and while the prompt is computed."""
        with Prefiller(*SLOW) as p, Decoder("--log-level", "debug") as d, Metaserver() as m:
            for i in range(6):
                begun = d.output().count("KV is pushed here")
                prompt = [20 + i] * 600
                c = Connection(d.port)
                c.request("POST", COMPLETIONS, {"prompt": prompt, "max_tokens": 50, "kv_transfer_params": m.params()})
                params = m.next()
                if i % 3 == 0:
                    c.reset()
                    wait_until(lambda: metric(d.port, "vllm:num_requests_running") == 0, "the decoder has let go")
                with Connection(p.port) as prefill:
                    prefill.request("POST", COMPLETIONS, {"prompt": prompt, "max_tokens": 1, "kv_transfer_params": params})
                    if i % 3:
                        wait_until(lambda n=begun: d.output().count("KV is pushed here") > n, "it computes")
                        c.reset()
                    self.assertEqual(prefill.response().status, 500)
            for e in (p, d):
                at_rest(e)
            self.assertIn("could not be pushed", p.output())

    def test_nobody_comes_and_the_wait_ends(self):
        with Metaserver() as m:
            for policy, status in (("fail", 500), ("recompute", 200)):
                with Decoder(kv_load_failure_policy=policy, kv_connector_extra_config={"lease_seconds": 1}) as d:
                    r = ask(d.port, "POST", COMPLETIONS, {"prompt": PROMPT, "kv_transfer_params": m.params()})
                    self.assertEqual(r.status, status, r.body)
                    self.assertIn("no prefiller came within 1000 ms", d.output())
                    at_rest(d)

    def test_a_prefiller_that_dies_while_it_computes_ends_the_wait(self):
        body = {"prompt": list(range(20, 1520)), "temperature": 0, "max_tokens": 4}
        with Metaserver() as m, Decoder("--log-level", "debug", kv_load_failure_policy="recompute") as d, \
                Serve(*COMMON) as one:
            want = ask(one.port, "POST", COMPLETIONS, body).json()["choices"]
            with Prefiller(*SLOW) as p:
                answers = []
                c = threading.Thread(target=lambda: answers.append(
                    ask(d.port, "POST", COMPLETIONS, {**body, "kv_transfer_params": m.params()})))
                c.start()
                with Connection(p.port) as prefill:
                    prefill.request("POST", COMPLETIONS, {**body, "max_tokens": 1, "kv_transfer_params": m.next()})
                    wait_until(lambda: "KV is pushed here" in d.output(), "it computes")
                    p.signal(signal.SIGKILL)
                    c.join()
                self.assertEqual(answers[0].json()["choices"], want)
                self.assertIn("it is computed here", d.output())
            at_rest(d)

    def test_both_ways_bring_the_same_text(self):
        prompt = [7, 9, 11] * 100
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 9}
        for way, said in (("tcp", "over TCP"), ("auto", "out of the prefiller's memory")):
            extra = {"transport": way, "checksum": True}
            with Prefiller("--max-num-batched-tokens", "64", "--max-num-seqs", "64", kv_connector_extra_config=extra) as p, \
                    Decoder("--log-level", "debug", "--block-size", "8", kv_connector_extra_config=extra) as d, \
                    self.gateway([host(p)], [host(d)]) as g:
                want = ask(p.port, "POST", COMPLETIONS, body).json()["choices"]
                for _ in range(3):
                    self.assertEqual(ask(g.port, "POST", COMPLETIONS, body).json()["choices"], want)
                self.assertIn(said, d.output())
                self.assertEqual(d.received(), 299 + 2 * 3)  # whole blocks are known then
                at_rest(p)

    def test_one_engine_may_be_both(self):
        with Serve(*COMMON, *transfer("kv_both", free_port()), "--no-enable-prefix-caching") as e, \
                self.gateway([host(e)], [host(e)]) as g:
            body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 9}
            got = ask(g.port, "POST", COMPLETIONS, body).json()["choices"]
            self.assertGreater(metric(e.port, "vllm:external_prefix_cache_hits_total"), 0)
            self.assertEqual(got, ask(e.port, "POST", COMPLETIONS, body).json()["choices"])
            at_rest(e)


class Whole(test_pd.Whole):
    connector = "push"
    prefiller, decoder = Prefiller, Decoder


class Cluster(TestCase):
    def test_a_cluster_file_needs_one_word(self):
        code, said, errors = baton("plan", "examples/push.yaml", "--format", "json")
        self.assertEqual(code, 0, errors)
        plan = json.loads(said)
        self.assertEqual(plan["connector"], "MooncakeLayerwiseConnector")
        self.assertIn("MooncakeLayerwiseConnector", json.dumps(plan["gateway"]))


if __name__ == "__main__":
    unittest.main()
