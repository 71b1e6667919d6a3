"""One instance misbehaves: the client gets its complete, right answer, or one honest error; nothing is left behind."""
import json
import random
import signal
import socket
import threading
import time
import unittest

import fault_engine
from fault_engine import Engine, Ledger, decode, encode, encode_chat, generate
from gateway_case import (CHAT, COMPLETIONS, GatewayCase, answer_text, chat, completion, expected, fail_first,
                          in_threads, stream_whole, text_of)
from harness import Connection, answers, http, stream, wait_until

# What an instance may do to a leg before the client has seen a byte. Each is survived by going elsewhere.
BEFORE_FIRST_BYTE = {
    "reset at once": {"reset": "request"},
    "reset behind the head": {"reset": "head"},
    "reset in the body": {"reset": 0},
    "closed at once": {"close": "request"},
    "closed behind the head": {"close": "head"},
    "closed in the body": {"close": 0},
    "hang before the head": {"hang": "request"},
    "hang behind the head": {"hang": "head"},
    "500": {"status": 500},
    "502 with a page": {"status": 502, "body": b"<html>bad gateway</html>"},
    "503": {"status": 503},
    "429": {"status": 429, "headers": [("retry-after", "1")]},
    "empty 200": {"empty": True},
    "no HTTP": {"raw": b"SSH-2.0-OpenSSH_9.2\r\n"},
    "cut head": {"raw": b"HTTP/1.1 200 OK\r\nContent-Le"},
    "two lengths": {"raw": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"},
    "half a body": {"raw": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{\"id\":"},
    "not JSON": {"raw": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 6\r\n\r\nhello!"},
    "redirect": {"status": 302, "headers": [("location", "http://203.0.113.9/")]},
    "an error inside": {"error": 0},
}
IMPATIENT = ["--prefill-timeout", 1, "--first-byte-timeout", 1, "--idle-timeout", 1, "--request-timeout-secs", 1]


class BeforeTheFirstByte(GatewayCase):
    def setUp(self):
        self.ledger, self.p, self.d = self.engines()
        self.g = self.gateway(self.p, self.d, *IMPATIENT)
        self.addCleanup(self.g.stop)

    def survive(self, role, name):
        fault = BEFORE_FIRST_BYTE[name]
        ledger, p, d = self.engines()
        engines = p if role == "prefill" else d
        with self.gateway(p, d, *IMPATIENT) as g:
            for body in (chat(), chat(stream=True), completion(), completion(stream=True)):
                # Whichever is chosen fails once; the other, and the same one later, does not.
                engines[0].faults, engines[1].faults = [dict(fault)], []
                for _ in range(2):
                    self.assertEqual(self.ask(g, body), expected(body), f"{name}: {body}")
                wait_until(lambda: g.all_healthy() and g.count("instance_requests") == 0,
                           f"{name}: all healthy again, and at rest")
            self.assertEqual([e.faults for e in engines], [[], []], f"{name}: the fault was met")
            # One that broke behind its commit, or before it fetched, told nobody where its KV is: that is left to the lease.
            self.assert_quiet(g, stranded=1000)

    def test_a_prefill_leg_goes_elsewhere(self):
        names = [n for n, fault in BEFORE_FIRST_BYTE.items() if "error" not in fault]
        in_threads([lambda n=n: self.survive("prefill", n) for n in names], 8)

    def test_a_decode_leg_goes_elsewhere_through_a_new_prefill(self):
        in_threads([lambda n=n: self.survive("decode", n) for n in BEFORE_FIRST_BYTE], 8)

    def test_a_decoder_that_is_too_busy_leaves_the_prompt_prefilled(self):
        bodies = [{**b, "stream": s} for b in (chat(), completion()) for s in (False, True)]
        for status in (429, 503):
            for body in bodies:
                for e in self.d:
                    e.faults = [{"status": status}]
                self.assertEqual(self.ask(self.g, body), expected(body))
                self.assertEqual([e.faults for e in self.d], [[], []])
        self.assertEqual(sum(len(e.requests) for e in self.p), 2 * len(bodies))
        self.assertEqual(self.g.count("settled_total"), 0)
        self.assert_quiet(self.g)

    def test_params_that_a_decoder_could_not_use_are_never_sent(self):
        def without(key):
            return lambda p: {k: v for k, v in p.items() if k != key}
        broken = [without("remote_engine_id"), without("remote_block_ids"), without("remote_request_id"),
                  without("remote_host"), without("remote_port"), without("do_remote_prefill"),
                  lambda p: {**p, "remote_block_ids": []}, lambda p: {**p, "remote_block_ids": [[]]},
                  lambda p: {**p, "remote_engine_id": ""}, lambda p: [], lambda p: "x", lambda p: None]
        for change in broken:
            self.p[0].faults = [{"params": change}]
            for _ in range(2):
                self.assertEqual(self.ask(self.g, chat()), expected(chat()))
            wait_until(self.g.all_healthy, "all healthy again")
        self.p[0].faults = [{"no_params": True}]
        for _ in range(2):
            self.assertEqual(self.ask(self.g, chat()), expected(chat()))
        self.assertEqual(self.g.count("prefill_without_params_total"), len(broken) + 1)
        self.assertTrue(all(r["body"]["kv_transfer_params"]["remote_block_ids"] for e in self.d for r in e.requests))
        self.assertEqual(self.ledger.violations, [])

    def test_without_params_from_any_prefiller_the_client_is_told(self):
        for e in self.p:
            e.faults = [{"no_params": True, "always": True}]
        error = self.post(self.g, chat(), status=502).json()["error"]
        self.assertIn("kv_transfer_params", error["message"])
        self.assertEqual(sum(len(e.requests) for e in self.d), 0)
        self.assert_quiet(self.g)

    def test_a_decoder_may_be_let_compute_the_prompt(self):
        for e in self.p:
            e.faults = [{"no_params": True, "always": True}]
        with self.gateway(self.p, self.d, "--prefill-on-decode") as g:
            for body in (chat(), chat(stream=True), completion()):
                self.assertEqual(self.ask(g, body), expected(body))
            self.assertEqual(g.count("prefill_without_params_total"), 3)
            self.assertTrue(all("kv_transfer_params" not in r["body"] for e in self.d for r in e.requests))
            # One that answers with an error gave no parameters either, but says why.
            for e in self.p:
                e.faults = [{"status": 500, "always": True}]
            self.post(g, chat(), status=500)
            self.assert_quiet(g)

    def test_when_all_fail_the_last_word_is_passed_on(self):
        words = b'{"error":{"message":"boom","type":"InternalServerError","param":null,"code":500}}'
        for engines in (self.p, self.d):
            for e in engines:
                e.faults = [{"status": 500, "body": words, "always": True}]
            for body in (chat(), chat(stream=True)):
                self.assertEqual(self.post(self.g, body, status=500).body, words)
            for e in engines:
                e.faults = [{"status": 429, "headers": [("retry-after", "2")], "always": True}]
            self.assertEqual(self.post(self.g, chat(), status=429).header("retry-after"), "2")
            for e in engines:
                e.faults = [{"reset": "request", "always": True}]
            self.assertEqual(self.post(self.g, chat(), status=502).json()["error"]["code"], 502)
            for e in engines:
                e.faults = []
            wait_until(self.g.all_healthy, "all healthy again")

    def test_slow_and_oddly_cut_answers_are_answers(self):
        def one(fault, body):
            ledger, p, d = self.engines(1, 1)
            with self.gateway(p, d, *IMPATIENT) as g:
                d[0].faults = [dict(fault)]
                self.assertEqual(self.ask(g, body), expected(body), fault)
                self.assertEqual((g.count("retries_total"), g.count("continuations_total")), (0, 0))
                self.assert_quiet(g)
        in_threads([lambda f=f, b=b: one(f, b)
                    for f in ({"drip": 0.0001}, {"split": 1}, {"split": 7}, {"join": 3}, {"join": 1000})
                    for b in (chat(stream=True, max_tokens=4), completion(stream=True, max_tokens=4), chat(max_tokens=4))], 8)


class Instances(GatewayCase):
    def answer_no_connection(self, port):
        """Listen with a queue that is full: the kernel answers nobody who connects."""
        listener = socket.socket()
        self.addCleanup(listener.close)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        for _ in range(3):
            guest = socket.socket()
            self.addCleanup(guest.close)
            guest.setblocking(False)
            guest.connect_ex(("127.0.0.1", port))

    def test_a_dead_instance_costs_no_client_an_error(self):
        for role in ("prefill", "decode"):
            ledger, p, d = self.engines()
            with self.gateway(p, d) as g:
                victim = (p if role == "prefill" else d)[0]
                victim.stop()
                bodies = [chat(stream=bool(i % 2)) for i in range(24)]
                in_threads([lambda b=b: self.assertEqual(self.ask(g, b), expected(b)) for b in bodies])
                wait_until(lambda: g.count("instances", role=role, state="ejected") == 1, "the dead one is ejected")
                self.assertEqual(g.count("requests_total", code="200"), 24)
                victim.restart()
                wait_until(g.all_healthy, "it is back")
                seen = len(victim.requests)
                for _ in range(4):
                    self.ask(g, chat())
                self.assertGreater(len(victim.requests), seen)
                self.assertEqual(ledger.violations, [])

    def test_requests_wait_for_an_instance_to_come(self):
        ledger, p, d = self.engines(1, 1)
        d[0].stop()
        with self.gateway(p, d, "--queue-timeout-secs", "20", wait_ready=False) as g:
            wait_until(lambda: answers(g.port), "listening")
            self.assertEqual(http(g.port, "GET", "/ready").status, 503)
            job = [lambda: self.assertEqual(self.ask(g, chat()), expected(chat()))]
            job.append(lambda: (wait_until(lambda: g.count("requests_waiting") == 1, "it waits"), d[0].restart()))
            in_threads(job)
            self.assert_quiet(g)

    def test_waiting_has_an_end(self):
        ledger, p, d = self.engines(1, 1)
        p[0].stop()
        with self.gateway(p, d, "--queue-timeout-secs", "0.5", wait_ready=False) as g:
            wait_until(lambda: answers(g.port), "listening")
            r = self.post(g, chat(), status=503)
            self.assertIn("prefill", r.json()["error"]["message"])
            self.assertEqual(g.count("queue_timeouts_total"), 1)
            self.assert_quiet(g)

    def test_those_that_wait_under_the_cap_take_their_turns(self):
        """Prefill and decode are full: whoever came first is served first, one for each leg that ends."""
        ledger, p, d = self.engines(1, 1)
        full = threading.Event()
        self.addCleanup(full.set)
        p[0].faults = [{"params": lambda x: full.wait() and x}]
        prompts = [f"number {i}" for i in range(12)]
        with self.gateway(p, d, "--instance-cap", "1") as g:
            clients = [Connection(g.port) for _ in prompts]
            for n, c in enumerate(clients):
                c.request("POST", COMPLETIONS, completion(prompts[n]))
                wait_until(lambda: p[0].requests and g.count("requests_waiting") == n, f"{n} wait")
            full.set()
            for c in clients:
                with c:
                    self.assertEqual(c.response().status, 200)
            for e in p + d:
                self.assertEqual([r["body"]["prompt"] for r in e.requests], prompts)
            self.assert_quiet(g)

    def test_connecting_counts_as_waiting(self):
        ledger, p, d = self.engines(1, 3)
        with self.gateway(p, d, "--queue-timeout-secs", "0.2", "--connect-timeout", "0.4",
                     "--health-check-interval-secs", "1000", "--kv-lease", "2") as g:
            for e in d:
                e.stop()
                self.answer_no_connection(e.port)
            self.assertIn("no connection within", self.post(g, chat(), status=503).json()["error"]["message"])
            # The first may be tried on the connection its health was asked on, which ends with it: that is no waiting. Without the
            # rule each of the three is tried.
            self.assertLess(g.count("retries_total"), 2)
            wait_until(lambda: g.count("stranded_total") == 1, "nobody could fetch the KV before its lease was over")

    def test_a_leg_that_reached_an_instance_ends_the_waiting_for_it(self):
        """Also one that was given up as "recomputed": the next instance is waited for anew."""
        ledger, p, d = self.engines(1, 1)
        decoding, prefilling = threading.Event(), threading.Event()
        self.addCleanup(decoding.set)
        self.addCleanup(prefilling.set)
        d[0].faults = [{"recomputed": 3, "when": lambda r: decoding.wait()}]
        with self.gateway(p, d, "--instance-cap", "1", "--queue-timeout-secs", "1.5") as g:
            def first():
                self.assertEqual(self.ask(g, chat()), expected(chat()))

            def others():
                wait_until(lambda: d[0].requests, "the first is with the decoder")
                p[0].faults = [{"params": lambda x: prefilling.wait() and x}]
                with Connection(g.port) as c:
                    c.request("POST", CHAT, chat())
                    wait_until(lambda: p[0].running == 1, "the prefiller is taken")
                    self.post(g, chat(), status=503)  # so long has passed that the first, too, could wait no more
                    decoding.set()
                    wait_until(lambda: g.count("requests_waiting") == 1, "the first waits for the prefiller")
                    prefilling.set()
                    self.assertEqual(c.response().status, 200)
            in_threads([first, others])
            self.assert_quiet(g)

    def test_kv_that_outlived_its_lease_in_the_queue_is_counted(self):
        ledger, p, d = self.engines(1, 1, token_time=60)
        with self.gateway(p, d, "--kv-lease", "0.2", "--instance-cap", "1", "--queue-timeout-secs", "0.5") as g:
            with Connection(g.port) as c:
                c.request("POST", CHAT, chat())
                wait_until(lambda: d[0].running == 1, "the decoder is taken")
                self.post(g, chat(), status=503)
                self.assertEqual(g.count("stranded_total"), 1)
            self.assert_quiet(g, stranded=1)

    def test_a_slow_health_route_does_not_cut_streams_that_flow(self):
        ledger, p, d = self.engines(1, 2, token_time=0.02)
        with self.gateway(p, d, "--health-check-interval-secs", "0.1", "--health-check-timeout-secs", "0.2") as g:
            d[0].health = d[1].health = lambda a: a.wait(60)
            body = chat(stream=True, max_tokens=100)
            in_threads([lambda: self.assertEqual(self.ask(g, body), expected(body)) for _ in range(4)])
            self.assertEqual(g.count("continuations_total"), 0)
            self.assertIn("is suspect", g.output())

    def test_params_are_not_used_when_the_lease_is_nearly_over(self):
        ledger, p, d = self.engines(1, 1)
        with self.gateway(p, d, "--kv-lease", "0.5", "--instance-cap", "1") as g:
            d[0].token_time = 0.1
            # The first holds the decoder for longer than the second's params live.
            in_threads([lambda: self.assertEqual(self.ask(g, chat()), expected(chat())) for _ in range(2)])
            self.assertGreaterEqual(g.count("params_expired_total"), 1)
            self.assertEqual(ledger.violations, [])


class AfterTheFirstByte(GatewayCase):
    """A stream that was cut goes on elsewhere with its exact tokens."""

    def setUp(self):
        self.ledger, self.p, self.d = self.engines()
        self.g = self.gateway(self.p, self.d, *IMPATIENT)
        self.addCleanup(self.g.stop)

    def fail_first(self, fault):
        fail_first(self.d, fault)

    def check(self, g, body, events, continued):
        """Text, frame, usage and tokens are those of one undisturbed engine."""
        alone = Engine("decode", max_model_len=g.decode[0].max_model_len)
        want = stream(alone.port, CHAT if "messages" in body else COMPLETIONS, body)
        alone.stop()
        self.assertEqual(text_of(events), text_of(want))
        self.assertEqual(len({e["id"] for e in events}), 1)
        self.assertEqual(len({e["object"] for e in events}), 1)
        roles = [e for e in events if e["choices"] and "role" in e["choices"][0].get("delta", {})]
        self.assertEqual(len(roles), 1 if "messages" in body else 0)
        finishes = [c["finish_reason"] for e in events for c in e["choices"] if c["finish_reason"]]
        self.assertEqual(finishes, [c["finish_reason"] for e in want for c in e["choices"] if c["finish_reason"]])

        def usages(es):
            return [{k: v for k, v in e["usage"].items() if k != "prompt_tokens_details"} for e in es if e.get("usage")]
        self.assertEqual(usages(events)[-1:], usages(want)[-1:])
        if body.get("return_token_ids"):
            def ids(es):
                return [t for e in es for c in e["choices"] for t in c.get("token_ids") or []]
            self.assertEqual(ids(events), ids(want))
        else:
            self.assertTrue(all(not c.get("token_ids") and not c.get("prompt_token_ids")
                                for e in events for c in e["choices"]))
        if body.get("logprobs") is not None:
            def offsets(es):
                return [o for e in es for c in e["choices"] if c.get("logprobs") for o in c["logprobs"]["text_offset"]]
            self.assertEqual(offsets(events), offsets(want))
        # A reset may take away what the gateway has not read yet: then the leg is one that failed before its first byte.
        # More when the machine is so busy that probes or deadlines are over by themselves.
        self.assertGreaterEqual(g.count("continuations_total") + g.count("retries_total"), continued)

    # A conversation with parts; text; ids; all that makes usage.
    BODIES = [{**chat(stream=True, max_tokens=60),
               "messages": [{"role": "system", "content": "Be brief."},
                            {"role": "user", "content": [{"type": "text", "text": "six times"}, {"type": "text", "text": " seven"}]}]},
              completion(stream=True, max_tokens=60),
              completion([500, 65, 66], stream=True, max_tokens=60, echo=False, logprobs=1),
              chat(stream=True, max_completion_tokens=60, return_token_ids=True, stream_options={"include_usage": True}),
              completion(stream=True, max_tokens=60, return_token_ids=True, min_tokens=40,
                         stream_options={"include_usage": True, "continuous_usage_stats": True}),
              chat("long", stream=True, max_tokens=None, stream_options={"include_usage": True})]

    def cut_anywhere(self, body, rng, kinds, *args):
        ledger, p, d = self.engines(max_model_len=150)
        with self.gateway(p, d, *args) as g:
            continued = 0
            for kind, times in kinds:
                for at in [rng.randrange(1, 50) for _ in range(times)]:
                    fail_first(d, {kind: at})
                    events = stream(g.port, CHAT if "messages" in body else COMPLETIONS, body)
                    continued += 1
                    try:
                        self.check(g, body, events, continued)
                    except AssertionError as e:
                        raise AssertionError(f"{kind} at {at}: {body}: {e}") from e
            self.assert_quiet(g, stranded=1000 if args else 0)

    def test_cut_anywhere_it_goes_on_exactly(self):
        cuts = [(kind, 4) for kind in ("reset", "close", "error", "recomputed")]
        in_threads([lambda n=n, b=b: self.cut_anywhere(b, random.Random(n), cuts) for n, b in enumerate(self.BODIES)] +
                   [lambda n=n, b=b: self.cut_anywhere(b, random.Random(n), [("hang", 1)], *IMPATIENT)
                    for n, b in enumerate(self.BODIES)])

    def notes(self, body, headers):
        """The comments in a stream, each with the tokens that had been sent before it; and the text."""
        with Connection(self.g.port) as c:
            c.request("POST", CHAT, body, headers)
            _, fields = c.read_head()
            lines = b"".join(c.chunks(fields)).decode().split("\n\n")
        sent, notes, events = 0, [], []
        for line in lines:
            if line.startswith(":"):
                notes.append((line, sent))
            elif line.startswith("data: {"):
                events.append(json.loads(line[6:]))
                sent += sum(len(choice.get("token_ids") or []) for choice in events[-1]["choices"])
        return notes, text_of(events)

    def test_a_client_that_asked_is_told_where_its_stream_went_on(self):
        def answer(request):
            return request["max_tokens"] != 1
        for e in self.d:
            e.faults = [{"close": 9, "when": answer}]
        body = chat(stream=True, max_tokens=60, return_token_ids=True)
        notes, text = self.notes(body, {"X-Baton-Notes": "1"})
        self.assertEqual(text, expected(body))
        wait_until(lambda: self.g.records(), "the access log has it")
        last = self.g.records()[-1]["decode"]["instance"]
        names = [e.url for e in self.d]
        other = names[1 - names.index(last)]
        self.assertEqual([n for n, _ in notes],
                         [f": continued on {name} after {sent} tokens" for name, (_, sent) in zip((other, last), notes)])
        self.assertEqual(len(notes), 2)
        for headers in ({}, {"X-Baton-Notes": "0"}):
            self.fail_first({"close": 9})
            self.assertEqual(self.notes(body, headers), ([], expected(body)))
        self.assertTrue(all("x-baton-notes" not in r["fields"] for e in self.p + self.d for r in e.requests))
        self.assert_quiet(self.g)

    def test_cut_again_and_again_it_goes_on(self):
        def often(request):
            return request["max_tokens"] != 1
        for e in self.d:
            e.tokens_per_event = 3
            e.faults = [{"close": 4, "when": often}, {"reset": 5, "when": often}, {"recomputed": 7, "when": often}]
        body = chat(stream=True, max_tokens=150, stream_options={"include_usage": True})
        self.check(self.g, body, stream(self.g.port, CHAT, body), 6)
        self.assert_quiet(self.g)

    def test_killed_under_load_nothing_is_lost(self):
        for e in self.d:
            e.token_time = 0.02
        g = self.gateway(self.p, self.d)  # with deadlines that a busy machine keeps
        self.addCleanup(g.stop)
        body = chat(stream=True, max_tokens=120)
        begun, done = [], []

        def one():
            self.assertEqual(text_of(stream_whole(g.port, CHAT, body, begun)), expected(body))
            done.append(1)

        def kill():
            wait_until(lambda: begun.count(self.d[0].url) >= 8, "streams run")
            self.d[0].stop()
        in_threads([one] * 32 + [kill])
        self.assertEqual(len(done), 32)
        self.assertGreater(g.count("continuations_total"), 0)
        self.assertEqual(self.ledger.violations, [])

    def test_a_stopped_process_is_noticed_and_left(self):
        """As SIGSTOP: the connection stays, nothing comes, health does not answer."""
        self.d[0].health = lambda a: a.wait(60)
        with self.gateway(self.p, self.d, "--health-check-interval-secs", "0.1", "--health-check-timeout-secs", "0.3",
                     wait_ready=False) as g:
            wait_until(lambda: answers(g.port, "/ready"), "ready")
        self.d[0].health = 200
        with self.gateway(self.p, self.d, "--health-check-interval-secs", "0.1", "--health-check-timeout-secs", "0.3") as g:
            self.d[0].faults = [{"hang": 9}]
            self.d[1].faults = []
            stuck = self.d[0]

            def freeze():
                wait_until(lambda: stuck.running == 1 or self.d[1].requests, "one is decoding")
                stuck.health = lambda a: a.wait(60)
            bodies = [chat(stream=True, max_tokens=40)] * 2
            in_threads([lambda b=b: self.assertEqual(self.ask(g, b), expected(b)) for b in bodies] + [freeze])
            self.assertEqual(g.count("continuations_total"), 1)
            stuck.health = 200

    def test_what_cannot_go_on_exactly_ends_with_one_honest_error(self):
        cases = [chat(stream=True, max_tokens=60, tools=[{"type": "function", "function": {"name": "f"}}]),
                 chat(stream=True, max_tokens=60, response_format={"type": "json_object"}),
                 completion(stream=True, max_tokens=60, presence_penalty=0.5),
                 completion(stream=True, max_tokens=60, echo=True),
                 chat(stream=True, max_tokens=60, logprobs=True)]
        for body in cases:
            self.fail_first({"close": 10})
            with Connection(self.g.port) as c:
                c.request("POST", CHAT if "messages" in body else COMPLETIONS, body)
                events = list(c.events())
            self.assertEqual(events[-1], "[DONE]")
            self.assertEqual(json.loads(events[-2])["error"]["code"], 502)
            whole = (decode(encode(body["prompt"])) if body.get("echo") else "") + expected(body)
            self.assertTrue(whole.startswith(text_of([json.loads(e) for e in events[:-2]])))
        self.assertEqual(self.g.count("streams_cut_total"), len(cases))
        self.assertEqual(self.g.count("continuations_total"), 0)
        self.assert_quiet(self.g)

    def test_events_held_of_a_lost_leg_are_forgotten(self):
        """A completion that begins with half a character, cut there: nothing has gone to the client yet."""
        prompt = next(p for p in map(str, range(1000)) if decode(generate(encode(p), 1)[0]) == "\ufffd")
        body = completion(prompt, stream=True, max_tokens=30, return_token_ids=True, ignore_eos=True)
        self.fail_first({"close": 1})
        events = stream(self.g.port, COMPLETIONS, body)
        self.assertEqual([t for e in events for c in e["choices"] for t in c["token_ids"]],
                         generate(encode(prompt), 30, ignore_eos=True)[0])
        self.assertEqual(text_of(events), expected(body))

    def test_errors_inside_a_200_are_the_instances(self):
        body = chat(stream=True, max_tokens=60)
        end = b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 14\r\n\r\ndata: [DONE]\n\n'
        page = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 6\r\n\r\nhello!"
        for n, (fault, request) in enumerate((({"error": 5}, body), ({"raw": end}, body), ({"raw": page}, chat())), 1):
            self.fail_first(fault)
            self.assertEqual(self.ask(self.g, request), expected(request))
            for end in ("error", "done"):  # a leg may end a moment after its answer was passed on
                wait_until(lambda e=end, n=n: self.g.count("legs_total", role="decode", end=e) == n, f"{n} legs: {end}")
        self.assertEqual(self.g.count("legs_total", role="decode", end="aborted"), 0)
        self.fail_first({"error": 5})
        with Connection(self.g.port) as c:
            c.request("POST", COMPLETIONS, completion(stream=True, presence_penalty=1))
            error = json.loads(list(c.events())[-2])["error"]
        self.assertIn("Internal server error", error["message"])  # in the engine's own words

    def test_an_answer_that_is_not_streamed_is_begun_anew(self):
        for kind in ({"reset": 40}, {"close": 40}, {"recomputed": 5}, {"hang": 40}):
            for body in (chat(), completion()):
                self.fail_first(kind)
                self.assertEqual(self.ask(self.g, body), expected(body))
        self.assert_quiet(self.g)

    def test_a_stream_without_done_that_has_its_end_is_complete(self):
        end = (b'data: {"id":"x","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"hi",'
               b'"finish_reason":"stop"}]}\n\n')
        self.fail_first({"raw": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: "
                                + str(len(end)).encode() + b"\r\n\r\n" + end})
        self.assertEqual(text_of(stream(self.g.port, COMPLETIONS, completion(stream=True))), "hi")

    def test_cut_behind_its_finish_usage_comes_once(self):
        for continuous in (False, True):
            for make in (chat, completion):
                body = make(stream=True, max_tokens=4, ignore_eos=True,
                            stream_options={"include_usage": True, "continuous_usage_stats": continuous})
                alone = Engine("decode")
                want = stream(alone.port, CHAT if "messages" in body else COMPLETIONS, body)
                alone.stop()
                # Before the usage chunk, and between it and [DONE].
                for at in (len(want) - 1, len(want)):
                    self.fail_first({"close": at})
                    got = stream(self.g.port, CHAT if "messages" in body else COMPLETIONS, body)
                    closing = [[{k: v for k, v in e["usage"].items() if k != "prompt_tokens_details"}
                                for e in events if not e["choices"]] for events in (got, want)]
                    self.assertEqual(*closing, f"cut at {at}: {body}")
                    self.assertEqual(text_of(got), text_of(want))
        self.assertEqual(self.g.count("continuations_total"), 0)
        wait_until(lambda: len(self.g.records()) == 8, "the access log has all of them")
        self.assertEqual([r["completion_tokens"] for r in self.g.records()], [4] * 8)
        self.assert_quiet(self.g)

    def test_a_decoder_that_gave_a_stream_up_is_not_asked_again_at_once(self):
        """It wants memory: also when the other one is busier."""
        self.d[0].token_time = self.d[1].token_time = 0.03
        body = chat(stream=True, max_tokens=20)
        with Connection(self.g.port) as other:
            other.request("POST", CHAT, chat(stream=True, max_tokens=300))
            busy = other.events()
            next(busy)
            gives_up, busier = sorted(self.d, key=lambda e: e.running)
            gives_up.faults = [{"recomputed": 5}]
            self.assertEqual(self.ask(self.g, body), expected(body))
            self.assertEqual((len(gives_up.requests), len(busier.requests)), (1, 2))

    def test_continuations_have_a_limit(self):
        def answer(request):
            return request["max_tokens"] != 1
        body = chat(stream=True, max_tokens=60)
        for limit in (0, 1):
            ledger, p, d = self.engines(1, 1)
            d[0].faults = [{"close": 9, "when": answer} for _ in range(limit + 1)]
            with self.gateway(p, d, "--max-continuations", limit) as g:
                with Connection(g.port) as c:
                    c.request("POST", CHAT, body)
                    events = list(c.events())
                self.assertEqual(events[-1], "[DONE]")
                self.assertEqual(json.loads(events[-2])["error"]["code"], 502)
                self.assertTrue(expected(body).startswith(text_of([json.loads(e) for e in events[:-2]])))
                self.assertEqual((g.count("continuations_total"), g.count("streams_cut_total")), (limit, 1))
                self.assertEqual(any("return_token_ids" in r["body"] for r in d[0].requests), limit > 0)
                self.assert_quiet(g)

    def test_a_plain_stream_goes_on_too(self):
        engines = [Engine("decode") for _ in range(2)]
        for e in engines:
            self.addCleanup(e.stop)
            e.faults = [{"close": 7}]
        with self.gateway([], engines) as g:
            body = chat(stream=True, max_tokens=40)
            self.assertEqual(self.ask(g, body), expected(body))
            self.assertEqual(g.count("continuations_total"), 2)
            # Behind the finish_reason: whole engines have no prefiller that counts.
            for e in engines:
                e.faults = [{"close": 5}]
            body = chat(stream=True, max_tokens=4, ignore_eos=True, stream_options={"include_usage": True})
            usage = [e["usage"] for e in stream(g.port, CHAT, body) if e.get("usage")]
            count = len(encode_chat(body["messages"]))
            self.assertEqual(usage, [{"prompt_tokens": count, "total_tokens": count + 4, "completion_tokens": 4}])
            self.assert_quiet(g)


if __name__ == "__main__":
    unittest.main()
