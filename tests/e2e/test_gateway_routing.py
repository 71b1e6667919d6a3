"""How the gateway chooses and admits: who gets which request, in which order, and who is sent away."""
import json
import os
import tempfile
import threading
import unittest
from urllib.parse import quote

from fault_engine import Engine
from gateway_case import COMPLETIONS, Gateway, GatewayCase, chat, completion, expected, text_of
from harness import BATON, HUP, MODEL, TERM, Connection, Process, answers, free_port, http, wait_until


class Choosing(GatewayCase):
    def decoder_of(self, g, body, headers=None):
        return self.post(g, body, headers=headers).header("X-Baton-Decode")

    def test_a_conversation_goes_on_where_its_beginning_is_cached(self):
        ledger, p, d = self.engines(4, 1)
        with Gateway(p, d, "--policy", "prefix_aware") as g:
            seen = {}
            for turn in range(3):
                for who in range(8):
                    said = [{"role": "user", "content": f"{who} asks question {n}, which is not short"}
                            for n in range(turn + 1)]
                    prefiller = self.post(g, {**chat(), "messages": said}).header("X-Baton-Prefill")
                    self.assertEqual(seen.setdefault(who, prefiller), prefiller)
            self.assertEqual(len(set(seen.values())), 4)  # new ones are spread
            self.assert_quiet(g)
            self.assertEqual(http(g.port, "POST", "/reset_prefix_cache").status, 200)

    def test_equal_prompts_go_to_one_instance_however_short(self):
        _, _, d = self.engines(0, 2)
        with Gateway([], d, "--policy", "cache_aware") as g:
            body = completion("repeated prompt for cache")
            self.assertEqual(len({self.decoder_of(g, body) for _ in range(12)}), 1)
            self.assertEqual({self.decoder_of(g, completion(f"{i} is another prompt")) for i in range(4)},
                             {d[0].url, d[1].url})

    def test_a_session_stays_with_its_instance(self):
        _, _, d = self.engines(0, 5)
        with Gateway([], d, "--policy", "consistent_hash") as g:
            at = {k: self.decoder_of(g, completion(f"{k}"), {"X-Session-ID": f"s{k}"}) for k in range(20)}
            for k in range(20):
                self.assertEqual(self.decoder_of(g, chat(f"again {k}"), {"x-session-id": f"s{k}"}), at[k])
            self.assertGreater(len(set(at.values())), 2)
        # After a restart, and in any other gateway, it is the same one.
        with Gateway([], d[::-1], "--policy", "consistent_hash", "--session-header", "X-Who") as g:
            for k in range(20):
                self.assertEqual(self.decoder_of(g, completion(), {"X-Who": f"s{k}"}), at[k])
            self.assertEqual(http(g.port, "POST", COMPLETIONS, completion()).status, 200)

    def test_what_others_have_with_an_instance_is_load_while_it_is_news(self):
        _, _, d = self.engines(0, 2)
        d[0].metrics = 'vllm:num_requests_running{engine="0"} 4.0\nvllm:num_requests_waiting{engine="0"} 2.0\n'
        with Gateway([], d, "--load-check-interval-secs", "0.2", "--health-check-interval-secs", "0.1") as g:
            def foreign():
                return {i["instance"]: i["foreign_requests"] for i in http(g.port, "GET", "/instances").json()["decode"]}
            wait_until(lambda: foreign() == {d[0].url: 6, d[1].url: 0}, "its metrics were read")
            self.assertEqual({self.decoder_of(g, completion()) for _ in range(5)}, {d[1].url})
            d[0].metrics = None
            wait_until(lambda: foreign()[d[0].url] == 0, "old news are no news")
            self.assertEqual({self.decoder_of(g, completion()) for _ in range(5)}, {d[0].url, d[1].url})


class Admitting(GatewayCase):
    """One prefiller and one decoder that take one leg at a time; the first request holds them until it is let go."""

    def setUp(self):
        self.ledger, self.p, self.d = self.engines(1, 1)
        self.go = threading.Event()
        self.addCleanup(self.go.set)

    def hold(self, g):
        """The gateway is full: a request is with the prefiller."""
        self.p[0].faults = [{"params": lambda x: self.go.wait() and x}]
        c = Connection(g.port)
        self.addCleanup(c.close)
        c.request("POST", COMPLETIONS, completion("first"))
        wait_until(lambda: self.p[0].running == 1, "the prefiller works")
        return c

    def queue(self, g, prompt, **headers):
        waiting = g.count("requests_waiting")
        c = Connection(g.port)
        self.addCleanup(c.close)
        c.request("POST", COMPLETIONS, completion(prompt), headers={k.replace("_", "-"): v for k, v in headers.items()})
        wait_until(lambda: g.count("requests_waiting") == waiting + 1, f"{prompt} waits")
        return c

    def order(self):
        return [r["body"]["prompt"] for r in self.p[0].requests]

    def test_no_more_run_than_may_and_the_others_wait(self):
        with Gateway(self.p, self.d, "--max-concurrent-requests", "1") as g:
            clients = [self.hold(g)] + [self.queue(g, f"number {i}") for i in range(5)]
            self.go.set()
            for c in clients:
                self.assertEqual(c.response().status, 200)
            self.assertEqual(self.order(), ["first"] + [f"number {i}" for i in range(5)])
            self.assert_quiet(g)
            self.assertTrue(all(r["queue_ms"] > 0 for r in g.records()[1:]))

    def test_a_full_queue_is_429_with_retry_after(self):
        for args in (["--max-concurrent-requests", "1"], ["--instance-cap", "1"]):
            with self.subTest(args=args), Gateway(self.p, self.d, *args, "--queue-size", "1") as g:
                first, second = self.hold(g), self.queue(g, "second")
                r = self.post(g, completion("third"), status=429)
                self.assertGreaterEqual(int(r.header("Retry-After")), 1)
                self.assertIn("busy", r.json()["error"]["message"])
                self.assertEqual(g.count("sent_away_total"), 1)
                self.go.set()
                self.assertEqual([c.response().status for c in (first, second)], [200, 200])
                self.assert_quiet(g)
                self.go.clear()
        self.assertNotIn("third", self.order())

    def test_waiting_to_be_let_in_ends_with_408(self):
        with Gateway(self.p, self.d, "--max-concurrent-requests", "1", "--queue-timeout-secs", "0.3") as g:
            first = self.hold(g)
            r = self.post(g, completion("second"), status=408)
            self.assertIsNotNone(r.header("Retry-After"))
            self.assertEqual(g.count("queue_timeouts_total"), 1)
            self.go.set()
            self.assertEqual(first.response().status, 200)
            self.assertEqual(self.order(), ["first"])
            self.assert_quiet(g)

    def test_one_that_leaves_the_queue_is_forgotten(self):
        with Gateway(self.p, self.d, "--max-concurrent-requests", "1", "--queue-size", "1") as g:
            first, second = self.hold(g), self.queue(g, "second")
            second.reset()
            wait_until(lambda: g.count("requests_waiting") == 0, "it has left")
            third = self.queue(g, "third")
            self.go.set()
            self.assertEqual([c.response().status for c in (first, third)], [200, 200])
            self.assertEqual(self.order(), ["first", "third"])
            self.assert_quiet(g)

    def test_tenants_share_and_urgent_ones_go_first(self):
        with Gateway(self.p, self.d, "--max-concurrent-requests", "1", "--tenant-header", "X-Tenant",
                     "--priority-header", "X-Priority") as g:
            clients = [self.hold(g)]
            clients += [self.queue(g, f"a{i}", X_Tenant="a") for i in range(3)]
            clients += [self.queue(g, f"b{i}", X_Tenant="b") for i in range(2)]
            clients += [self.queue(g, "late", X_Tenant="b", X_Priority="5"),
                        self.queue(g, "urgent", X_Tenant="a", X_Priority="-1"),
                        self.queue(g, "odd", X_Tenant="c", X_Priority="soon")]
            self.go.set()
            for c in clients:
                self.assertEqual(c.response().status, 200)
            order = self.order()
            self.assertEqual(order[:2] + order[-1:], ["first", "urgent", "late"])
            self.assertEqual(sorted(order[2:5]), ["a0", "b0", "odd"])  # each tenant once, then again
            self.assertEqual(order[5:8], ["a1", "b1", "a2"])
            self.assert_quiet(g)

    def test_a_newcomer_takes_the_place_of_whoever_has_most(self):
        with Gateway(self.p, self.d, "--max-concurrent-requests", "1", "--tenant-header", "X-Tenant",
                     "--queue-size", "2") as g:
            first, kept, dropped = self.hold(g), self.queue(g, "a0", X_Tenant="a"), self.queue(g, "a1", X_Tenant="a")
            other = Connection(g.port)
            self.addCleanup(other.close)
            other.request("POST", COMPLETIONS, completion("b0"), headers={"X-Tenant": "b"})
            self.assertEqual(dropped.response().status, 429)
            self.go.set()
            self.assertEqual([c.response().status for c in (first, kept, other)], [200, 200, 200])
            self.assert_quiet(g)

    def test_a_prompt_that_no_instance_takes_is_refused_before_it_is_sent(self):
        for e in self.p + self.d:
            e.max_model_len = 100
        with Gateway(self.p, self.d) as g:
            for prompt in (list(range(1, 102)), [[1, 2], list(range(1, 102))]):
                e = self.post(g, completion(prompt), status=400).json()["error"]
                self.assertIn("maximum context length is 100 tokens. However, your prompt contains 101", e["message"])
                self.assertEqual(e["param"], "input_tokens")
            self.assertEqual(self.p[0].requests, [])
            self.post(g, completion(list(range(1, 77))))
            self.assert_quiet(g)

    def test_sigterm_lets_those_that_wait_finish(self):
        with Gateway(self.p, self.d, "--max-concurrent-requests", "1") as g:
            clients = [self.hold(g), self.queue(g, "second")]
            g.signal(TERM)
            self.go.set()
            self.assertEqual([c.response().status for c in clients], [200, 200])
            self.assertEqual(g.wait(), 0)


CLUSTER = """\
model: {{path: {model}, served_name: fake}}
engine: {{kind: embedded}}
platform: cpu
nodes:
{nodes}
decode: {{groups: [{groups}], host: 127.0.0.1, api_port: {first}}}
gateway: {{node: n0, host: 127.0.0.1, port: {port}}}
"""


class Membership(GatewayCase):
    """The cluster file says who is behind the gateway, also when it changes."""

    def setUp(self):
        self.d = self.neighbours(3)
        self.dir = tempfile.TemporaryDirectory(prefix="baton-e2e-")
        self.addCleanup(self.dir.cleanup)
        self.file = os.path.join(self.dir.name, "cluster.yaml")
        self.port = free_port()

    def neighbours(self, count):
        """Engines on ports that follow one another, as a cluster file counts them."""
        while True:
            first, engines = free_port(), []
            try:
                for i in range(count):
                    engines.append(Engine("decode", port=first + i))
                    self.addCleanup(engines[-1].stop)
                return engines
            except OSError:
                continue

    def text(self, engines):
        nodes = [f"n{i}" for i in range(len(engines))]
        return CLUSTER.format(model=MODEL, nodes="\n".join(f"  {n}: {{ip: 127.0.0.1}}" for n in nodes), port=self.port,
                              first=engines[0].port, groups=", ".join(f"[{n}]" for n in nodes))

    def write(self, text):
        """As editors do it: another file in its place."""
        with open(self.file + "~", "w", encoding="utf-8") as f:
            f.write(text)
        os.rename(self.file + "~", self.file)

    def gateway(self):
        g = Process([BATON, "gateway", self.file, "--health-check-interval-secs", "0.2"])
        self.addCleanup(g.stop)
        wait_until(lambda: answers(self.port) or not g.alive(), "it listens")
        self.assertTrue(g.alive(), g.output())
        return g

    def members(self, state=None):
        got = http(self.port, "GET", "/instances").json()["decode"]
        return sorted(int(i["instance"].split(":")[1]) for i in got if state in (None, i["state"]))

    def wait_for(self, engines, state="healthy"):
        want = sorted(e.port for e in engines)
        wait_until(lambda: self.members(state) == want, f"{want} are {state}, not {self.members()}")

    def test_a_changed_file_is_taken_up_and_streams_end_first(self):
        a, b, c = self.d
        a.token_time = 0.05
        self.write(self.text([a]))
        g = self.gateway()
        self.wait_for([a])
        by_hand = Engine("decode")
        self.addCleanup(by_hand.stop)
        self.assertEqual(http(self.port, "POST", "/instances/add",
                              {"type": "decode", "instances": by_hand.url}).status, 200)
        self.wait_for([a, by_hand])
        body = completion(stream=True, max_tokens=400, ignore_eos=True)
        by_hand.health = 503  # so that the stream is with the first
        wait_until(lambda: self.members("ejected"), "it is ejected")
        with Connection(self.port) as client:
            client.request("POST", COMPLETIONS, body)
            events = client.events()
            first = next(events)
            self.write(self.text([b, c]))
            self.wait_for([b, c])
            self.wait_for([a], "leaving")
            a.token_time = 0
            rest = [json.loads(e) for e in [first, *events] if e != "[DONE]"]
        self.assertEqual(text_of(rest), expected(body))
        wait_until(lambda: self.members() == sorted([b.port, c.port, by_hand.port]), "it has left")
        self.assertIn("2 instances", g.output())

    def test_a_file_that_is_wrong_changes_nothing(self):
        a, b, _ = self.d
        self.write(self.text([a]))
        g = self.gateway()
        self.wait_for([a])
        for n, bad in enumerate(("nodes: [", self.text([a]).replace("gateway:", "gatway:"),
                                 self.text([a]) + "prefill: {groups: [[n1]]}\n"), 1):
            self.write(bad)
            wait_until(lambda n=n: g.output().count("stay as they are") == n, f"mistake {n} is told")
            self.assertEqual(self.members(), [a.port])
        os.unlink(self.file)
        self.write(self.text([b]))
        self.wait_for([b])

    def test_sighup_reads_the_file_again(self):
        a, b, _ = self.d
        self.write(self.text([a, b]))
        g = self.gateway()
        self.wait_for([a, b])
        self.assertEqual(http(self.port, "POST", "/instances/remove", {"type": "decode", "instances": a.url}).status, 200)
        wait_until(lambda: self.members() == [b.port], "one is gone")
        g.signal(HUP)
        self.wait_for([a, b])

    def test_sighup_without_a_file_is_survived(self):
        with Gateway([], self.d[:1]) as g:
            g.signal(HUP)
            wait_until(lambda: "no cluster file" in g.output(), "it says so")
            self.ask(g, completion())


class AsVllmRouter(GatewayCase):
    """Its flags and its routes for membership."""

    def urls(self, g):
        return http(g.port, "GET", "/list_workers").json()["urls"]

    def test_whole_engines_come_and_go(self):
        _, _, d = self.engines(0, 2)
        a, b = (f"http://{e.url}" for e in d)
        with Gateway([], [], "--worker-urls", a, "--policy", "cache_aware", "--prometheus-port", "29000") as g:
            self.assertIn("--prometheus-port", g.output())
            self.assertEqual(self.urls(g), [a])
            r = http(g.port, "POST", f"/add_worker?url={quote(b, safe='')}")
            self.assertEqual((r.status, r.body.decode()), (200, f"Successfully added worker: {b}"))
            self.assertEqual(self.urls(g), [a, b])
            self.assertEqual(http(g.port, "POST", f"/remove_worker?url={a}").status, 200)
            wait_until(g.all_healthy, "the new one answers")
            self.assertEqual(self.post(g, completion()).header("x-worker"), d[1].url)
            self.assertEqual((len(d[0].requests), len(d[1].requests)), (0, 1))
            self.assertEqual(http(g.port, "POST", f"/remove_worker?url={a}").status, 404)
            for path in ("/add_worker", "/add_worker?url=", f"/add_worker?url={a}&worker_type=prefill"):
                self.assertEqual(http(g.port, "POST", path).status, 400, path)
            self.assertEqual(http(g.port, "GET", "/liveness").status, 200)
            self.assertEqual(http(g.port, "GET", "/readiness").status, 200)

    def test_workers_are_a_resource(self):
        ledger, p, d = self.engines(1, 2)
        with Gateway([], [], "--vllm-pd-disaggregation", "--prefill", f"http://{p[0].url}", "8998", "--decode",
                     f"http://{d[0].url}", "--decode", f"http://{d[1].url}", "--admin-key", "k", wait_ready=False) as g:
            key = {"Authorization": "Bearer k"}
            wait_until(lambda: answers(g.port), "it listens")
            self.assertEqual(http(g.port, "GET", "/workers").status, 401)
            wait_until(lambda: all(w["is_healthy"] for w in http(g.port, "GET", "/workers", None, key).json()["workers"]),
                       "all are healthy")
            got = http(g.port, "GET", "/workers", None, key).json()
            self.assertEqual([(w["url"], w["worker_type"], w.get("bootstrap_port")) for w in got["workers"]],
                             [(f"http://{p[0].url}", "prefill", 8998), (f"http://{d[0].url}", "decode", None),
                              (f"http://{d[1].url}", "decode", None)])
            self.assertEqual((got["total"], got["stats"]),
                             (3, {"prefill_count": 1, "decode_count": 2, "regular_count": 0}))
            one = "/workers/" + quote(f"http://{d[0].url}", safe="")
            self.assertEqual(http(g.port, "GET", one, None, key).json()["worker_type"], "decode")
            self.assertTrue(http(g.port, "DELETE", one, None, key).json()["success"])
            self.assertEqual(http(g.port, "GET", one, None, key).json()["code"], "WORKER_NOT_FOUND")
            self.assertEqual(http(g.port, "DELETE", one, None, key).status, 404)
            again = {"url": f"http://{d[0].url}", "worker_type": "decode"}
            self.assertEqual(http(g.port, "POST", "/workers", {"url": again["url"]}, key).status, 400)
            self.assertTrue(http(g.port, "POST", "/workers", again, key).json()["success"])
            self.assertEqual(http(g.port, "GET", "/workers", None, key).json()["total"], 3)
            self.post(g, completion())
            self.assertEqual(ledger.violations, [])

    def test_each_rank_behind_an_address_gets_its_share(self):
        """Prefill and decode in worlds of different sizes; the prefiller gives no parameters, as it may there."""
        _, p, d = self.engines(1, 1)
        p[0].faults = [{"no_params": True, "always": True}]
        with Gateway([], [], "--vllm-pd-disaggregation", "--policy", "round_robin",
                     "--prefill", f"http://{p[0].url}", "none", "--decode", f"http://{d[0].url}",
                     "--prefill-data-parallel-size", "4", "--decode-data-parallel-size", "2") as g:
            for _ in range(8):
                self.post(g, completion(max_tokens=7))
            for e, size, tokens in ((p[0], 4, 1), (d[0], 2, 7)):
                self.assertEqual(sorted(int(r["fields"]["x-data-parallel-rank"]) for r in e.requests),
                                 sorted(list(range(size)) * (8 // size)))
                self.assertEqual({r["body"]["max_tokens"] for r in e.requests}, {tokens})
            added = f"http://127.0.0.1:{free_port()}"
            self.assertEqual(http(g.port, "POST", "/workers", {"url": added, "worker_type": "decode"}).status, 200)
            self.assertEqual(self.urls(g)[-2:], [added + "@0", added + "@1"])
            self.assertEqual(http(g.port, "POST", f"/remove_worker?url={added}").status, 200)
            self.assertEqual(len(self.urls(g)), 6)


if __name__ == "__main__":
    unittest.main()
