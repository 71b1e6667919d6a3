#!/usr/bin/env python3
"""Instances are killed, stopped and started again under load, round after round, while clients read.

A client of a gateway that continues streams must get its complete, correct text; one of a gateway that does not
(--max-continuations 0) that, or a beginning of it and one honest error. After each round everything is at rest: no load, no
KV held, no connection left.

    tests/e2e/chaos.py [--rounds 100] [--streams 64] [--seed N] [--engines embedded|fault] [--connector pull|push|mooncake|sglang]

Embedded: two prefillers and two decoders with the small model, processes that get real signals. Fault: engines of
fault_engine.py, whose ledger checks what no single engine sees (params used twice, KV of somebody else's prompt).
Prints one line a round; the seed makes the same choices again (not the same timing). Also run, for a few rounds, by
test_chaos.py."""
import argparse
import json
import os
import random
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import fault_engine  # noqa: E402
from gateway_case import CHAT, COMPLETIONS, GAUGES, Gateway, chat, completion, text_of  # noqa: E402
from harness import Connection, Serve, free_port, metric, stream, wait_until  # noqa: E402

KINDS = ("kill", "restart", "stop", "pause", "end")
KINDS_TOLD = {"kill": "kill -9, started again after the round", "restart": "kill -9, started again at once",
              "stop": "SIGSTOP, SIGCONT after the round", "pause": "SIGSTOP, SIGCONT after a moment",
              "end": "SIGTERM, started again when it has ended"}
PROMPTS = ["Once upon a time there was a girl", "Tell me a story about Mia and a lantern.", "The old boat", "Six times seven is"]
# Health is asked often, so that who is stopped is found in seconds; with patience, for the machine may be busy.
GATEWAY = ("--health-check-interval-secs", "0.3", "--health-check-timeout-secs", "3", "--slow-start-secs", "0",
           "--drain-timeout", "5")
PATIENCE = 120  # for one answer; a round ends with an error behind it


class EmbeddedEngine:
    """A `baton serve` that is always at the same port."""

    def __init__(self, role):
        self.role, self.port, self.kv_port, self.process = role, free_port(), free_port(), None
        self.start()

    def start(self):
        config = {"kv_connector": "NixlConnector", "kv_role": "kv_" + ("producer" if self.role == "prefill" else "consumer"),
                  "kv_connector_extra_config": {"lease_seconds": 10}}
        if self.role == "prefill":
            config["kv_port"] = self.kv_port
        # Prompts are computed anew each time, so that there is a while in which a prefiller can be met at work.
        more = ["--no-enable-prefix-caching"] if self.role == "prefill" else []
        self.process = Serve("--served-model-name", "fake", "--kv-cache-blocks", "2048", "--block-size", "16", "--threads", "1",
                             "--max-num-seqs", "64", "--kv-transfer-config", json.dumps(config), *more, port=self.port)

    @property
    def url(self):
        return f"127.0.0.1:{self.port}"

    def act(self, kind, moment):
        """One of KINDS; what is left to do when the round is over."""
        if kind in ("stop", "pause"):
            self.process.signal(signal.SIGSTOP)
            if kind == "stop":
                return lambda: self.process.signal(signal.SIGCONT)
            moment()
            self.process.signal(signal.SIGCONT)
            return None
        self.process.signal(signal.SIGTERM if kind == "end" else signal.SIGKILL)
        self.process.wait()
        self.process.stop()
        if kind == "kill":
            return self.start
        self.start()
        return None

    def at_rest(self):
        return all(metric(self.port, "vllm:" + name) == 0 for name in ("kv_cache_usage_perc", "num_requests_running",
                                                                       "num_requests_waiting"))

    def close(self):
        self.process.stop(signal.SIGKILL)


class FaultEngine(fault_engine.Engine):
    def act(self, kind, moment):
        if kind in ("stop", "pause"):
            self.freeze()
            if kind == "stop":
                return self.thaw
            moment()
            self.thaw()
            return None
        self.stop()  # it knows no other end
        if kind == "kill":
            return self.restart
        self.restart()
        return None

    def at_rest(self):
        return self.running == 0

    def close(self):
        self.stop()


class Answer:
    """One answer, and whether it is right."""

    def __init__(self, gateway, body, want, seen, may_fail):
        self.gateway, self.body, self.want, self.seen, self.may_fail = gateway, body, want, seen, may_fail
        self.wrong, self.honest = None, False

    def run(self):
        try:
            self.wrong = self.check()
        except Exception as e:  # noqa: BLE001 - whatever it is, the client did not get its answer
            self.wrong = f"{type(e).__name__}: {e}"

    def check(self):
        chat_it = "messages" in self.body
        with Connection(self.gateway.port, timeout=PATIENCE) as c:
            c.request("POST", CHAT if chat_it else COMPLETIONS, self.body)
            if not self.body.get("stream"):
                r = c.response()
                self.seen()
                if r.status != 200:
                    return f"status {r.status}: {r.body[:300]!r}"
                choice, usage = r.json()["choices"][0], r.json()["usage"]
                text = choice["message"]["content"] if chat_it else choice["text"]
                return self.compare(text, usage["completion_tokens"], choice["finish_reason"])
            events = []
            for e in c.events():
                self.seen()
                events.append(e)
        if events[-1:] != ["[DONE]"]:
            return f"no [DONE]: {events[-1:]}"
        events = [json.loads(e) for e in events[:-1]]
        errors = [e for e in events if "error" in e]
        events = [e for e in events if "error" not in e]
        text = text_of(events)
        if len({e["id"] for e in events}) > 1:
            return "more than one id"
        if chat_it and sum("role" in x["delta"] for e in events for x in e["choices"]) > 1:
            return "the role came twice"
        if errors:
            self.honest = len(errors) == 1 and errors[0]["error"]["code"] == 502 and self.want[0].startswith(text)
            return None if self.may_fail and self.honest else f"after {len(text)} bytes: {errors}"
        finishes = [x["finish_reason"] for e in events for x in e["choices"] if x["finish_reason"]]
        usage = [e["usage"] for e in events if e.get("usage")]
        if len(finishes) != 1 or len(usage) != 1:
            return f"{len(finishes)} ends, {len(usage)} usages"
        return self.compare(text, usage[0]["completion_tokens"], finishes[0])

    def compare(self, *got):
        return None if got == self.want else f"wanted {self.want}, got {got}"


class World:
    """Engines, two gateways in front of them (one that continues streams, one that does not), and what is right."""

    def __init__(self, kind, connector, tokens):
        ledger = fault_engine.Ledger(lease=1e9)
        self.ledger, self.engines, self.gateways = ledger, [], []
        try:
            if kind == "embedded":
                self.engines = [EmbeddedEngine(role) for role in ("prefill", "prefill", "decode", "decode")]
            else:
                self.engines = [FaultEngine(role, ledger, token_time=0.005, prefill_time=0.02)
                                for role in ("prefill", "prefill", "decode", "decode")]
            self.bodies = self.make_bodies(tokens)
            self.wants = self.learn(kind)
            prefill, decode = ([e.url if kind == "embedded" else e for e in self.engines if e.role == role]
                               for role in ("prefill", "decode"))
            for more in ((), ("--max-continuations", 0)):
                self.gateways.append(Gateway(prefill, decode, "--connector", connector, *GATEWAY, *more,
                                             bootstrap=connector in ("mooncake", "sglang")))
        except BaseException:
            self.close()
            raise

    def make_bodies(self, tokens):
        bodies = []
        for i in range(24):
            make = chat if i % 2 else completion
            more = {"stream": True, "stream_options": {"include_usage": True}} if i % 4 != 3 else {}
            prompt = " ".join([f"Story {i}."] + [PROMPTS[i // 2 % 4]] * (1 + i // 8 * 12))
            bodies.append(make(prompt, max_tokens=tokens - i, temperature=0, ignore_eos=True, **more))
        return bodies

    def learn(self, kind):
        """What an engine says that nobody disturbs: text, tokens and why it ended."""
        alone = Serve("--served-model-name", "fake") if kind == "embedded" else fault_engine.Engine("decode")
        wants = []
        try:
            for body in self.bodies:
                whole = {**body, "stream": True, "stream_options": {"include_usage": True}}
                events = stream(alone.port, CHAT if "messages" in body else COMPLETIONS, whole)
                finishes = [c["finish_reason"] for e in events for c in e["choices"] if c["finish_reason"]]
                wants.append((text_of(events), events[-1]["usage"]["completion_tokens"], finishes[0]))
        finally:
            alone.stop()
        return wants

    def quiet(self):
        """Everything is at rest again, within a time in which leases end."""
        for g in self.gateways:
            wait_until(g.all_healthy, f"all are healthy: {g.output()[-2000:]}")
            wait_until(lambda g=g: all(g.count(x) == 0 for x in GAUGES) and g.count("connections") == 1,
                       "the gateway is at rest")
        for e in self.engines:
            wait_until(e.at_rest, f"{e.role} {e.url} is at rest")
        complaints, self.ledger.violations = self.ledger.violations, []
        assert not complaints, complaints

    def close(self):
        for x in self.gateways:
            x.stop()
        for e in self.engines:
            e.close()


ASKS = 3  # of each client, one after the other, so that there are prefills all the time


def one_round(world, rng, streams, victim, kind):
    """Returns the answers. All clients begin at once; at some moment on their way something happens to the victim."""
    lock, events = threading.Lock(), [0]

    def seen():
        with lock:
            events[0] += 1
    clients = []
    for i in range(streams):
        off = i % 4 == 3  # a quarter of them without continuation
        chosen = [rng.randrange(len(world.bodies)) for _ in range(ASKS)]
        clients.append([Answer(world.gateways[off], world.bodies[n], world.wants[n], seen, off) for n in chosen])
    answers = [a for c in clients for a in c]
    total = sum(a.want[1] if a.body.get("stream") else 1 for a in answers)
    threads = [threading.Thread(target=lambda c=c: [a.run() for a in c]) for c in clients]

    def until(share):
        at = events[0] + share * (total - events[0])
        wait_until(lambda: events[0] >= at or not any(t.is_alive() for t in threads), "a moment on the way", PATIENCE)
    for t in threads:
        t.start()
    until(rng.random() * 0.9)
    # Others go on while one is stopped, so that a moment passes by their events, or by time when all wait for this one.
    length = rng.random() / 2
    end = time.monotonic() + rng.choice((0.05, 0.5, 4))

    def moment():
        at = events[0] + length * (total - events[0])
        while events[0] < at and time.monotonic() < end and any(t.is_alive() for t in threads):
            time.sleep(0.01)
    repair = victim.act(kind, moment)
    for t in threads:
        t.join()  # each read has its deadline
    if repair:
        repair()
    return answers


def run(rounds, streams, seed, kind="embedded", connector="pull", tokens=200, say=print, harms=None):
    """Returns what went wrong, as lines. `harms`: what happens in which round, as (role, one of KINDS), again and again;
    else each kind to each role, in any order, then again."""
    rng, problems = random.Random(seed), []
    say(f"seed {seed}: {rounds} rounds of {streams} clients, {kind} engines, {connector}")
    world = World(kind, connector, tokens)
    try:
        plan = []
        for n in range(1, rounds + 1):
            if not plan:
                plan = list(harms or [(r, k) for r in ("prefill", "decode") for k in KINDS])
                if not harms:
                    rng.shuffle(plan)
            role, harm = plan.pop(0)
            victim = rng.choice([e for e in world.engines if e.role == role])
            begun = time.monotonic()
            before = [g.count("continuations_total") + g.count("retries_total") for g in world.gateways]
            answers = one_round(world, rng, streams, victim, harm)
            bad = [f"round {n}, {harm} of {victim.role}: {'off' if c.may_fail else 'on'} {json.dumps(c.body)}: {c.wrong}"
                   for c in answers if c.wrong]
            try:
                world.quiet()
            except AssertionError as e:
                bad.append(f"round {n}, {harm} of {victim.role}, not at rest: {e}")
            moved = sum(g.count("continuations_total") + g.count("retries_total") for g in world.gateways) - sum(before)
            say(f"round {n}: {harm} of {victim.role} {victim.url}: {sum(not c.wrong and not c.honest for c in answers)} whole, "
                f"{sum(c.honest for c in answers)} honest errors, {len(bad)} wrong; {moved:.0f} legs went elsewhere, "
                f"{time.monotonic() - begun:.1f} s")
            for line in bad:
                say("  " + line[:400])
            problems += bad
            if bad and kind == "embedded" and os.environ.get("CHAOS_LOGS"):
                for p in [*world.gateways, *(e.process for e in world.engines)]:
                    say(f"--- {' '.join(p.argv)[:200]}\n" + p.output()[-6000:])
    finally:
        world.close()
    return problems


def main():
    a = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0],
                                epilog="; ".join(f"{k}: {v}" for k, v in KINDS_TOLD.items()))
    a.add_argument("--rounds", type=int, default=100)
    a.add_argument("--streams", type=int, default=64)
    a.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    a.add_argument("--engines", choices=("embedded", "fault"), default="embedded")
    a.add_argument("--connector", choices=("pull", "push", "mooncake", "sglang"), default="pull")
    a.add_argument("--tokens", type=int, default=200, help="of an answer, at most")
    o = a.parse_args()
    problems = run(o.rounds, o.streams, o.seed, o.engines, o.connector, o.tokens, lambda x: print(x, flush=True))
    print(f"{o.rounds} rounds, {len(problems)} problems, seed {o.seed}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
