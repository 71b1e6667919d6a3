"""The client leaves, in every state and manner, whatever the connector: no KV is stranded, no connection is left open, all counters are zero."""
import socket
import threading
import time
import unittest

from gateway_case import CHAT, COMPLETIONS, GatewayCase, chat, completion, expected, in_threads
from harness import TERM, Connection, answers, wait_until

# What holds the engines so that clients leave in that state. "held" is let go when they have left.
MOMENTS = {
    "queued": {"args": ["--max-concurrent-requests", 1]},
    "in prefill": {"held": "prefill_time"},
    "in a long prefill": {"prefill_time": 60},
    "between legs": {"args": ["--instance-cap", 1]},
    "before the decoder has taken it in": {"held": "admit_time"},
    "before the KV is fetched": {"held": "fetch_time"},
    "before the first token": {"held": "token_time"},
    "in mid-stream": {"token_time": 0.05},
}
# close() of a socket that holds nothing unread is a FIN, and what a client's process leaves behind; with something unread the
# kernel makes it an RST. shutdown() is a FIN in any case: the client could still read. For an answer's client a FIN means
# that it has left, in whichever way: nobody who speaks HTTP half-closes before the answer is there.
WAYS = [(stream_it, how) for stream_it in (False, True) for how in ("close", "shutdown", "RST")]
CONNECTORS = ("pull", "push", "mooncake")  # prefill first, decode first, both at once


class Cancel(GatewayCase):
    def leave(self, c, how):
        if how == "RST":
            c.reset()
        elif how == "shutdown":
            c.socket.shutdown(socket.SHUT_WR)
        else:
            c.close()

    def arrive(self, name, g, p, d):
        """A client for each way, all in the moment."""
        clients = []
        for stream_it, _ in WAYS:
            c = Connection(g.port)
            c.request("POST", CHAT, chat(stream=stream_it, max_tokens=500 if "mid" in name else 24))
            clients.append(c)
        n = len(WAYS)
        if name == "queued":
            wait_until(lambda: g.count("requests_waiting") == n, "queued")
        elif name == "between legs":
            wait_until(lambda: g.count("waiting", role="prefill" if d[0].running == n else "decode") == n, "between the legs")
        elif "prefill" in name:
            wait_until(lambda: p[0].running == n, "prefilling")
        else:
            wait_until(lambda: d[0].running == n, "decoding")
        if name == "in mid-stream":
            for c, (stream_it, _) in zip(clients, WAYS):
                if stream_it:
                    events = c.events()
                    [next(events) for _ in range(3)]
            wait_until(lambda: p[0].ledger.fetched == n, "fetched")
        return clients

    def moment(self, connector, name):
        """All leave at once; nothing is left of them, neither while the gateway goes on nor afterwards."""
        times = dict(MOMENTS[name])
        args = times.pop("args", [])
        held, go = times.pop("held", None), threading.Event()
        self.addCleanup(go.set)
        if held:
            times[held] = go
            more = ["--abandon-grace", 60]  # what is let go comes to its end
        else:
            more = []
        ledger, p, d = self.engines(1, 1, **times)
        alone = name == "between legs" and connector == "push"  # a decoder has room for each, no prefiller is there
        if alone:
            args, p[0].health = [], 503
        with self.gateway(p, d, *args, *more, connector=connector, wait_ready=not alone) as g:
            wait_until(lambda: answers(g.port) and g.count("instances", role="decode", state="healthy") == 1, "ready")
            blocker = None
            if args:  # the decoder is taken
                d[0].token_time = 0.1
                blocker = Connection(g.port)
                blocker.request("POST", CHAT, chat(stream=True, max_tokens=600, ignore_eos=True))
                wait_until(lambda: d[0].running == 1, "the decoder is taken")
            clients = self.arrive(name, g, p, d)
            for c, (_, how) in zip(clients, WAYS):
                self.leave(c, how)
            if blocker:
                wait_until(lambda: g.count("clients_gone_total") == len(WAYS), "they have left")
                d[0].token_time = 0
                self.assertEqual(list(blocker.events())[-1], "[DONE]")
                blocker.close()
            wait_until(lambda: g.count("clients_gone_total") == len(WAYS), "they have left")
            go.set()
            self.assert_quiet(g)
            self.assertEqual(g.count("stranded_total"), 0)
            if name == "in a long prefill":
                self.assertEqual(p[0].aborted, len(WAYS))
            if name == "queued":
                self.assertEqual(len(p[0].requests), 1)
            # Those that have only said that they send no more are let go too. Kept connections to engines end after a while;
            # probes, which may be on their way, have at most one to each.
            wait_until(lambda: g.count("connections") <= 1, "no client connection is left")
            wait_until(lambda: len(p[0].connections) <= 1 and len(d[0].connections) <= 1, "no upstream connection is left")
            for c in clients:
                c.close()

    def test_the_matrix(self):
        def one(connector, name):
            try:
                self.moment(connector, name)
            except BaseException as e:
                raise AssertionError(f"{connector}, {name}: {e}") from e
        in_threads([lambda c=c, n=n: one(c, n) for c in CONNECTORS for n in MOMENTS
                    if (c, n) != ("mooncake", "between legs")])  # there is nothing between legs that are called at once

    def test_a_decode_leg_has_its_grace_to_fetch(self):
        for grace, admit_time, fetched in ((0, 60, 0), (60, 1.5, 1)):
            ledger, p, d = self.engines(1, 1, admit_time=admit_time)
            with self.gateway(p, d, "--abandon-grace", grace) as g:
                c = Connection(g.port)
                c.request("POST", CHAT, chat())
                wait_until(lambda: d[0].running == 1, "with the decoder")
                c.reset()
                self.assert_quiet(g, stranded=1 - fetched)
                self.assertEqual((ledger.fetched, d[0].aborted), (fetched, 1 - fetched))

    def test_a_decoder_that_streams_for_nobody_is_cut_within_a_moment(self):
        ledger, p, d = self.engines(1, 1, token_time=0.02)
        with self.gateway(p, d) as g:
            c = Connection(g.port)
            c.request("POST", CHAT, chat(stream=True, max_tokens=5000))
            events = c.events()
            next(events)
            begun = time.monotonic()
            c.reset()
            wait_until(lambda: d[0].running == 0, "the decoder is free")
            self.assertLess(time.monotonic() - begun, 1)
            self.assertEqual(d[0].aborted, 1)

    def test_many_that_leave_near_the_hand_off_strand_nothing(self):
        ledger, p, d = self.engines(2, 2, prefill_time=0.02, admit_time=0.01, fetch_time=0.01)
        with self.gateway(p, d) as g:
            def one(i):
                c = Connection(g.port)
                c.request("POST", CHAT, chat(f"request {i}", stream=bool(i % 2)))
                threading.Event().wait(0.001 * (i % 60))
                self.leave(c, "RST" if i % 3 else "close")
            for k in range(8):
                in_threads([lambda i=i: one(i) for i in range(40 * k, 40 * k + 40)])
            self.assert_quiet(g)
            self.assertEqual(g.count("stranded_total"), 0)
            self.assertGreater(g.count("settled_total"), 0)

    def test_a_client_that_reads_nothing_holds_back_its_decoder_alone(self):
        ledger, p, d = self.engines(1, 1)
        with self.gateway(p, d) as g:
            slow = Connection(g.port)
            slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.request("POST", COMPLETIONS, completion(stream=True, max_tokens=30000, ignore_eos=True))
            wait_until(lambda: d[0].running == 1, "decoding")
            for _ in range(20):
                self.assertTrue(self.ask(g, chat(stream=True)))
            wait_until(lambda: d[0].running == 1, "one decodes still")
            with open(f"/proc/{g.pid}/statm") as f:
                self.assertLess(int(f.read().split()[1]) * 4096, 1 << 28)
            slow.reset()
            self.assert_quiet(g)

    def test_a_client_that_takes_no_end_of_its_stream_leaves_nothing_behind(self):
        """However much fits between the engine and the client: at one of these lengths the last event is too much."""
        ledger, p, d = self.engines(1, 1)
        with self.gateway(p, d) as g:
            for n in range(1, 10):
                d[0].faults = [{"pad": 500000, "join": 1000}]
                c = Connection(g.port)
                c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                c.request("POST", COMPLETIONS, completion(stream=True, max_tokens=n, ignore_eos=True))
                wait_until(lambda: ledger.fetched == n and d[0].running == 0, "the decoder has sent everything")
                for _ in range(10):
                    g.count("events_total")  # the gateway takes its turns meanwhile
                c.reset()
                self.assert_quiet(g)

    def test_a_decoder_that_does_not_end_its_body_is_left(self):
        ledger, p, d = self.engines(1, 1)
        with self.gateway(p, d, "--idle-timeout", "0.5") as g:
            d[0].faults = [{"hang": "end"}]
            self.assertEqual(self.ask(g, chat(stream=True)), expected(chat()))
            self.assert_quiet(g)

    def test_a_decoder_that_dies_while_settling_strands_one_and_says_so(self):
        ledger, p, d = self.engines(1, 1, prefill_time=0.2)
        with self.gateway(p, d) as g:
            d[0].faults = [{"reset": "request"}]
            c = Connection(g.port)
            c.request("POST", CHAT, chat())
            wait_until(lambda: p[0].running == 1, "prefilling")
            c.reset()
            wait_until(lambda: g.count("stranded_total") == 1, "it is counted")
            self.assert_quiet(g, stranded=1)

    def leave_behind_for_settling(self, g, d):
        """The decoder is taken, and a client has left its request between its legs. Returns who holds the decoder."""
        d[0].token_time = 1
        blocker = Connection(g.port)
        blocker.request("POST", CHAT, chat(max_tokens=1000))
        wait_until(lambda: d[0].running == 1, "the decoder is taken")
        c = Connection(g.port)
        c.request("POST", CHAT, chat())
        wait_until(lambda: g.count("requests_waiting") == 1, "between the legs")
        c.reset()
        wait_until(lambda: g.count("clients_gone_total") == 1, "it has left")
        return blocker

    def test_a_stop_does_not_wait_for_kv_that_nobody_fetches(self):
        for args, signals in (([], 2), (["--drain-timeout", "0.2"], 1)):
            ledger, p, d = self.engines(1, 1)
            g = self.gateway(p, d, "--instance-cap", "1", "--kv-lease", "1000", "--queue-timeout-secs", "1000", *args)
            self.addCleanup(g.stop)
            with self.leave_behind_for_settling(g, d):
                for n in range(signals):
                    g.signal(TERM)
                    wait_until(lambda: "draining" in g.output() or not g.alive(), "told")
                self.assertEqual(g.wait(10), 0)
            self.assertIn("is left to its lease", g.output())

    def test_a_stop_begins_no_more_parts(self):
        ledger, p, d = self.engines(1, 1, prefill_time=0.1)
        g = self.gateway(p, d)
        self.addCleanup(g.stop)
        # Connections that are kept: what is sent over one arrives though it is cut at once.
        in_threads([lambda: self.post(g, chat(max_tokens=1)) for _ in range(40)])
        p[0].prefill_time, p[0].requests = 60, []
        with Connection(g.port) as c:
            c.request("POST", COMPLETIONS, completion([f"prompt {i}" for i in range(40)]))
            wait_until(lambda: p[0].running == 16, "as many run as may")
            for _ in range(2):
                g.signal(TERM)
                wait_until(lambda: "draining" in g.output() or not g.alive(), "told")
            self.assertEqual(g.wait(10), 0)
        wait_until(lambda: not p[0].connections, "every connection is closed")
        self.assertEqual(len(p[0].requests), 16)

    def test_leaving_while_the_body_is_sent_costs_nothing(self):
        ledger, p, d = self.engines(1, 1)
        with self.gateway(p, d) as g:
            for how in ("close", "shutdown", "RST"):
                c = Connection(g.port)
                c.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{\"prompt\":")
                wait_until(lambda: g.count("requests_running") == 1, "it is read")
                self.leave(c, how)
                self.assert_quiet(g)
            self.assertEqual(p[0].requests, [])


if __name__ == "__main__":
    unittest.main()
