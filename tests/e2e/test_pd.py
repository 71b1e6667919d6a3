"""Prefill on one engine, decode on another, with the real model: the way of the demo, and what may go wrong on it."""
import json
import random
import signal
import unittest

from gateway_case import CHAT, COMPLETIONS, GatewayCase, in_threads, stream_whole, text_of
from harness import MODEL, Connection, Serve, baton, TestCase, free_port, http, metric, stream, wait_until

ASKED = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None, "remote_block_ids": None,
         "remote_host": None, "remote_port": None}
COMMON = ("--served-model-name", "tiny", "--kv-cache-blocks", "512", "--block-size", "16", "--threads", "1")


def transfer(role, port=None, **more):
    config = {"kv_connector": "NixlConnector", "kv_role": role, **more}
    if port:
        config["kv_port"] = port
    return ("--kv-transfer-config", json.dumps(config))


def prompts_of_all_lengths(count):
    """Token ids, of lengths around the borders of blocks and chunks first; some begin alike; twenty of them once more, to be found
    in a cache."""
    rng = random.Random(7)
    lengths = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 511, 512, 513]
    prompts = []
    for i in range(count):
        length = lengths[i] if i < len(lengths) else rng.randint(1, 300)
        ids = [rng.randint(10, 1500) for _ in range(length)]
        if i % 3 == 0:
            ids = (list(range(100, 140)) + ids)[:max(length, 1)]
        prompts.append(ids)
    return prompts + prompts[:20]


class Prefiller(Serve):
    def __init__(self, *args, **more):
        self.kv_port = free_port()
        super().__init__(*COMMON, *transfer("kv_producer", self.kv_port, **more), *args)

    def prefill(self, prompt, **more):
        """The prefill leg's answer: what a gateway would hand to the decode leg."""
        r = http(self.port, "POST", COMPLETIONS, {"prompt": prompt, "max_tokens": 1, "kv_transfer_params": ASKED, **more})
        assert r.status == 200, r.body
        return r.json()["kv_transfer_params"]


class Decoder(Serve):
    def __init__(self, *args, **more):
        super().__init__(*COMMON, *transfer("kv_consumer", **more), *args)

    def fetched(self):
        return metric(self.port, "vllm:external_prefix_cache_hits_total")


def host(engine):
    return f"127.0.0.1:{engine.port}"


def at_rest(engine):
    """Nothing runs, and no KV is held for anybody."""
    wait_until(lambda: metric(engine.port, "vllm:kv_cache_usage_perc") == 0 and
               metric(engine.port, "vllm:num_requests_running") == 0, "all KV is free")


class HandOver(GatewayCase):
    """The engines alone, legs made by hand."""

    @classmethod
    def setUpClass(cls):
        cls.p, cls.d = Prefiller(), Decoder()
        cls.one = Serve(*COMMON)

    @classmethod
    def tearDownClass(cls):
        for e in (cls.p, cls.d, cls.one):
            e.stop()

    def decode(self, params, prompt="Once upon a time", status=200, **more):
        r = http(self.d.port, "POST", COMPLETIONS,
                 {"prompt": prompt, "temperature": 0, "max_tokens": 8, "kv_transfer_params": params, **more})
        self.assertEqual(r.status, status, r.body)
        return r.json()

    def test_the_params_are_those_of_the_connectors(self):
        params = self.p.prefill("Once upon a time there was a girl")
        self.assertEqual((params["do_remote_prefill"], params["do_remote_decode"]), (True, False))
        self.assertEqual((params["remote_host"], params["remote_port"]), ("127.0.0.1", self.p.kv_port))
        self.assertEqual(len(params["remote_block_ids"]), 1)  # one group of layers
        self.assertEqual(len(params["remote_block_ids"][0]), (params["remote_num_tokens"] + 15) // 16)
        self.assertEqual(len(params["remote_request_id"]), 32)
        self.decode(params, "Once upon a time there was a girl")
        at_rest(self.p)

    def test_without_being_asked_nothing_is_kept(self):
        for more in ({}, {"kv_transfer_params": {"do_remote_decode": False}}, {"kv_transfer_params": None}):
            r = http(self.p.port, "POST", COMPLETIONS, {"prompt": "Once upon a time", "max_tokens": 1, **more})
            self.assertIsNone(r.json()["kv_transfer_params"])
        stream(self.p.port, COMPLETIONS, {"prompt": "Once", "max_tokens": 1, "stream": True, "kv_transfer_params": ASKED})
        at_rest(self.p)

    def test_an_end_by_eos_is_kept_too(self):
        for more in ({"min_tokens": 1}, {}):
            params = self.p.prefill("Once upon a time", **more)
            self.decode(params)
        at_rest(self.p)

    def test_the_text_is_one_engines(self):
        """Prompts of all lengths around the borders of blocks and chunks, with a prefix in common and without."""
        prompts = prompts_of_all_lengths(200)

        def both(ids):
            body = {"prompt": ids, "temperature": 0, "max_tokens": 6, "logprobs": 2, "return_token_ids": True}
            want = http(self.one.port, "POST", COMPLETIONS, body).json()["choices"]
            got = self.decode(self.p.prefill(ids), **body)["choices"]
            self.assertEqual(got, want)
        in_threads([lambda n=n: [both(ids) for ids in prompts[n::4]] for n in range(4)])
        self.assertGreater(self.d.fetched(), 10000)
        for e in (self.p, self.d):
            at_rest(e)

    def test_chat_streams_and_samples_alike(self):
        body = {"messages": [{"role": "user", "content": "Tell me about the dolphin."}], "max_tokens": 30, "stream": True,
                "temperature": 1, "seed": 5}
        r = http(self.p.port, "POST", CHAT, {**body, "stream": False, "max_tokens": 1, "kv_transfer_params": ASKED})
        got = text_of(stream(self.d.port, CHAT, {**body, "kv_transfer_params": r.json()["kv_transfer_params"]}))
        self.assertEqual(got, text_of(stream(self.one.port, CHAT, body)))

    def test_params_that_name_no_kv_are_refused_and_nothing_dies(self):
        prompt = "Once upon a time there was a girl"
        good = self.p.prefill(prompt)
        for key in ("remote_host", "remote_port", "remote_engine_id", "remote_request_id"):
            e = self.decode({k: v for k, v in good.items() if k != key}, prompt, 400)["error"]
            self.assertIn(key, e["message"])
        for key, value in (("remote_host", ""), ("remote_host", "x" * 300), ("remote_port", 0), ("remote_port", 70000),
                           ("remote_port", "x"), ("remote_engine_id", 7), ("remote_num_tokens", 3)):
            self.decode({**good, key: value}, prompt, 400)
        self.decode(good, [prompt, prompt], 400)
        self.decode("yes", prompt, 400)
        self.decode(good, prompt)  # none of them has used it
        at_rest(self.p)

    def test_blocks_in_the_params_are_words_only(self):
        """What is read is what the prefiller kept under the id; a client cannot name blocks."""
        prompt = "Once upon a time there was a girl"
        want = http(self.one.port, "POST", COMPLETIONS, {"prompt": prompt, "temperature": 0, "max_tokens": 8}).json()
        for blocks in ([[400, 401]], [], [[]], [1, 2], None):
            params = {**self.p.prefill(prompt), "remote_block_ids": blocks}
            self.assertEqual(self.decode(params, prompt)["choices"], want["choices"])

    def test_a_kv_that_is_not_there_ends_in_an_error(self):
        prompt = "Once upon a time there was a girl"
        p = Prefiller()  # of its own: leases that nobody fetches hold KV for a while
        self.addCleanup(p.stop)
        used = p.prefill(prompt)
        self.decode(used, prompt)
        wrong = [used, {**p.prefill(prompt), "remote_request_id": "0" * 32},
                 {**p.prefill(prompt), "remote_engine_id": "another"},
                 {**p.prefill(prompt), "remote_port": free_port()}]
        for params in wrong:
            self.decode(params, prompt, 500)
        self.decode(used, prompt, 500, stream=True)  # before the first byte, so a gateway can go elsewhere
        self.decode(p.prefill(prompt), prompt)
        at_rest(self.d)

    def test_n_choices_share_one_fetch(self):
        prompt = "Once upon a time there was a girl"
        body = {"n": 3, "seed": 1, "temperature": 1}
        want = http(self.one.port, "POST", COMPLETIONS, {"prompt": prompt, "max_tokens": 8, **body}).json()["choices"]
        self.assertEqual(self.decode(self.p.prefill(prompt), prompt, **body)["choices"], want)
        at_rest(self.p)



class Life(TestCase):
    """Engines of their own."""

    def test_a_lease_ends_and_the_kv_is_free(self):
        with Prefiller(kv_connector_extra_config={"lease_seconds": 1}) as p, Decoder() as d:
            params = p.prefill("Once upon a time")
            at_rest(p)
            self.assertEqual(metric(p.port, "vllm:nixl_num_kv_expired_reqs_total"), 1)
            r = http(d.port, "POST", COMPLETIONS, {"prompt": "Once upon a time", "kv_transfer_params": params})
            self.assertEqual(r.status, 500)
            self.assertIn("could not be fetched", d.output())

    def test_clients_that_leave_leave_nothing(self):
        prompt = [7] * 200
        with Prefiller(kv_connector_extra_config={"lease_seconds": 1000}) as p, Decoder() as d:
            for i in range(30):
                params = p.prefill(prompt)
                c = Connection(d.port)
                c.request("POST", COMPLETIONS, {"prompt": prompt, "max_tokens": 500, "ignore_eos": True, "stream": True,
                                                "kv_transfer_params": params})
                if i % 3:
                    c.read_head()
                    c.reset()
                else:
                    c.close()
            for e in (p, d):
                at_rest(e)
            self.assertEqual(metric(p.port, "vllm:nixl_num_kv_expired_reqs_total"), 0)

    def test_an_answer_that_nobody_waits_for_keeps_nothing(self):
        """The gateway leaves while the prompt is computed, or a moment before the answer."""
        with Prefiller(kv_connector_extra_config={"lease_seconds": 1000}) as p:
            for i in range(40):
                c = Connection(p.port)
                c.request("POST", COMPLETIONS, {"prompt": [7 + i] * 400, "max_tokens": 1, "kv_transfer_params": ASKED})
                if i % 2:
                    wait_until(lambda: metric(p.port, "vllm:num_requests_running") >= 0, "a moment")
                c.close()
            at_rest(p)

    def test_a_decoder_may_compute_what_it_cannot_fetch(self):
        with Prefiller() as p, Decoder(kv_load_failure_policy="recompute") as d:
            params = p.prefill("Once upon a time")
            want = http(p.port, "POST", COMPLETIONS, {"prompt": "Once upon a time", "temperature": 0}).json()["choices"]
            p.stop(signal.SIGKILL)
            for broken in (params, {"do_remote_prefill": True}):
                r = http(d.port, "POST", COMPLETIONS,
                         {"prompt": "Once upon a time", "temperature": 0, "kv_transfer_params": broken})
                self.assertEqual(r.json()["choices"], want)

    def test_a_stop_waits_for_those_who_fetch(self):
        with Prefiller() as p, Decoder() as d:
            params = p.prefill("Once upon a time")
            p.signal(signal.SIGTERM)
            wait_until(lambda: "SIGTERM" in p.output(), "told")
            r = http(d.port, "POST", COMPLETIONS, {"prompt": "Once upon a time", "kv_transfer_params": params})
            self.assertEqual(r.status, 200, r.body)
            self.assertEqual(p.wait(), 0)

    def test_ucx_and_tcp_bring_the_same_text(self):
        prompt = [7, 9, 11] * 100
        for way in ("ucx", "tcp", "auto"):
            extra = {"transport": way, "checksum": True}
            with Prefiller(kv_connector_extra_config=extra) as p, \
                    Decoder("--log-level", "debug", kv_connector_extra_config=extra) as d:
                body = {"prompt": prompt, "temperature": 0, "max_tokens": 9}
                want = http(p.port, "POST", COMPLETIONS, body).json()["choices"]
                for _ in range(3):
                    got = http(d.port, "POST", COMPLETIONS, {**body, "kv_transfer_params": p.prefill(prompt)}).json()
                    self.assertEqual(got["choices"], want)
                self.assertIn({"ucx": "by UCX", "tcp": "over TCP", "auto": "out of its memory"}[way], d.output())
                self.assertEqual(d.fetched(), 299 + 2 * 11)  # whole blocks are known then
                at_rest(p)

    def test_one_engine_may_be_both(self):
        with Serve(*COMMON, *transfer("kv_both", free_port()), "--no-enable-prefix-caching") as e:
            r = http(e.port, "POST", COMPLETIONS, {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 1,
                                                   "kv_transfer_params": ASKED}).json()
            body = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 9}
            got = http(e.port, "POST", COMPLETIONS, {**body, "kv_transfer_params": r["kv_transfer_params"]}).json()
            self.assertEqual(got["choices"], http(e.port, "POST", COMPLETIONS, body).json()["choices"])
            self.assertGreater(metric(e.port, "vllm:external_prefix_cache_hits_total"), 0)


class Whole(GatewayCase):
    """Two prefillers, two decoders, the gateway."""
    prefiller, decoder = Prefiller, Decoder

    def test_killed_under_load_every_answer_is_whole_and_right(self):
        body = {"prompt": "Once upon a time there was a girl", "temperature": 0, "max_tokens": 400, "ignore_eos": True,
                "stream": True}
        short = {**body, "max_tokens": 8}
        for role in ("prefill", "decode"):
            engines = {"prefill": [self.prefiller(), self.prefiller()], "decode": [self.decoder(), self.decoder()]}
            for e in engines["prefill"] + engines["decode"]:
                self.addCleanup(e.stop)
            with self.gateway([host(e) for e in engines["prefill"]], [host(e) for e in engines["decode"]]) as g, \
                    Serve(*COMMON) as one:
                want = {b["max_tokens"]: text_of(stream(one.port, COMPLETIONS, b)) for b in (body, short)}
                begun = []

                def streams(g=g, want=want, begun=begun):
                    self.assertEqual(text_of(stream_whole(g.port, COMPLETIONS, body, begun)), want[400])
                    for _ in range(8):
                        self.assertEqual(text_of(stream(g.port, COMPLETIONS, short)), want[8])

                def kill(engines=engines, begun=begun):
                    victim = engines[role][0]
                    wait_until(lambda: len(begun) >= 16 and (role == "prefill" or host(victim) in begun), "streams run")
                    victim.signal(signal.SIGKILL)
                in_threads([streams] * 32 + [kill])
                if role == "decode":
                    self.assertGreater(g.count("continuations_total"), 0)
                self.assert_quiet(g)
                for e in engines["prefill"] + engines["decode"]:
                    if e.alive():
                        at_rest(e)

    def test_a_decoder_out_of_blocks_hands_back_and_nobody_notices(self):
        prompt = [9] * 60
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 300, "ignore_eos": True, "stream": True}
        small = ("--kv-cache-blocks", "80", "--max-model-len", "512",
                 "--additional-config", '{"recompute_scheduler_enable":true}')
        with self.prefiller() as p, self.decoder(*small) as d, Serve(*COMMON) as one, \
                self.gateway([host(p)], [host(d)], "--max-continuations", "50") as g:
            want = text_of(stream(one.port, COMPLETIONS, body))

            def check():
                self.assertEqual(text_of(stream(g.port, COMPLETIONS, body)), want)
            in_threads([check] * 6)
            self.assertGreater(metric(d.port, "vllm:request_success_total", finished_reason="recomputed"), 0)
            self.assertGreater(g.count("continuations_total"), 0)
            self.assert_quiet(g)


class Refusals(TestCase):
    def refused(self, config, *words):
        text = config if isinstance(config, str) else json.dumps(config)
        code, _, said = baton("serve", MODEL, "--port", str(free_port()), "--kv-transfer-config", text)
        self.assertEqual(code, 2, said)
        for word in words:
            self.assertIn(word, said)

    def test_a_config_that_cannot_be_is_refused_with_a_word(self):
        good = {"kv_connector": "NixlConnector", "kv_role": "kv_producer", "kv_port": free_port()}
        self.refused("{", "--kv-transfer-config")
        self.refused("[]", "JSON object")
        self.refused({**good, "kv_connector": "P2pNcclConnector"}, "P2pNcclConnector", "NixlConnector")
        self.refused({**good, "kv_connector": "MooncakeConnector"}, "at once", "MooncakeLayerwiseConnector")
        self.refused({**good, "kv_role": "producer"}, "kv_role", "kv_both")
        self.refused({**good, "kv_port": 0}, "kv_port")
        self.refused({**good, "kv_port": "x"}, "kv_port")
        self.refused({**good, "kv_load_failure_policy": "x"}, "kv_load_failure_policy")
        self.refused({**good, "engine_id": "x" * 300}, "engine_id")
        self.refused({**good, "kv_connector_extra_config": {"host": "no address"}}, "no address", "IP address")
        self.refused({**good, "kv_connector_extra_config": {"transport": "x"}}, "transport")

    def test_a_port_that_is_taken_is_said_before_the_model_is_read(self):
        with Prefiller() as p:
            self.refused({"kv_connector": "NixlConnector", "kv_role": "kv_producer", "kv_port": p.kv_port,
                          "kv_connector_extra_config": {"host": "127.0.0.1"}}, str(p.kv_port), "in use")


if __name__ == "__main__":
    unittest.main()
