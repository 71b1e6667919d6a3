"""The gateway when everything works: what legs get, what clients read, routes, figures, drain."""
import json
import os
import signal
import tempfile
import unittest

from fault_engine import Engine, encode, encode_chat, generate
from gateway_case import CHAT, COMPLETIONS, Gateway, GatewayCase, chat, completion, expected, in_threads, text_of
from harness import BATON, Connection, Process, TestCase, answers, baton, free_port, http, stream, wait_until


class Flow(GatewayCase):
    def setUp(self):
        self.ledger, self.p, self.d = self.engines()
        self.g = Gateway(self.p, self.d)
        self.addCleanup(self.g.stop)

    def leg(self, engines):
        return [r for e in engines for r in e.requests][-1]

    def test_answers_are_those_of_an_engine_alone(self):
        alone = Engine("decode")
        self.addCleanup(alone.stop)
        for body in (chat(), completion(), completion([500, 1, 2, 3]), chat(max_completion_tokens=9),
                     completion(echo=True), completion(logprobs=1, max_tokens=5), chat(stop=["w1"]),
                     chat(min_tokens=30, max_tokens=40), completion(stop=" w6", max_tokens=64)):
            for more in ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}},
                         {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
                         {"return_token_ids": True}, {"stream": True, "return_token_ids": True}):
                request = {**body, **more}
                path = CHAT if "messages" in request else COMPLETIONS
                ask = (lambda port: stream(port, path, request)) if "stream" in more else (
                    lambda port: [http(port, "POST", path, request).json()])
                got, want = ask(self.g.port), ask(alone.port)
                for e in got + want:
                    e.pop("id"), e.pop("created")
                    # The prefiller's word about its cache stands in the place of the decoder's.
                    if e.get("usage") and "prompt_tokens_details" in e["usage"]:
                        e["usage"]["prompt_tokens_details"] = None
                self.assertEqual(got, want, request)
        self.assert_quiet(self.g)

    def test_both_legs_carry_one_id_and_the_clients_fields(self):
        r = self.post(self.g, chat(), headers={"X-Request-Id": "client-7", "Authorization": "Bearer k",
                                               "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "X-Data-Parallel-Rank": "3",
                                               "Connection": "keep-alive, X-Hop", "X-Hop": "1"})
        for engines in (self.p, self.d):
            fields = self.leg(engines)["fields"]
            self.assertEqual(fields["x-request-id"], "client-7")
            self.assertEqual(fields["authorization"], "Bearer k")
            self.assertEqual(fields["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            self.assertEqual(fields["x-data-parallel-rank"], "3")
            self.assertNotIn("x-hop", fields)
        self.assertEqual(r.header("X-Request-Id"), "client-7")
        self.assertIn(r.header("X-Baton-Prefill"), [e.url for e in self.p])
        self.assertIn(r.header("X-Baton-Decode"), [e.url for e in self.d])
        self.assertEqual(r.header("x-worker"), r.header("X-Baton-Decode"))

    def test_an_id_that_no_json_holds_as_it_is_is_replaced(self):
        for given in ('say "hi"', "back\\slash", "caf\xc3\xa9", "t\tb", "x" * 129):
            r = self.post(self.g, completion(["one", "two"], max_tokens=2), headers={"X-Request-Id": given})
            self.assertRegex(r.header("X-Request-Id"), "^[0-9a-f]{32}$")
            self.assertEqual(r.json()["id"], "cmpl-" + r.header("X-Request-Id"))
        given = "!#$%&'()*+,-./0:;<=>?@A[]^_`a{|}~"
        r = self.post(self.g, completion(["one", "two"], max_tokens=2), headers={"X-Request-Id": given})
        self.assertEqual((r.header("X-Request-Id"), r.json()["id"]), (given, "cmpl-" + given))

    def test_the_clients_bytes_survive(self):
        raw = ('{"model":"fake", "messages":[{"role":"user","content":"caf\\u00e9 \\/ "}],\t"temperature":1e-7,'
               '"x":0.1000000000000000055,"seed":12345678901234567890,"max_tokens": 4}').encode()
        with Connection(self.g.port) as c:
            c.request("POST", CHAT, raw)
            self.assertEqual(c.response().status, 200)
        got = self.leg(self.d)["raw"]
        self.assertTrue(got.startswith(raw[:-1] + b',"kv_transfer_params":{'), got)
        self.assertIn(b'"exact":  0.1000000000000000055', got)
        self.assertIn(b'"temperature":1e-7,"x":0.1000000000000000055', self.leg(self.p)["raw"])

    def test_kv_transfer_params_of_a_client_never_pass(self):
        evil = {"do_remote_prefill": True, "remote_host": "203.0.113.9"}
        for body in (chat(kv_transfer_params=evil), completion(kv_transfer_params=evil)):
            self.post(self.g, body)
        raw = json.dumps(chat()).replace('"max_tokens"', '"kv_\\u0074ransfer_params": {"evil": 1}, "max_tokens"').encode()
        with Connection(self.g.port) as c:
            c.request("POST", CHAT, raw)
            self.assertEqual(c.response().status, 200)
        for e in self.p + self.d:
            for r in e.requests:
                self.assertNotIn(b"203.0.113.9", r["raw"])
                self.assertNotIn(b"evil", r["raw"])
        self.assert_quiet(self.g)

    def test_lists_and_n_are_split_and_joined(self):
        prompts = ["six times seven is", "two plus two is", "ten"]
        body = self.post(self.g, completion(prompts, n=2, seed=5, max_tokens=6)).json()
        self.assertEqual([c["index"] for c in body["choices"]], list(range(6)))
        for i, c in enumerate(body["choices"]):
            self.assertEqual(c["text"], expected(completion(prompts[i // 2], max_tokens=6)))
        count = sum(len(encode(p)) for p in prompts)
        self.assertEqual(body["usage"]["prompt_tokens"], count)
        self.assertEqual(body["usage"]["completion_tokens"], 36)
        self.assertEqual(body["usage"]["total_tokens"], count + 36)
        seeds = sorted(r["body"]["seed"] for e in self.d for r in e.requests)
        self.assertEqual(seeds, [5, 5, 5, 6, 6, 6])
        self.assertTrue(all(r["body"]["n"] == 1 for e in self.p + self.d for r in e.requests))
        events = stream(self.g.port, COMPLETIONS, completion([[500, 7, 8], [500, 9]], max_tokens=5, stream=True,
                                                             stream_options={"include_usage": True}))
        self.assertEqual(len({e["id"] for e in events}), 1)
        for i, ids in enumerate([[500, 7, 8], [500, 9]]):
            text = "".join(c["text"] for e in events for c in e["choices"] if c["index"] == i)
            self.assertEqual(text, expected(completion(ids, max_tokens=5)))
        usage = [e["usage"] for e in events if e.get("usage")]
        self.assertEqual(usage, [{"prompt_tokens": 5, "total_tokens": 15, "completion_tokens": 10}])
        two = self.post(self.g, chat(n=2, max_tokens=4)).json()
        self.assertEqual([c["index"] for c in two["choices"]], [0, 1])
        self.assertEqual(two["usage"]["prompt_tokens"], len(encode_chat(chat()["messages"])))
        wait_until(lambda: len(self.g.records()) == 3, "the access log has three lines")
        self.assertEqual([(r["parts"], r["prompt_tokens"], r["completion_tokens"], r["cached_tokens"])
                          for r in self.g.records()],
                         [(6, count, 36, 9), (2, 5, 10, 6), (2, two["usage"]["prompt_tokens"], 8, 3)])
        self.assert_quiet(self.g)

    def test_a_refusal_is_passed_on_verbatim(self):
        words = b'{"error":{"message":"no such model","type":"NotFoundError","param":"model","code":404}}'
        for where, engines in (("prefill", self.p), ("decode", self.d)):
            for e in engines:
                e.faults = [{"status": 404, "body": words, "headers": [("x-reason", "model")], "always": True,
                             "when": lambda r: where == "prefill" or r["max_tokens"] != 1}]
            for body in (chat(), chat(stream=True)):
                before = sum(len(e.requests) for e in engines)
                r = self.post(self.g, body, status=404)
                self.assertEqual(r.body, words)
                self.assertEqual(r.header("x-reason"), "model")
            for e in engines:
                e.faults = []
        # A decoder's refusal leaves KV at the prefiller: it is fetched by a leg for nobody.
        self.assert_quiet(self.g)

    def test_bad_bodies_are_refused_in_the_engines_shape(self):
        for raw in (b"", b"[1,2]", b"{not json", b'{"a":1}}', b'{"messages":' + b"[" * 200):
            with Connection(self.g.port) as c:
                c.request("POST", CHAT, raw)
                r = c.response()
            self.assertEqual(r.status, 400)
            self.assertEqual(r.json()["error"]["code"], 400)
        self.assertEqual(self.post(self.g, completion(use_beam_search=True), status=400).json()["error"]["code"], 400)
        self.assertEqual(sum(len(e.requests) for e in self.p + self.d), 0)
        self.assert_quiet(self.g)

    def test_the_load_is_spread_and_ties_rotate(self):
        for _ in range(8):
            self.post(self.g, chat(max_tokens=2))
        self.assertEqual([len(e.requests) for e in self.p + self.d], [4, 4, 4, 4])

    def test_figures_tell_what_happened(self):
        for stream_it in (False, True):
            self.ask(self.g, chat(stream=stream_it))
        self.assertEqual(self.g.count("requests_total", code="200"), 2)
        self.assertEqual(self.g.count("legs_total", role="prefill", end="done"), 2)
        self.assertEqual(self.g.count("legs_total", role="decode", end="done"), 2)
        self.assertEqual(self.g.count("completion_tokens_total"), 48)
        self.assertEqual(self.g.count("handoff_seconds_count"), 1)  # a whole answer's first byte is its last token's
        wait_until(lambda: len(self.g.records()) == 2, "the access log has two lines")
        for r in self.g.records():
            self.assertEqual((r["status"], r["end"], r["completion_tokens"], r["cached_tokens"]), (200, "done", 24, 3))
            self.assertIn(r["prefill"]["instance"], [e.url for e in self.p])
            self.assertGreaterEqual(r["ms"], r["ttft_ms"])
        for line in http(self.g.port, "GET", "/metrics").body.decode().splitlines():
            self.assertRegex(line, r"^(# (HELP|TYPE) [a-z_]+ .+|[a-z_]+(\{[^}]*\})? [-+0-9.eEinfNa]+)$")

    def test_routes(self):
        g = self.g.port
        self.assertEqual(http(g, "GET", "/health").status, 200)
        self.assertEqual(http(g, "GET", "/ready").json(), {"ready": True, "prefill": 2, "decode": 2})
        self.assertEqual(http(g, "GET", "/healthcheck").json(),
                         {"status": "ok", "prefill_instances": 2, "decode_instances": 2, "request_num": 0})
        self.assertEqual(http(g, "GET", "/v1/models").json()["data"][0]["id"], "fake")
        self.assertEqual(http(g, "POST", "/detokenize", {"model": "fake", "tokens": [104, 105]}).json(), {"prompt": "hi"})
        self.assertEqual(http(g, "POST", "/reset_prefix_cache").status, 200)
        self.assertEqual([e.reset_calls for e in self.p + self.d], [1, 1, 1, 1])
        self.d[0].health = 500
        self.assertEqual(http(g, "POST", "/reset_prefix_cache").json(), {"failed": [self.d[0].url]})
        self.d[0].health = 200
        self.assertEqual((http(g, "GET", "/nope").status, http(g, "GET", CHAT).status), (404, 405))

    def test_small_calls_are_no_legs(self):
        ledger, p, d = self.engines(1, 1)
        with Gateway(p, d, "--instance-cap", "1") as g, Connection(g.port) as c:
            d[0].token_time = 60
            c.request("POST", CHAT, chat())
            wait_until(lambda: d[0].running == 1, "the decoder has all it may")
            self.assertEqual(http(g.port, "GET", "/v1/models").status, 200)
            self.assertEqual(http(g.port, "GET", "/version").json(), {"version": "fake"})
            self.assertEqual(http(g.port, "POST", "/detokenize", {"model": "fake", "tokens": [104]}).status, 200)
            self.assertEqual(g.count("instance_picks_total"), 2)

    def test_membership_changes_at_run_time(self):
        more = Engine("decode", self.ledger)
        self.addCleanup(more.stop)
        r = http(self.g.port, "POST", "/instances/add", {"type": "decode", "instances": [more.url]})
        self.assertEqual(r.status, 200)
        self.assertIn(more.url, r.json()["current_decode_instances"])
        wait_until(self.g.all_healthy, "the new one is healthy")
        for e in self.d:
            self.assertEqual(http(self.g.port, "POST", "/instances/remove",
                                  {"type": "decode", "instances": e.url}).status, 200)
        self.ask(self.g, chat())
        self.assertEqual(len(more.requests), 1)
        self.assertEqual(http(self.g.port, "POST", "/instances/remove",
                              {"type": "decode", "instances": self.d[0].url}).status, 404)
        for bad in ({"type": "x", "instances": "a:1"}, {"type": "decode"}, {"type": "decode", "instances": ["[::1"]},
                    {"type": "decode", "instances": "\x1b[2Jred=127.0.0.1:9"},
                    {"type": "decode", "instances": "a\nb=127.0.0.1:9"}):
            self.assertEqual(http(self.g.port, "POST", "/instances/add", bad).status, 400)

    def test_an_instance_that_is_removed_ends_its_streams(self):
        for e in self.d:
            e.token_time = 0.02
        with Connection(self.g.port) as c:
            c.request("POST", CHAT, chat(stream=True))
            events = c.events()
            first = next(events)
            for e in self.d:
                http(self.g.port, "POST", "/instances/remove", {"type": "decode", "instances": e.url})
            rest = list(events)
        self.assertEqual(rest[-1], "[DONE]")
        self.assertEqual(text_of([json.loads(e) for e in [first, *rest[:-1]]]), expected(chat()))
        wait_until(lambda: http(self.g.port, "GET", "/instances").json()["decode"] == [], "both have left")


class Life(GatewayCase):
    def test_flags_of_the_example_proxy_work_unchanged(self):
        ledger, p, d = self.engines(1, 1)
        port = free_port()
        with Process([BATON, "gateway", "--port", str(port), "--host", "localhost", "--prefiller-hosts-num", "1",
                      "--prefiller-hosts", "127.0.0.1", "--prefiller-ports-inc", "1", "--prefiller-ports",
                      str(p[0].port), "--decoder-hosts", "127.0.0.1", "--decoder-ports", str(d[0].port),
                      "--max-retries", "3", "--retry-delay", "0.001", "--workers", "1"]) as g:
            wait_until(lambda: answers(port, "/ready"), "ready")
            self.assertEqual(http(port, "POST", CHAT, chat()).status, 200)
        self.assertEqual((len(p[0].requests), len(d[0].requests)), (1, 1))

    def test_a_cluster_file_names_the_instances(self):
        ledger, p, d = self.engines(1, 0)
        port = free_port()
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "c.yaml")
            with open(path, "w") as f:
                f.write("model: {path: m}\nengine: {kind: embedded}\nplatform: cpu\nnodes:\n  n: {ip: 127.0.0.1}\n"
                        f"decode: {{groups: [[n]], dp: 1, tp: 1, api_port: {p[0].port}}}\n"
                        f"gateway: {{node: n, host: 127.0.0.1, port: {port}, policy: round_robin}}\n")
            with Process([BATON, "gateway", path, "--log-level", "debug"]) as g:
                wait_until(lambda: answers(port, "/ready") or not g.alive(), "ready")
                r = http(port, "POST", CHAT, chat())
                self.assertEqual((r.status, r.header("X-Baton-Decode")), (200, "n.0"))
            code, out, err = baton("gateway", os.path.join(folder, "nope.yaml"))
            self.assertEqual(code, 2)

    def test_wrong_use_is_explained(self):
        for args, word in ((["--policy", "best"], "least_load"), (["--prefiller-hosts", "a", "b", "--prefiller-ports", "1"],
                           "2 hosts and 1 ports"), (["--decode", "http://a/b"], "no path"), (["--polcy", "x"], "--policy"),
                           (["--decode", "a:1", "a:1"], "twice"), (["--access-log", "/nope/x"], "/nope/x")):
            code, out, err = baton("gateway", *args)
            self.assertEqual(code, 2 if word != "/nope/x" else code, err)
            self.assertIn(word, err)

    def test_a_port_that_is_taken_is_named(self):
        with Connection(Engine("decode").port) as c:
            port = c.socket.getpeername()[1]
            code, out, err = baton("gateway", "--port", str(port))
        self.assertNotEqual(code, 0)
        self.assertIn(str(port), err)

    def test_plain_serves_from_whole_engines(self):
        e = [Engine("decode") for _ in range(2)]
        for x in e:
            self.addCleanup(x.stop)
        with Gateway([], e) as g:
            for body in (chat(), chat(stream=True), completion(["a", "b"]), completion(n=2)):
                path = CHAT if "messages" in body else COMPLETIONS
                if body.get("stream"):
                    self.assertEqual(text_of(stream(g.port, path, body)), expected(body))
                else:
                    self.assertEqual(http(g.port, "POST", path, body).status, 200)
            self.assertTrue(all("kv_transfer_params" not in r["body"] for x in e for r in x.requests))
            self.assertEqual(sum(len(x.requests) for x in e), 4)
            self.assert_quiet(g)

    def test_data_parallel_ranks_are_instances_of_their_own(self):
        ledger, p, d = self.engines(1, 1)
        port = free_port()
        with Gateway([p[0].url], [f"{d[0].url}@0", f"dee={d[0].url}@1"]) as g:
            names = [self.post(g, chat()).header("X-Baton-Decode") for _ in range(4)]
            self.assertEqual(sorted(set(names)), [f"{d[0].url}@0", "dee"])
            self.assertEqual(sorted(r["fields"]["x-data-parallel-rank"] for r in d[0].requests), ["0", "0", "1", "1"])

    def test_the_body_limit_holds(self):
        ledger, p, d = self.engines(1, 1)
        with Gateway(p, d, "--max-payload-size", "1000", "--max-prompts", "4") as g:
            self.assertEqual(http(g.port, "POST", CHAT, chat("x" * 2000)).status, 413)
            with Connection(g.port) as c:
                c.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                       b"800\r\n" + b"x" * 0x800 + b"\r\n")
                self.assertEqual(c.response().status, 413)
            self.assertEqual(self.post(g, completion(["a"] * 5), status=400).json()["error"]["code"], 400)
            self.assertEqual(self.post(g, completion(n=1000000000), status=400).json()["error"]["code"], 400)
            self.assert_quiet(g)

    def test_more_clients_than_descriptors_take_their_turns(self):
        ledger, p, d = self.engines(1, 1, token_time=0.05)
        with Gateway(p, d, "--health-check-interval-secs", "0.05", files=256) as g:
            clients = [Connection(g.port) for _ in range(200)]
            for c in clients:
                c.request("POST", CHAT, chat(max_tokens=8), {"Connection": "close"})
            for c in clients:
                with c:
                    self.assertEqual(c.response().status, 200)
            self.assertFalse("is suspect" in g.output(), "an instance was blamed")
            self.assertEqual(g.count("retries_total"), 0)
            self.assert_quiet(g)

    def test_the_admin_key_guards_the_admin_routes(self):
        ledger, p, d = self.engines(1, 1)
        with Gateway(p, d, "--admin-key", "secret", wait_ready=False) as g:
            wait_until(lambda: answers(g.port, "/ready"), "ready")
            for headers, status in (({}, 401), ({"Authorization": "Bearer secre"}, 401),
                                    ({"Authorization": "Bearer secrets"}, 401), ({"Authorization": "Bearer secret"}, 200)):
                self.assertEqual(http(g.port, "POST", "/instances/add", {"type": "decode", "instances": d[0].url},
                                      headers).status, status)
            self.assertEqual(self.post(g, chat()).status, 200)

    def test_the_admin_routes_may_have_a_listener_of_their_own(self):
        ledger, p, d = self.engines(1, 1)
        admin = free_port()
        with Gateway(p, d, "--admin-port", str(admin), "--admin-key", "secret", wait_ready=False) as g:
            wait_until(lambda: answers(g.port, "/ready"), "ready")
            key = {"Authorization": "Bearer secret"}
            guarded = ["/instances", "/debug/requests", "/debug/load", "/list_workers", "/workers"]
            for path in guarded + ["/ui"]:
                self.assertEqual(http(g.port, "GET", path, headers=key).status, 404, path)
            for path in ("/instances/add", "/add_worker", "/reset_prefix_cache"):
                self.assertEqual(http(g.port, "POST", path, {}, key).status, 404, path)
            for path in guarded:
                self.assertEqual(http(admin, "GET", path).status, 401, path)
                self.assertEqual(http(admin, "GET", path, headers=key).status, 200, path)
            self.assertEqual(http(admin, "GET", "/ui").status, 200)
            for port in (g.port, admin):
                for path in ("/health", "/ready", "/metrics", "/healthcheck"):
                    self.assertEqual(http(port, "GET", path).status, 200)
            self.assertEqual(http(admin, "POST", CHAT, chat(), key).status, 404)
            self.assertEqual(http(admin, "GET", "/v1/models", headers=key).status, 404)
            self.assertEqual(self.post(g, chat()).status, 200)
            # Two of them at once: the second one says what is in its way, and ends.
            code, _, said = baton("gateway", "--port", str(free_port()), "--admin-port", str(admin))
            self.assertEqual((code, f"127.0.0.1:{admin}" in said), (1, True), said)
            g.stop()
            self.assertEqual(g.child.returncode, 0)
        for args, word in ((["--admin-host", "::1"], "--admin-port"),
                           (["--port", "7000", "--admin-port", "7000"], "two ports")):
            code, _, said = baton("gateway", *args)
            self.assertEqual((code, word in said), (2, True), said)

    def test_the_first_worker_tells_whether_it_is_a_whole_engine(self):
        """Started without instances, as discovery does it."""
        for kind, whole in (("", True), ("&worker_type=prefill", False)):
            ledger, p, d = self.engines(1, 1)
            with Gateway([], [], wait_ready=False) as g:
                wait_until(lambda: answers(g.port), "it listens")
                first = (d if whole else p)[0]
                self.assertEqual(http(g.port, "POST", f"/add_worker?url={first.url}{kind}").status, 200)
                more = "" if whole else "&worker_type=decode"
                self.assertEqual(http(g.port, "POST", f"/add_worker?url={d[0].url}{more}").status, 200)
                wait_until(lambda: answers(g.port, "/ready"), "ready")
                self.assertEqual([len(p[0].requests) > 0, self.post(g, chat()).status], [False, 200])
                self.assertEqual(len(p[0].requests) > 0, not whole)

    def test_the_key_of_the_environment_goes_where_a_client_sends_none(self):
        for args, env in ((["--api-key", "k1"], {"OPENAI_API_KEY": "k2"}), ([], {"OPENAI_API_KEY": "k1"})):
            ledger, p, d = self.engines(1, 1)
            probes = []
            d[0].health = lambda a, seen=probes: (seen.append(a.fields.get("authorization")), a.answer(200, b""))
            with Gateway(p, d, *args, env=env) as g:
                self.post(g, chat())
                self.post(g, chat(), headers={"Authorization": "Bearer mine"})
                http(g.port, "GET", "/v1/models")
            self.assertEqual([r["fields"]["authorization"] for r in d[0].requests], ["Bearer k1", "Bearer mine"])
            self.assertEqual(set(probes), {"Bearer k1"})
        ledger, p, d = self.engines(1, 1)
        with Gateway(p, d, env={"OPENAI_API_KEY": ""}) as g:
            self.post(g, chat())
        self.assertNotIn("authorization", d[0].requests[0]["fields"])

    def test_sigterm_lets_streams_end(self):
        ledger, p, d = self.engines(1, 1, token_time=0.03)
        g = Gateway(p, d)
        self.addCleanup(g.stop)
        with Connection(g.port) as c:
            c.request("POST", CHAT, chat(stream=True))
            events = c.events()
            seen = [next(events)]
            g.signal(signal.SIGTERM)
            wait_until(lambda: not answers(g.port), "nobody is let in")
            seen += list(events)
        self.assertEqual(seen[-1], "[DONE]")
        self.assertEqual(text_of([json.loads(e) for e in seen[:-1]]), expected(chat()))
        self.assertEqual(g.wait(10), 0)
        self.assertEqual(ledger.stranded() + ledger.violations, [])
        wait_until(lambda: not d[0].connections and not p[0].connections, "every connection is closed")

    def test_what_outlives_the_drain_timeout_is_cut(self):
        ledger, p, d = self.engines(1, 1, token_time=60)
        g = Gateway(p, d, "--drain-timeout", "0.3")
        self.addCleanup(g.stop)
        with Connection(g.port) as c:
            c.request("POST", CHAT, chat(stream=True))
            wait_until(lambda: d[0].running == 1, "decoding")
            g.signal(signal.SIGTERM)
            self.assertEqual(g.wait(10), 0)
            with self.assertRaises((EOFError, OSError)):
                list(c.events()), c.read_exactly(1)
        wait_until(lambda: d[0].running == 0, "the decoder is free")

    def test_a_second_sigterm_ends_at_once(self):
        ledger, p, d = self.engines(1, 1, token_time=10)
        g = Gateway(p, d)
        self.addCleanup(g.stop)
        with Connection(g.port) as c:
            c.request("POST", CHAT, chat(stream=True))
            wait_until(lambda: d[0].running == 1, "decoding")
            g.signal(signal.SIGTERM)
            wait_until(lambda: "SIGTERM" in g.output(), "told")
            g.signal(signal.SIGTERM)
            self.assertEqual(g.wait(10), 0)


if __name__ == "__main__":
    unittest.main()
