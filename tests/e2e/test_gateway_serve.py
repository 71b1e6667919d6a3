"""The gateway in front of the embedded engine: what clients read through it is what the engine says, also when a process
is killed in the middle of its streams."""
import json
import signal
import unittest

from gateway_case import CHAT, COMPLETIONS, Gateway, GatewayCase, in_threads, text_of
from harness import Connection, Serve, http, stream, wait_until

CHAT_BODY = {"messages": [{"role": "user", "content": "Tell me a story about Mia and a lantern."}], "temperature": 0,
             "max_tokens": 60, "stream": True}
COMPLETION_BODY = {"prompt": "Once upon a time there was a girl", "temperature": 0, "max_tokens": 80, "stream": True}


class Embedded(GatewayCase):
    def path(self, body):
        return CHAT if "messages" in body else COMPLETIONS

    def test_answers_through_the_gateway_equal_those_without(self):
        with Serve() as a, Serve() as b, Gateway([], [f"127.0.0.1:{a.port}", f"127.0.0.1:{b.port}"]) as g:
            for body in (CHAT_BODY, COMPLETION_BODY, {**CHAT_BODY, "return_token_ids": True, "max_tokens": 7},
                         {**COMPLETION_BODY, "logprobs": 1, "max_tokens": 9},
                         {**CHAT_BODY, "stream_options": {"include_usage": True}, "max_tokens": 5},
                         {**COMPLETION_BODY, "n": 2, "temperature": 1, "seed": 3, "max_tokens": 5}):
                got, want = [stream(port, self.path(body), body) for port in (g.port, a.port)]
                for e in got + want:
                    e.pop("id"), e.pop("created")
                for events in got, want:  # choices of n may come in any order
                    events.sort(key=lambda e: e["choices"][0]["index"] if e["choices"] else 99)
                self.assertEqual(got, want)
            whole = {**CHAT_BODY, "stream": False}
            got, want = [http(port, "POST", CHAT, whole).json() for port in (g.port, a.port)]
            for e in (got, want):
                e.pop("id"), e.pop("created")
            self.assertEqual(got, want)
            r = http(g.port, "POST", CHAT, {**CHAT_BODY, "temperature": -1})
            self.assertEqual(r.status, 400)
            self.assertEqual(r.body, http(a.port, "POST", CHAT, {**CHAT_BODY, "temperature": -1}).body)

    def test_killed_in_mid_stream_the_text_is_the_same(self):
        with Serve() as a, Serve() as b, Gateway([], [f"127.0.0.1:{a.port}", f"127.0.0.1:{b.port}"]) as g:
            # Long enough that no stream is near its end when its engine dies, whatever the machine.
            bodies = [{**x, "max_tokens": 1500, "ignore_eos": True} for x in (CHAT_BODY, COMPLETION_BODY)] * 8
            want = {json.dumps(x): text_of(stream(a.port, self.path(x), x)) for x in bodies[:2]}
            begun = []

            def one(body):
                with Connection(g.port) as c:
                    c.request("POST", self.path(body), body)
                    events = []
                    for e in c.events():
                        events.append(e)
                        if len(events) == 3:
                            begun.append(dict(c.headers)["X-Baton-Decode"])
                self.assertEqual(events[-1], "[DONE]")
                self.assertEqual(text_of([json.loads(e) for e in events[:-1]]), want[json.dumps(body)])

            def kill():
                wait_until(lambda: begun.count(f"127.0.0.1:{b.port}") >= 4, "its streams run")
                b.signal(signal.SIGKILL)
            in_threads([lambda x=x: one(x) for x in bodies] + [kill])
            self.assertGreater(g.count("continuations_total"), 0)


if __name__ == "__main__":
    unittest.main()
