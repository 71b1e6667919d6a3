"""What can be seen of the gateway: requests in flight, traces, keep-alives, figures; and its page."""
import json
import os
import pty
import re
import signal
import subprocess
import tempfile
import threading
import unittest

from gateway_case import CHAT, COMPLETIONS, Gateway, GatewayCase, chat, completion, expected, text_of
from harness import BATON, Connection, baton, http, stream, wait_until

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Debug(GatewayCase):
    def setUp(self):
        self.ledger, self.p, self.d = self.engines(1, 1)

    def seen(self, g):
        return http(g.port, "GET", "/debug/requests").json()

    def states(self, g):
        return sorted(p["state"] for r in self.seen(g)["requests"] for p in r["parts"])

    def test_requests_in_flight_tell_their_state_legs_and_tokens(self):
        full = threading.Event()
        self.addCleanup(full.set)
        self.d[0].faults = [{"when": lambda r: full.wait()}]
        with Gateway(self.p, self.d, "--instance-cap", "1") as g, Connection(g.port) as a, Connection(g.port) as b:
            a.request("POST", CHAT, chat(stream=True), {"X-Request-Id": "first", "traceparent": TRACE})
            wait_until(lambda: self.states(g) == ["decode"], "the first is with the decoder")
            b.request("POST", COMPLETIONS, completion(), {"X-Request-Id": "second"})
            wait_until(lambda: self.states(g) == ["decode", "need_decode"], "the second waits for it")
            self.assertEqual((g.count("waiting", role="prefill"), g.count("waiting", role="decode")), (0, 1))
            first, second = self.seen(g)["requests"]
            self.assertEqual((first["id"], first["trace"], first["stream"], first["state"]),
                             ("first", TRACE[3:35], True, "working"))
            self.assertEqual((second["id"], second["path"], second["stream"]), ("second", COMPLETIONS, False))
            prefill, decode = (first["parts"][0][k] for k in ("prefill", "decode"))
            self.assertEqual(prefill["instance"], self.p[0].url)
            self.assertEqual(decode["instance"], self.d[0].url)
            self.assertEqual((prefill["in_flight"], decode["in_flight"]), (False, True))
            self.assertNotIn("decode", second["parts"][0])
            self.d[0].token_time = 0.01
            full.set()
            wait_until(lambda: [p["tokens"] for r in self.seen(g)["requests"] for p in r["parts"]
                                if p["state"] == "relay" and p["tokens"] > 1], "its tokens are counted")
            self.assertEqual(text_of(json.loads(e) for e in list(a.events())[:-1]), expected(chat()))
            self.assertEqual(b.response().status, 200)
            wait_until(lambda: self.seen(g) == {"count": 0, "requests": []}, "none is left")
            self.assert_quiet(g)

    def test_the_oldest_are_shown_when_there_are_many(self):
        full = threading.Event()
        self.addCleanup(full.set)
        self.p[0].faults = [{"params": lambda x: full.wait() and x}]
        with Gateway(self.p, self.d, "--instance-cap", "1") as g:
            clients = [Connection(g.port) for _ in range(30)]
            for n, c in enumerate(clients):
                self.addCleanup(c.close)
                c.request("POST", CHAT, chat(), {"X-Request-Id": f"r{n}"})
                wait_until(lambda: self.seen(g)["count"] == n + 1, "it is there")
            self.assertEqual([r["id"] for r in self.seen(g)["requests"]], [f"r{n}" for n in range(30)])
            full.set()
            for c in clients:
                self.assertEqual(c.response().status, 200)

    def test_admin_routes_want_the_key(self):
        with Gateway(self.p, self.d, "--admin-key", "secret", wait_ready=False) as g:
            wait_until(lambda: http_ready(g.port), "it is ready")
            for path in ("/debug/requests", "/debug/load"):
                self.assertEqual(http(g.port, "GET", path).status, 401)
                self.assertEqual(http(g.port, "GET", path, headers={"Authorization": "Bearer secre"}).status, 401)
                self.assertEqual(http(g.port, "GET", path, headers={"Authorization": "Bearer secret"}).status, 200)

    def test_open_admin_routes_are_warned_of_where_others_may_reach_them(self):
        # An address of this machine alone that is not written like one.
        for args, warned in ((("--host", "::ffff:127.0.0.1"), True), ((), False),
                             (("--host", "::ffff:127.0.0.1", "--admin-key", "k"), False)):
            with Gateway(self.p, self.d, *args, wait_ready=False) as g:
                wait_until(lambda: http_ready(g.port), "it is ready")
                self.assertEqual("the admin routes are open" in g.output(), warned)

    def test_the_load_is_told_with_its_last_minutes(self):
        with Gateway(self.p, self.d) as g:
            def load():
                return http(g.port, "GET", "/debug/load").json()
            wait_until(lambda: load()["history"], "a first point")
            for _ in range(3):
                self.post(g, chat())
            self.assertEqual(len(stream(g.port, CHAT, chat(stream=True))) > 3, True)
            point = wait_until(lambda: [p for p in load()["history"] if p["requests"] > 0], "the requests are in it")[0]
            self.assertGreater(point["ttft_p99"], 0)
            self.assertGreaterEqual(point["ttft_p99"], point["ttft_p50"])
            now = load()
            self.assertEqual([(i["role"], i["state"], i["done"], i["failed"]) for i in now["instances"]],
                             [("prefill", "healthy", 4, 0), ("decode", "healthy", 4, 0)])
            self.assertEqual((now["ready"], now["running"], now["streams"], now["instance_count"]), (True, 0, 0, 2))
            self.assertGreater(g.count("itl_seconds_count"), 0)
            name = self.d[0].url
            self.assertEqual(g.count("instance_legs_total", role="decode", instance=name, end="done"), 4)
            self.assertEqual(g.count("instance_streams_begun_total", instance=name), 1)


def http_ready(port):
    try:
        return http(port, "GET", "/ready").status == 200
    except (OSError, EOFError):
        return False


class Traces(GatewayCase):
    def legs(self, headers):
        for e in self.p + self.d:
            e.requests.clear()
        self.post(self.g, chat(), headers=headers)
        return [[v for k, v in r["headers"] if k.lower() == "traceparent"] for e in self.p + self.d for r in e.requests]

    def test_both_legs_carry_one_trace(self):
        self.ledger, self.p, self.d = self.engines(1, 1)
        with Gateway(self.p, self.d) as self.g:
            for good in (TRACE, "cc-" + TRACE[3:] + "-what-the-future-brings", TRACE[:-2] + "00"):
                self.assertEqual(self.legs({"traceparent": good, "tracestate": "a=b"}), [[good]] * 2)
                self.assertEqual([r["fields"]["tracestate"] for e in self.p + self.d for r in e.requests], ["a=b"] * 2)
            made = set()
            for bad in (None, "", "x", TRACE.upper(), "ff" + TRACE[2:], TRACE + "-x", TRACE[:-1],
                        TRACE.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
                        TRACE.replace("b7ad6b7169203331", "0" * 16)):
                prefill, decode = self.legs({} if bad is None else {"traceparent": bad, "tracestate": "a=b"})
                self.assertEqual(prefill, decode)
                self.assertRegex(prefill[0], "^00-[0-9a-f]{32}-[0-9a-f]{16}-01$")
                self.assertFalse(any("tracestate" in r["fields"] for e in self.p + self.d for r in e.requests))
                made.add(prefill[0])
            self.assertEqual(len(made), 9)
            # In the access log, to be found again.
            self.post(self.g, chat(), headers={"traceparent": TRACE})
            wait_until(lambda: any(r["trace"] == TRACE[3:35] for r in self.g.records()[-1:]), "its line")


class KeepAlive(GatewayCase):
    COMMENT = b": keep-alive\n\n"

    def setUp(self):
        self.ledger, self.p, self.d = self.engines(1, 1)
        self.g = Gateway(self.p, self.d, "--keepalive-secs", "0.05")
        self.addCleanup(self.g.stop)
        self.go = threading.Event()
        self.addCleanup(self.go.set)

    def begin(self, c, body):
        """Ask, and read the first comment, which comes while the prefiller computes."""
        c.request("POST", CHAT if "messages" in body else COMPLETIONS, body)
        status, headers = c.read_head()
        self.assertEqual(status, 200)
        self.assertIn(("content-type", "text/event-stream; charset=utf-8"), [(k.lower(), v) for k, v in headers])
        pieces = c.chunks(headers)
        self.assertTrue(next(pieces).startswith(self.COMMENT))
        return pieces

    def events(self, pieces):
        text = b"".join(pieces).replace(self.COMMENT, b"").decode()
        events = re.findall("data: (.*)\n\n", text)
        self.assertEqual(events[-1], "[DONE]")
        return [json.loads(e) for e in events[:-1]]

    def test_a_stream_hears_of_its_prompt_being_computed(self):
        for body in (chat(stream=True), completion(stream=True)):
            self.go.clear()
            self.p[0].faults = [{"params": lambda x: self.go.wait() and x}]
            with Connection(self.g.port) as c:
                pieces = self.begin(c, body)
                self.assertEqual(self.g.count("ttft_seconds_count"), 0 if "messages" in body else 1)
                self.go.set()
                self.assertEqual(text_of(self.events(pieces)), expected(body))
        self.assert_quiet(self.g)

    def test_a_failure_behind_it_is_an_error_event_in_the_engines_words(self):
        words = {"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}}
        for fault, message in (({"status": 400, "body": json.dumps(words, indent=1).encode()}, "too long"),
                               ({"status": 400, "body": b"no"}, "the request failed")):
            self.go.clear()
            self.p[0].faults = [{**fault, "when": lambda r: self.go.wait()}]
            with Connection(self.g.port) as c:
                pieces = self.begin(c, chat(stream=True))
                self.go.set()
                self.assertEqual([e["error"]["message"] for e in self.events(pieces)], [message])
        self.assert_quiet(self.g)

    def test_an_engine_that_does_not_stream_behind_it_is_an_error_event(self):
        body = json.dumps({"id": "x", "object": "chat.completion", "choices": []}).encode()
        self.go.clear()
        self.d[0].faults = [{"status": 200, "body": body, "when": lambda r: self.go.wait()}]
        with Connection(self.g.port) as c:
            pieces = self.begin(c, chat(stream=True))
            self.go.set()
            self.assertIn("whole answer", self.events(pieces)[0]["error"]["message"])
        self.assert_quiet(self.g, stranded=1)  # it did not fetch

    def test_a_silent_decoder_and_an_answer_that_is_not_streamed(self):
        def slow(request):
            return self.go.wait()
        self.p[0].faults = [{"params": lambda x: self.go.wait() and x}]
        with Connection(self.g.port) as whole, Connection(self.g.port) as c:
            whole.request("POST", CHAT, chat())
            wait_until(lambda: self.p[0].running == 1, "the prefiller has it")
            self.d[0].faults = [{"when": slow}] * 2
            pieces = self.begin(c, chat(stream=True))
            self.go.set()
            self.assertEqual(text_of(self.events(pieces)), expected(chat()))
            self.assertEqual(whole.response().json()["choices"][0]["message"]["content"], expected(chat()))
        self.assert_quiet(self.g)


class Pictures(GatewayCase):
    """The page, and the same in the terminal."""

    def setUp(self):
        self.ledger, self.p, self.d = self.engines(1, 2)
        self.g = Gateway(self.p, self.d)
        self.addCleanup(self.g.stop)
        self.url = f"http://127.0.0.1:{self.g.port}"

    def test_the_page_is_whole_and_asks_nobody_else(self):
        page = http(self.g.port, "GET", "/ui")
        self.assertEqual((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"))
        policy = page.header("content-security-policy")
        self.assertIn("default-src 'none'", policy)
        self.assertIn("frame-ancestors 'none'", policy)
        text = page.body.decode()
        self.assertTrue(text.startswith("<!doctype html>") and text.endswith("</html>\n"))
        self.assertEqual(re.findall(r"""(?:src|href)=|@import|url\(|https?://(?!www\.w3\.org/2000/svg)""", text), [])
        self.assertNotIn("innerHTML", text)  # names are text, whatever they hold
        # What it reads is there.
        load = http(self.g.port, "GET", "/" + re.search(r'fetch\("([^"]+)"', text).group(1)).json()
        wait_until(lambda: http(self.g.port, "GET", "/debug/load").json()["history"], "a point")
        point = http(self.g.port, "GET", "/debug/load").json()["history"][0]
        for name in re.findall(r'\["(\w+)", "[^"]*"\]', text):
            self.assertTrue(name in load or name in point, name)
        for name in re.findall(r"\bi\.(\w+)", text):
            self.assertIn(name, load["instances"][0])
        self.assertEqual(http(self.g.port, "HEAD", "/ui").status, 200)

    def test_top_prints_one_picture(self):
        self.post(self.g, chat())
        self.d[1].stop()
        wait_until(lambda: self.g.count("instances", role="decode", state="ejected") == 1, "the dead one is ejected")
        code, out, err = baton("top", self.url, "--once")
        self.assertEqual((code, err), (0, ""))
        self.assertNotIn("\033", out)
        lines = out.splitlines()
        self.assertEqual(lines[0].split(), ["gateway", self.url, "ready"])
        rows = {line.split()[0]: line.split()[1:] for line in lines[lines.index("") + 1:] if line}
        self.assertEqual(rows[self.p[0].url], ["prefill", "healthy", "0", "0", "0", "1", "0"])
        self.assertEqual(rows[self.d[1].url][:2], ["decode", "ejected"])
        code, out, _ = baton("top", self.url, "--once", "--format", "json")
        self.assertEqual((code, len(json.loads(out)["instances"])), (0, 3))

    def test_top_draws_anew_on_a_terminal(self):
        mine, theirs = pty.openpty()
        child = subprocess.Popen([BATON, "top", self.url, "--interval", "0.1"], stdin=theirs, stdout=theirs, stderr=theirs,
                                 env={**os.environ, "NO_COLOR": "1"})
        os.close(theirs)
        seen = b""
        while seen.count(b"\033[H\033[J") < 3:
            seen += os.read(mine, 65536)
        child.send_signal(signal.SIGINT)
        self.assertEqual(child.wait(20), -signal.SIGINT)
        os.close(mine)
        self.assertIn(b"requests/s", seen)

    def test_top_reads_a_cluster_file_and_tells_what_is_wrong(self):
        with tempfile.TemporaryDirectory() as dir:
            path = os.path.join(dir, "c.yaml")
            with open(os.path.join(os.path.dirname(__file__), "../../examples/local.yaml"), encoding="utf-8") as f:
                text = f.read()
            self.assertIn("port: 8000", text)
            with open(path, "w", encoding="utf-8") as f:
                f.write(text.replace("port: 8000", f"port: {self.g.port}"))
            code, out, err = baton("top", path, "--once")
            self.assertEqual((code, out.split()[1]), (0, self.url), err)
        engine = self.p[0].url
        for args, status, words in (((), 2, "which gateway"), ((self.url, "--interval", "0"), 2, "--interval"),
                                    (("http://127.0.0.1:9", "--once"), 1, "127.0.0.1:9"),
                                    (("http://" + engine, "--once"), 1, "is it a baton gateway?")):
            code, out, err = baton("top", *args)
            self.assertEqual((code, out), (status, ""), err)
            self.assertIn(words, err)
        with Gateway(self.p, self.d, "--admin-key", "secret", wait_ready=False) as g:
            wait_until(lambda: http_ready(g.port), "it is ready")
            url = f"http://127.0.0.1:{g.port}"
            code, _, err = baton("top", url, "--once")
            self.assertEqual(code, 3)
            self.assertIn("--admin-key", err)
            self.assertEqual(baton("top", url, "--once", "--admin-key", "secret")[0], 0)


if __name__ == "__main__":
    unittest.main()
