"""Clients that mean harm, in bounded numbers and on this machine alone: what they send and do not take is held in bounded
memory, others are served meanwhile, and in the end nothing is left of them. (docs/threat-model.md)"""
import json
import select
import socket
import threading
import time
import unittest

from gateway_case import CHAT, COMPLETIONS, Gateway, GatewayCase, chat, completion, expected
from harness import Connection, answers, http, wait_until

KIB, MIB = 1 << 10, 1 << 20
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: test\r\n"
# AddressSanitizer keeps freed memory for a while: where the binary has it, that would be taken for the gateway's own.
PLAIN_MEMORY = {"ASAN_OPTIONS": "quarantine_size_mb=1"}


class Floods(GatewayCase):
    def gateway(self, *args, **more):
        self.ledger, self.p, self.d = self.engines(1, 1)
        g = Gateway(self.p, self.d, *args, env=PLAIN_MEMORY, **more)
        self.addCleanup(g.stop)
        for _ in range(20):  # what it allocates once
            self.serves(g)
        return g

    def serves(self, g):
        self.assertEqual(self.ask(g, chat(stream=True)), expected(chat()))

    def memory(self, g):
        with open(f"/proc/{g.pid}/status", encoding="ascii") as f:
            return next(int(line.split()[1]) * KIB for line in f if line.startswith("VmRSS"))

    def crowd(self, g, count, data):
        """So many connections, each having sent `data`."""
        crowd = []
        for _ in range(count):
            c = socket.create_connection(("127.0.0.1", g.port), 30)
            self.addCleanup(c.close)
            c.sendall(data)
            crowd.append(c)
        return crowd

    def ends(self, crowd, seconds):
        """What each is told before it is closed; within so many seconds."""
        told, left, end = {c: b"" for c in crowd}, set(crowd), time.monotonic() + seconds
        while left:
            self.assertLess(time.monotonic(), end, f"{len(left)} of {len(crowd)} are not let go")
            for c in select.select(left, [], [], 1)[0]:
                try:
                    data = c.recv(65536)
                except ConnectionResetError:
                    data = b""
                told[c] += data
                if not data:
                    left.discard(c)
        return list(told.values())

    def gone(self, g):
        """A test's own connection is left, no load, no body."""
        wait_until(lambda: g.count("connections") == 1, "the crowd has gone")
        self.assertEqual(g.count("body_bytes"), 0)
        self.assert_quiet(g)

    def test_slow_heads_are_held_small_and_let_go(self):
        g = self.gateway("--client-header-timeout", 3)
        before = self.memory(g)
        crowd = self.crowd(g, 400, HEAD + b"X-Slow: a")
        stop = threading.Event()

        def drip():  # each of them alive, none of them done
            while not stop.wait(0.2):
                for c in crowd:
                    try:
                        c.sendall(b"a")
                    except OSError:
                        pass
        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            wait_until(lambda: g.count("connections") > 400, "all are there")
            self.serves(g)
            self.assertLess(self.memory(g) - before, len(crowd) * 16 * KIB)
            told = self.ends(crowd, 60)
        finally:
            stop.set()
            dripping.join()
        self.assertTrue(all(t.startswith(b"HTTP/1.1 408 ") for t in told if t))
        self.assertGreater(sum(bool(t) for t in told), 0)
        self.gone(g)

    def test_slow_bodies_cost_what_they_have_sent(self):
        g = self.gateway("--client-body-timeout", 3)
        before = self.memory(g)
        crowd = self.crowd(g, 300, HEAD + b"Content-Length: 60000000\r\n\r\n" + b" " * 2000)
        wait_until(lambda: g.count("body_bytes") == 300 * 2000, "all have begun")
        self.serves(g)
        self.assertLess(self.memory(g) - before, len(crowd) * 24 * KIB)
        self.assertEqual(http(g.port, "GET", "/debug/requests").json()["requests"][0]["state"], "reading")
        told = self.ends(crowd, 120)
        self.assertTrue(all(t.startswith(b"HTTP/1.1 408 ") for t in told))
        self.gone(g)

    def test_heads_beyond_the_limits_are_refused(self):
        g = self.gateway()
        before = self.memory(g)
        # As much as is taken of a head, and no end of it.
        crowd = self.crowd(g, 300, HEAD + b"X-Much: " + b"a" * 32000)
        self.serves(g)
        self.assertLess(self.memory(g) - before, len(crowd) * 80 * KIB)
        for head, status in ((HEAD + b"X-Much: " + b"a" * 40000 + b"\r\n\r\n", b"431"),
                             (HEAD + b"X-Field: a\r\n" * 200 + b"\r\n", b"431"),
                             (b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\nHost: test\r\n\r\n", b"414")):
            for told in self.ends(self.crowd(g, 100, head), 60):
                self.assertEqual(told.split(b" ")[1], status)
        for c in crowd:
            c.close()
        self.gone(g)

    def test_bodies_of_all_requests_together_are_bounded(self):
        g = self.gateway("--max-bodies-size", 8 * MIB)
        go = threading.Event()
        self.addCleanup(go.set)
        self.p[0].faults = [{"params": lambda x: go.wait() and x} for _ in range(12)]
        before = self.memory(g)
        body = json.dumps(completion("a" * (MIB - 2000))).encode()
        clients = []
        for n in range(12):
            c = Connection(g.port)
            self.addCleanup(c.close)
            c.request("POST", COMPLETIONS, body)
            clients.append(c)
            wait_until(lambda: len(self.p[0].requests) - 20 + g.count("requests_total", code="503") == n + 1,
                       "it is taken in or refused")
        self.assertEqual(g.count("requests_total", code="503"), 4)
        self.assertLessEqual(g.count("body_bytes"), 8 * MIB)
        self.assertLess(self.memory(g) - before, 40 * MIB)
        full = http(g.port, "POST", "/tokenize", body)
        self.assertEqual((full.status, full.header("Retry-After")), (503, "1"))
        self.assertIn("--max-bodies-size", full.json()["error"]["message"])
        self.assertEqual(http(g.port, "POST", "/tokenize", {"prompt": "x"}).status < 500, True)  # a small one finds room
        go.set()
        self.assertEqual(sorted(c.response().status for c in clients), [200] * 8 + [503] * 4)
        for c in clients:
            c.close()
        self.gone(g)
        self.post(g, completion("a" * MIB))

    def test_what_changes_membership_is_short(self):
        g = self.gateway()
        body = json.dumps({"type": "decode", "instances": ["127.0.0.1:9"] * 30000}).encode()
        self.assertEqual(http(g.port, "POST", "/instances/add", body).status, 413)
        with Connection(g.port) as c:
            c.send(b"POST /instances/remove HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
            self.assertEqual(c.response().status, 413)
        one = {"type": "decode", "instances": self.d[0].url}
        self.assertEqual(http(g.port, "POST", "/instances/add", one).status, 200)

    def test_readers_that_take_nothing_hold_little(self):
        g = self.gateway()
        before = self.memory(g)
        crowd = []
        for _ in range(12):
            c = socket.socket()
            self.addCleanup(c.close)
            c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            c.connect(("127.0.0.1", g.port))
            body = json.dumps(completion(stream=True, max_tokens=40000, ignore_eos=True)).encode()
            self.d[0].faults.append({"pad": 100000, "join": 1})
            c.sendall(HEAD + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            crowd.append(c)
        wait_until(lambda: self.d[0].running == len(crowd), "all are being decoded")
        seen = []

        def still():  # nothing moves any more
            seen.append(g.count("events_total"))
            return len(seen) > 25 and len(set(seen[-25:])) == 1
        wait_until(still, "every stream is held back")
        self.assertLess(self.memory(g) - before, len(crowd) * 1200 * KIB)
        self.serves(g)
        for c in crowd:
            c.close()
        self.gone(g)

    def test_more_connections_than_there_are_descriptors_for(self):
        g = self.gateway(files=150)
        limit = (150 - 150 // 16) // 3
        before = self.memory(g)
        crowd = self.crowd(g, 200, b"")
        wait_until(lambda: len(crowd) == 200 and "accept" in g.output(), "the gateway says that it is full")
        self.assertLess(self.memory(g) - before, 4 * MIB)
        for c in crowd:
            c.close()
        wait_until(lambda: answers(g.port), "it answers again")
        self.assertLess(limit, 60)
        self.serves(g)
        self.gone(g)


if __name__ == "__main__":
    unittest.main()
