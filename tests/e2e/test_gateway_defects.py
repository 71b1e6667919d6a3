"""What example proxies get wrong and no other test shows (docs/proxy-defects.md has the list)."""
import json
import os
import ssl
import subprocess
import tempfile
import unittest

from fault_engine import Engine, Ledger, encode, encode_chat
from gateway_case import CHAT, COMPLETIONS, Gateway, GatewayCase, chat, completion, expected, fail_first, in_threads, text_of
from harness import Connection, free_port, http, metric, stream, wait_until


class Answers(GatewayCase):
    def setUp(self):
        self.ledger, self.p, self.d = self.engines()
        self.g = Gateway(self.p, self.d)
        self.addCleanup(self.g.stop)

    def test_an_answer_says_what_it_is(self):
        for body in (chat(), completion(), completion(["a", "b"]), chat(n=2)):
            for more, kind in (({}, "application/json"), ({"stream": True}, "text/event-stream")):
                r = self.post(self.g, {**body, **more})
                self.assertEqual(r.header("Content-Type").split(";")[0], kind)
        self.assertEqual(self.post(self.g, completion(use_beam_search=True), status=400).header("Content-Type"),
                         "application/json")

    def test_a_refusal_is_asked_for_once(self):
        """What one instance refuses, all refuse: no other is asked, nor the same one again."""
        for engines in (self.p, self.d):
            for status in (400, 401, 403, 404, 413, 422):
                def refused(request, decode=engines is self.d):
                    return not decode or request["max_tokens"] != 1
                for e in engines:
                    e.requests, e.faults = [], [{"status": status, "always": True, "when": refused}]
                self.post(self.g, chat(), status=status)
                self.assert_quiet(self.g)
                self.assertEqual(sum(refused(r["body"]) for e in engines for r in e.requests), 1)
            for e in engines:
                e.faults = []
        self.assertEqual(self.g.count("retries_total"), 0)
        self.assertTrue(self.g.all_healthy())

    def test_recomputed_is_never_seen_by_a_client(self):
        """However its event is cut, or joined with others, on the way; of each choice alone."""
        for cut in ({"join": 3}, {"join": 1000}, {"split": 7}, {"split": 100}):
            for make in (chat, completion) if "join" in cut else (chat,):
                body = make(stream=True)
                fail_first(self.d, {"recomputed": 9, **cut})
                r = self.post(self.g, body)
                self.assertNotIn(b"recomputed", r.body)
                events = [json.loads(x[6:]) for x in r.body.decode().split("\n\n")[:-2]]
                self.assertEqual(text_of(events), expected(body), cut)
        self.assertEqual(self.g.count("recomputed_total"), 6)
        self.assert_quiet(self.g)

    def test_every_choice_goes_on_of_its_own(self):
        """n choices, streamed and not: legs that are cut, given up or broken cost nobody anything."""
        for fault in ({"close": 9}, {"reset": 12}, {"recomputed": 5}):
            for make in (chat, completion):
                for more in ({}, {"stream": True, "stream_options": {"include_usage": True}}):
                    body = make(n=3, max_tokens=40, temperature=0, ignore_eos=True, **more)
                    for e in self.d:
                        e.faults = [dict(fault), dict(fault)]
                    path = CHAT if "messages" in body else COMPLETIONS
                    if more:
                        events = stream(self.g.port, path, body)
                        choices = [[c for e in events for c in e["choices"] if c["index"] == i] for i in range(3)]
                        texts = ["".join((c["delta"].get("content") or "") if "delta" in c else c["text"] for c in cs)
                                 for cs in choices]
                        self.assertEqual(len({e["id"] for e in events}), 1)
                        self.assertEqual([sum("role" in c.get("delta", ()) for c in cs) for cs in choices],
                                         [1 if make is chat else 0] * 3)
                        usage = [e["usage"] for e in events if e.get("usage")]
                        self.assertEqual(len(usage), 1)
                        usage = usage[0]
                    else:
                        answer = self.post(self.g, body).json()
                        texts = [c["message"]["content"] if "message" in c else c["text"] for c in answer["choices"]]
                        usage = answer["usage"]
                    self.assertEqual(texts, [expected(body)] * 3, (fault, body))
                    count = len(encode_chat(body["messages"]) if make is chat else encode(body["prompt"]))
                    self.assertEqual((usage["prompt_tokens"], usage["completion_tokens"]), (count, 120))
                    for e in self.d:
                        e.faults = []
                    wait_until(self.g.all_healthy, "all healthy again")
        self.assert_quiet(self.g, stranded=1000)

    def test_what_is_not_streamed_is_whole_after_a_failure(self):
        """With stop strings and logprobs: nothing had gone to the client, all of it is made anew."""
        alone = Engine("decode")
        self.addCleanup(alone.stop)
        for body in (chat(stop=["w1"]), completion(stop=" w6", max_tokens=64), chat(logprobs=True), completion(logprobs=1),
                     chat(presence_penalty=0.5), completion(echo=True)):
            path = CHAT if "messages" in body else COMPLETIONS
            want = http(alone.port, "POST", path, body).json()
            for fault in ({"close": 40}, {"recomputed": 3}):
                for e in self.d:
                    e.faults = [{**fault, "when": lambda r: r["max_tokens"] != 1}]
                got = self.post(self.g, body).json()
                self.assertEqual(got["choices"], want["choices"], (fault, body))
                self.assertEqual(got["usage"]["completion_tokens"], want["usage"]["completion_tokens"])
                for e in self.d:
                    e.faults = []
                wait_until(self.g.all_healthy, "all healthy again")
        self.assert_quiet(self.g, stranded=1000)

    def test_a_stream_with_stop_strings_ends_with_an_error_or_right(self):
        for at in (0, 1, 6):
            body = chat(stream=True, stop=["no such thing"], max_tokens=40, ignore_eos=True)
            for e in self.d:
                e.faults = [{"close": at + 1}]  # behind the role
            with Connection(self.g.port) as c:
                c.request("POST", CHAT, body)
                events = [json.loads(e) for e in list(c.events())[:-1]]
            for e in self.d:
                e.faults = []
            text = text_of([e for e in events if "error" not in e])
            if "error" in events[-1]:
                self.assertIn("stop", events[-1]["error"]["message"])
                self.assertTrue(expected(body).startswith(text))
            else:
                self.assertEqual(text, expected(body))
            wait_until(self.g.all_healthy, "all healthy again")
        self.assert_quiet(self.g, stranded=1000)

    def test_cached_tokens_that_nobody_told_are_not_made_up(self):
        for e in self.p:
            e.faults = [{"no_details": True, "always": True}]
        for more in ({}, {"stream": True, "stream_options": {"include_usage": True}}):
            r = self.post(self.g, chat(**more))
            self.assertNotIn(b'"cached_tokens": 0', r.body)
            self.assertNotIn(b'"cached_tokens":0', r.body)
        wait_until(lambda: len(self.g.records()) == 2, "the access log has them")
        self.assertTrue(all(r.get("cached_tokens") is None for r in self.g.records()), self.g.records())


class Pool(GatewayCase):
    def ask_of(self, g, more=None):
        return self.post(g, chat(**(more or {}))).header("X-Baton-Decode")

    def members(self, g, role):
        return {i["instance"]: i["state"] for i in http(g.port, "GET", "/instances").json()[role]}

    def change(self, g, what, role, url):
        return http(g.port, "POST", f"/instances/{what}", {"type": role, "instances": url}).status

    def test_one_leaves_while_the_others_work_and_may_come_back(self):
        """The drain is the instance's own: others are never idle. It is chosen no more, not even as the last one."""
        ledger, p, d = self.engines(1, 2)
        with Gateway(p, d) as g, Connection(g.port) as first, Connection(g.port) as second:
            clients = []
            for c in (first, second):  # one at each
                c.request("POST", CHAT, chat(stream=True, max_tokens=1000, ignore_eos=True))
                for e in d:
                    e.token_time = 0.05
                clients.append(c.events())
                next(clients[-1])
            self.assertEqual([e.running for e in d], [1, 1])
            self.assertEqual(self.change(g, "remove", "decode", d[0].url), 200)
            self.assertEqual(self.members(g, "decode")[d[0].url], "leaving")
            self.assertEqual({self.ask_of(g, {"max_tokens": 1}) for _ in range(4)}, {d[1].url})
            # Called back while it still ends its stream, it is one of them again.
            self.assertEqual(self.change(g, "add", "decode", d[0].url), 200)
            wait_until(lambda: self.members(g, "decode")[d[0].url] == "healthy", "it is back")
            wait_until(lambda: d[0].url in {self.ask_of(g, {"max_tokens": 1}) for _ in range(4)}, "it is chosen")
            self.assertEqual(self.change(g, "remove", "decode", d[0].url), 200)
            d[0].token_time = 0
            on_first = next(c for c, e in zip(clients, (first, second)) if dict(e.headers)["X-Baton-Decode"] == d[0].url)
            self.assertEqual(list(on_first)[-1], "[DONE]")
            wait_until(lambda: d[0].url not in self.members(g, "decode"), "it has left")
            self.assertEqual(d[1].running, 1)  # meanwhile there was always work
            # All are leaving: nobody is chosen, and the client is told.
            self.assertEqual(self.change(g, "remove", "decode", d[1].url), 200)
            self.assertEqual(self.change(g, "remove", "decode", "127.0.0.1:9"), 404)
            self.assertEqual(http(g.port, "GET", "/ready").status, 503)
            d[1].token_time = 0

    def test_a_client_that_left_does_not_keep_an_instance_from_leaving(self):
        for args in ((), ("--abandon-grace", 0)):
            ledger, p, d = self.engines(2, 1, prefill_time=0.2)
            with Gateway(p, d, *args) as g:
                for how in ("close", "reset"):
                    c = Connection(g.port)
                    c.request("POST", CHAT, chat())
                    wait_until(lambda: p[0].running + p[1].running == 1, "it is prefilling")
                    getattr(c, how)()
                self.assertEqual(self.change(g, "remove", "prefill", p[0].url), 200)
                wait_until(lambda: p[0].url not in self.members(g, "prefill"), "it has left")
                wait_until(lambda: http(g.port, "GET", "/healthcheck").json()["request_num"] == 0, "no request is left")
                self.assert_quiet(g, stranded=2 if args else 0)

    def test_one_bad_instance_of_two_costs_nobody_an_error(self):
        """Its health is good, and it fails whatever it is given."""
        def bad(role, fault):
            ledger, p, d = self.engines()
            (p if role == "prefill" else d)[0].faults = [{**fault, "always": True}]
            with Gateway(p, d) as g:
                bodies = [make(stream=s) for make in (chat, completion) for s in (False, True)] * 10
                in_threads([lambda b=b: self.assertEqual(self.ask(g, b), expected(b), (role, fault)) for b in bodies], 8)
                self.assertEqual(g.count("requests_total", code="200"), len(bodies))
                self.assertGreater(g.count("retries_total"), 0)
                self.assert_quiet(g, stranded=1000)
        in_threads([lambda r=r, f=f: bad(r, f) for r in ("prefill", "decode") for f in (
            {"status": 500}, {"status": 503}, {"reset": "request"}, {"empty": True}, {"close": "head"})])

    def test_names_are_kept_as_they_are_and_roles_apart(self):
        both = Engine("decode")
        self.addCleanup(both.stop)
        named = f"localhost:{both.port}"
        with Gateway([named], [both.url]) as g:
            self.assertEqual((list(self.members(g, "prefill")), list(self.members(g, "decode"))), ([named], [both.url]))
            self.assertEqual(self.change(g, "add", "decode", named), 200)
            self.assertEqual(sorted(self.members(g, "decode")), sorted([both.url, named]))
            self.assertEqual(self.change(g, "remove", "decode", named), 200)
            wait_until(lambda: list(self.members(g, "decode")) == [both.url], "it has left")
            self.assertEqual(list(self.members(g, "prefill")), [named])
            for bad in ({"type": "decoder", "instances": "a:1"}, {"instances": "a:1"}, {"type": "decode", "instances": 7},
                        {"type": "decode", "instances": "::1:80"}):
                self.assertEqual(http(g.port, "POST", "/instances/add", bad).status, 400, bad)

    def test_ipv6_addresses_are_addresses(self):
        ledger = Ledger()
        p, d, more = (Engine(role, ledger, host="::1") for role in ("prefill", "decode", "decode"))
        for e in (p, d, more):
            self.addCleanup(e.stop)
        with Gateway([], [], "--prefiller-hosts", "::1", "--prefiller-ports", p.port, "--decoder-hosts", "[::1]",
                     "--decoder-ports", d.port) as g:
            self.assertEqual(self.ask(g, chat()), expected(chat()))
            self.assertEqual([dict(e.requests[0]["headers"])["Host"] for e in (p, d)], [p.url, d.url])
            self.assertEqual(self.change(g, "add", "decode", more.url), 200)
            wait_until(g.all_healthy, "the new one is healthy")
            for _ in range(4):
                self.assertEqual(self.ask(g, chat(stream=True)), expected(chat()))
            self.assertGreater(len(more.requests), 0)
            self.assertEqual(ledger.violations, [])


class Alone(GatewayCase):
    def test_it_needs_nothing_but_itself(self):
        """No interpreter, no helper process, no file shared by name; and no web proxy of its environment is in between."""
        ledger, p, d = self.engines(1, 1)
        nowhere = f"http://127.0.0.1:{free_port()}"
        with tempfile.TemporaryDirectory() as tmp, \
                Gateway(p, d, "--workers", 4, env={"PATH": "/nonexistent", "PYTHONPATH": "/nonexistent", "TMPDIR": tmp, "HOME": tmp,
                                                   "http_proxy": nowhere, "HTTP_PROXY": nowhere, "ALL_PROXY": nowhere}) as g:
            for body in (chat(), chat(stream=True)):
                self.assertEqual(self.ask(g, body), expected(body))
            self.assertEqual(os.listdir(tmp), [])
            with open(f"/proc/{g.pid}/task/{g.pid}/children", encoding="ascii") as f:
                self.assertEqual(f.read(), "")
            opened = set()
            for n in os.listdir(f"/proc/{g.pid}/fd"):
                try:
                    opened.add(os.readlink(f"/proc/{g.pid}/fd/{n}"))
                except FileNotFoundError:  # a connection that has ended meanwhile
                    pass
            files = {o for o in opened if o.startswith("/") and not o.startswith("/dev/")} - {g.log.name}
            self.assertEqual(files, set())

    def test_it_speaks_tls(self):
        ledger, p, d = self.engines(1, 1)
        with tempfile.TemporaryDirectory() as tmp:
            cert, key = os.path.join(tmp, "cert"), os.path.join(tmp, "key")
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                            "-keyout", key, "-out", cert, "-days", "1", "-subj", "/CN=localhost", "-addext",
                            "subjectAltName=DNS:localhost"], check=True, capture_output=True)
            with Gateway(p, d, "--ssl-certfile", cert, "--ssl-keyfile", key, wait_ready=False) as g:
                def connect():
                    try:
                        c = Connection(g.port)
                    except OSError:
                        return None
                    c.socket = ssl.create_default_context(cafile=cert).wrap_socket(c.socket, server_hostname="localhost")
                    return c

                def ready():
                    c = connect()
                    if not c:
                        return False
                    with c:
                        c.request("GET", "/ready")
                        return c.response().status == 200
                wait_until(ready, "ready")
                with connect() as c:
                    c.request("POST", CHAT, chat(stream=True))
                    events = list(c.events())
                self.assertEqual(text_of([json.loads(e) for e in events[:-1]]), expected(chat()))
                with Connection(g.port) as c:  # in the clear
                    c.request("GET", "/health")
                    with self.assertRaises((EOFError, OSError, ValueError, IndexError)):
                        c.response()


class Push(GatewayCase):
    connector = "push"

    def test_a_prompt_whose_decoder_never_asks_does_not_hold_up_the_others(self):
        """Of a list: each prompt is a request of its own, with its own deadline."""
        ledger, p, d = self.engines(1, 2)
        with self.gateway(p, d, "--first-byte-timeout", 1) as g:
            prompts = ["one", "two", "three"]
            for e in d:
                e.faults = [{"calls": 0, "when": lambda r: r["prompt"] == "two"}]
            events, begun = [], {}
            for e in stream(g.port, COMPLETIONS, completion(prompts, stream=True)):
                events.append(e)
                for c in e["choices"]:
                    begun.setdefault(c["index"], len(begun))
            for i, prompt in enumerate(prompts):
                self.assertEqual("".join(c["text"] for e in events for c in e["choices"] if c["index"] == i),
                                 expected(completion(prompt)))
            self.assertEqual(begun[1], 2)  # the others did not wait
            self.assert_quiet(g)

    def test_a_prefillers_load_stays_until_it_has_written(self):
        ledger, p, d = self.engines(1, 1)
        with self.gateway(p, d, "--health-check-interval-secs", 1000) as g, Connection(g.port) as c:
            p[0].freeze()
            c.request("POST", CHAT, chat())
            wait_until(lambda: p[0].running == 1, "it writes")
            load = [metric(g.port, "baton_gateway_instance_tokens", role="prefill", instance=p[0].url) for _ in range(2)]
            self.assertGreater(min(load), 0)
            self.assertEqual(metric(g.port, "baton_gateway_instance_requests", role="prefill", instance=p[0].url), 1)
            p[0].thaw()
            self.assertEqual(c.response().status, 200)
            self.assert_quiet(g)


if __name__ == "__main__":
    unittest.main()
