"""What the gateway's end-to-end tests share: a gateway in front of engines that misbehave on demand, and the check that
nothing is left behind."""
import json
import os
import threading

import fault_engine
from harness import BATON, Connection, Process, TestCase, answers, free_port, http, metric, stream, wait_until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def chat(text="What is six times seven?", **more):
    return {"model": "fake", "messages": [{"role": "user", "content": text}], "max_tokens": 24, **more}


def completion(prompt="six times seven is", **more):
    return {"model": "fake", "prompt": prompt, "max_tokens": 24, **more}


def text_of(events):
    """What a client reads from the chunks of choice 0."""
    out = ""
    for e in events:
        for c in e.get("choices", []):
            if c["index"] == 0:
                out += c["delta"].get("content") or "" if "delta" in c else c["text"]
    return out


def answer_text(body):
    c = body["choices"][0]
    return c["message"]["content"] if "message" in c else c["text"]


def expected(request):
    return fault_engine.expected_text(request, "messages" in request)[0]


def fail_first(decoders, fault):
    """The next decode leg, whichever instance takes it, fails so."""
    used = []

    def once(request):
        if request["max_tokens"] == 1 or used:
            return False
        used.append(1)
        return True
    for e in decoders:
        e.faults = [{**fault, "when": once}]


class Gateway(Process):
    """`baton gateway` in front of the engines, ready."""

    def __init__(self, prefill, decode, *args, wait_ready=True, files=None, env=None,
                 bootstrap=False):
        """`files`: as many descriptors as it may have. `bootstrap`: prefillers are met at their own port."""
        self.port = free_port()
        self.prefill, self.decode = prefill, decode
        argv = ["sh", "-c", f'ulimit -n {files}; exec "$0" "$@"'] if files else []
        argv += [BATON, "gateway", "--port", str(self.port), "--access-log", "-"]
        for flag, engines in (("--prefill", prefill), ("--decode", decode)):
            if engines:
                argv += [flag]
                for e in engines:
                    named = isinstance(e, str)
                    argv += [e if named else e.url]
                    argv += [e.port] if bootstrap and flag == "--prefill" and not named else []
        super().__init__([str(a) for a in argv + list(args)], env=env)
        if wait_ready:
            wait_until(lambda: self.all_healthy() or not self.alive(), "every instance is healthy")

    def all_healthy(self):
        if not answers(self.port):
            return False
        state = http(self.port, "GET", "/instances").json()
        return all(i["state"] == "healthy" and not i["stands_back"] for role in state.values() for i in role)

    def records(self):
        """The access log's lines."""
        return [json.loads(line) for line in self.output().splitlines() if '"peer"' in line]

    def count(self, name, **labels):
        return metric(self.port, "baton_gateway_" + name, **labels) or 0


GAUGES = ["requests_running", "requests_waiting", "instance_requests", "instance_tokens", "instance_held_requests",
          "instance_held_tokens"]


class GatewayCase(TestCase):
    connector = "pull"

    def gateway(self, prefill, decode, *args, connector=None, **more):
        """In front of engines that hand KV over as this class's connector does, or the one named."""
        connector = connector or self.connector
        return Gateway(prefill, decode, *(["--connector", connector] if prefill else []), *args,
                       bootstrap=connector in ("mooncake", "sglang"), **more)

    def engines(self, prefill=2, decode=2, **more):
        ledger = fault_engine.Ledger()
        p = [fault_engine.Engine("prefill", ledger, **more) for _ in range(prefill)]
        d = [fault_engine.Engine("decode", ledger, **more) for _ in range(decode)]
        for e in p + d:
            self.addCleanup(e.stop)
        return ledger, p, d

    def assert_quiet(self, gateway, ledger=None, stranded=0):
        """All counters are zero again, no engine works for nobody, no KV is left behind, the books are clean."""
        wait_until(lambda: all(gateway.count(g) == 0 for g in GAUGES),
                   f"the gateway's gauges are zero: {[(g, gateway.count(g)) for g in GAUGES]}", 20)
        engines = [e for e in gateway.prefill + gateway.decode if not isinstance(e, str)]
        wait_until(lambda: all(e.running == 0 for e in engines), "no engine works any more", 20)
        for book in {id(e.ledger): e.ledger for e in engines}.values() if ledger is None else [ledger]:
            self.assertEqual(book.violations, [])
            wait_until(lambda b=book: len(b.stranded()) <= stranded, f"nothing is stranded: {book.stranded()}", 10)

    def post(self, gateway, body, status=200, headers=None):
        path = CHAT if "messages" in body else COMPLETIONS
        r = http(gateway.port, "POST", path, body, headers)
        self.assertEqual(r.status, status, r.body)
        return r

    def ask(self, gateway, body):
        """The text, streamed or not."""
        path = CHAT if "messages" in body else COMPLETIONS
        if body.get("stream"):
            return text_of(stream(gateway.port, path, body))
        return answer_text(self.post(gateway, body).json())


def stream_whole(port, path, body, begun):
    """A stream's events up to its [DONE], which must come. When three are here, `begun` gets the decoder that it began on."""
    with Connection(port) as c:
        c.request("POST", path, body)
        events = []
        for event in c.events():
            events.append(event)
            if len(events) == 3:
                begun.append(dict(c.headers).get("X-Baton-Decode"))
    assert events[-1:] == ["[DONE]"], events[-1:]
    return [json.loads(e) for e in events[:-1]]


def in_threads(jobs, at_once=None):
    """Run callables at once, or so many at a time; raises the first exception."""
    errors, left = [], iter(jobs)
    lock = threading.Lock()

    def work():
        while True:
            with lock:
                job = next(left, None)
            if job is None:
                return
            try:
                job()
            except BaseException as e:  # noqa: B036 - handed on below
                errors.append(e)
    threads = [threading.Thread(target=work) for _ in range(at_once or len(jobs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
