"""KV events end to end: engines tell what their prefix caches hold, and the gateway sends a prompt to whoever has it, also
when it was not this gateway that sent it there."""
import json
import unittest

from gateway_case import CHAT, COMPLETIONS, Gateway
from harness import KILL, MODEL, Serve, TestCase, baton, free_port, http, wait_until

TEXT = "Once upon a time there was a girl named Mia, who had a lantern and a small grey cat. " * 6
OTHER = "The sea was calm that morning, and the boats lay still in the harbour of the old town. " * 6


def chat(text, **more):
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 2, "temperature": 0, **more}


class Engine(Serve):
    def __init__(self, ports=None, replay=True, **more):
        self.ports = ports or [free_port() for _ in range(3)]
        config = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"tcp://127.0.0.1:{self.ports[1]}",
                  "topic": "kv@test"}
        if replay:
            config["replay_endpoint"] = f"tcp://127.0.0.1:{self.ports[2]}"
        super().__init__("--block-size", "16", "--enable-prompt-tokens-details", "--kv-events-config",
                         json.dumps(config), port=self.ports[0], **more)

    @property
    def url(self):
        return f"127.0.0.1:{self.ports[0]}"

    def events(self, replay=True):
        return f"{self.url}=tcp://*:{self.ports[1]}" + (f",tcp://*:{self.ports[2]}" if replay else "")


class KvEvents(TestCase):
    def engine(self, *args, **more):
        e = Engine(*args, **more)
        self.addCleanup(e.stop)
        return e

    def gateway(self, engines, *args, rows=None):
        g = Gateway([], [], "--worker-urls", *[e.url for e in engines], "--policy", "prefix_aware", "--kv-events",
                    *(rows or [e.events() for e in engines]), *args, wait_ready=False)
        self.addCleanup(g.stop)
        wait_until(g.all_healthy, "every instance is healthy")
        return g

    def told(self, gateway, engine):
        return next(i for i in http(gateway.port, "GET", "/instances").json()["decode"]
                    if i["instance"] == engine.url)["kv_events"]

    def wait_state(self, gateway, engine, state, blocks=None):
        wait_until(lambda: self.told(gateway, engine)["state"] == state and
                   (blocks is None or self.told(gateway, engine)["blocks"] == blocks), f"{state} with {blocks} blocks")

    def cached(self, answer):
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    def ask(self, port, body):
        r = http(port, "POST", CHAT if "messages" in body else COMPLETIONS, body)
        self.assertEqual(r.status, 200, r.body)
        return r

    def warm(self, gateway, engine, body):
        """As another gateway would do it. Returns how many blocks the engine has told of since."""
        before = self.told(gateway, engine)["blocks"]
        self.assertEqual(self.cached(self.ask(engine.port, body)), 0)
        wait_until(lambda: self.told(gateway, engine)["blocks"] > before, "the blocks are told")
        return self.told(gateway, engine)["blocks"] - before

    def test_a_prompt_goes_to_whoever_has_it(self):
        a, b = self.engine(), self.engine()
        g = self.gateway([a, b], "--tokenizer", str(MODEL))
        for e in (a, b):
            self.wait_state(g, e, "live", 0)
        # This gateway has never seen them; what is asked for next is longer than what was computed.
        ids = list(range(300, 400))
        prompts = [(a, chat(TEXT), chat(TEXT + "What was its name?")), (b, chat(OTHER), chat(OTHER + "And then?")),
                   (b, {"prompt": TEXT[10:], "max_tokens": 2}, {"prompt": TEXT[10:] + "One day", "max_tokens": 2}),
                   (a, {"prompt": ids, "max_tokens": 2}, {"prompt": ids + [5, 6], "max_tokens": 2}),
                   (b, chat(TEXT, cache_salt="tenant"), chat(TEXT + "Why?", cache_salt="tenant"))]
        for engine, first, longer in prompts:
            blocks = self.warm(g, engine, first)
            for _ in range(2):
                answer = self.ask(g.port, longer)
                self.assertEqual(answer.header("X-Baton-Decode"), engine.url)
                self.assertGreaterEqual(self.cached(answer), 16 * (blocks - 1))
        # As the metrics have it.
        for e in (a, b):
            self.assertEqual(g.count("kv_events_up", instance=e.url), 1)
            self.assertEqual(g.count("kv_blocks", instance=e.url), self.told(g, e)["blocks"])
            self.assertEqual(g.count("kv_event_gaps_total", instance=e.url), 0)
        self.assertEqual(g.count("kv_index_blocks", role="decode"), sum(self.told(g, e)["blocks"] for e in (a, b)))
        states = {i["name"]: i["kv_events"] for i in http(g.port, "GET", "/debug/load").json()["instances"]}
        self.assertEqual(states, {a.url: "live", b.url: "live"})
        # A gateway that comes later is told all of it.
        late = self.gateway([a, b], "--tokenizer", str(MODEL))
        for e in (a, b):
            self.wait_state(late, e, "live", self.told(g, e)["blocks"])
        for engine, _, longer in prompts:
            self.assertEqual(self.ask(late.port, longer).header("X-Baton-Decode"), engine.url)
        # What the engine forgets is forgotten.
        self.assertEqual(http(a.port, "POST", "/reset_prefix_cache").status, 200)
        self.wait_state(g, a, "live", 0)

    def test_an_engine_that_is_started_again_begins_anew(self):
        a, b = self.engine(), self.engine()
        g = self.gateway([a, b], "--tokenizer", str(MODEL))
        self.wait_state(g, a, "live", 0)
        self.warm(g, a, chat(TEXT))
        a.signal(KILL)
        a.wait()
        self.wait_state(g, a, "lost")
        self.assertEqual(g.count("kv_events_up", instance=a.url), 0)
        self.assertEqual(self.ask(g.port, chat(TEXT)).header("X-Baton-Decode"), b.url)
        again = self.engine(a.ports)
        self.wait_state(g, again, "live", 0)
        self.assertEqual(self.told(g, again)["restarts"], 1)
        self.warm(g, again, chat(OTHER))
        wait_until(g.all_healthy, "it is back")
        self.assertEqual(self.ask(g.port, chat(OTHER)).header("X-Baton-Decode"), a.url)

    def test_what_cannot_be_told_is_visible_and_guessed(self):
        a, b = self.engine(replay=False), self.engine(replay=False)
        self.ask(a.port, chat(TEXT))  # nobody hears of it
        g = self.gateway([a, b], rows=[a.events(False), f"{b.url}=tcp://127.0.0.1:{free_port()}"])
        self.wait_state(g, a, "catching_up")
        asked = iter(range(1000))  # connected is not yet subscribed: the first ones may not be heard
        wait_until(lambda: self.ask(a.port, chat(f"{next(asked)} {OTHER}")) and self.told(g, a)["state"] == "partial",
                   "a tells, and what it had before is not known")
        self.assertEqual((self.told(g, b)["state"], g.count("kv_events_up", instance=b.url)), ("lost", 0))
        self.assertEqual(g.count("kv_events_up", instance=a.url), 0.5)
        # Without a tokenizer a text goes where this gateway has sent its beginning.
        first = self.ask(g.port, chat(TEXT)).header("X-Baton-Decode")
        for _ in range(3):
            self.assertEqual(self.ask(g.port, chat(TEXT + "Why?")).header("X-Baton-Decode"), first)
        self.assertIn("texts are guessed", g.output())

    def test_wrong_options_are_told(self):
        for args, word in ((["--kv-events", "5557"], "tcp://HOST:PORT"),
                           (["--kv-events", "tcp://*:5557,nowhere"], "tcp://HOST:PORT"),
                           (["--kv-events", "tcp://*:5557", "--policy", "prefix_aware", "--tokenizer", "/nowhere"],
                            "/nowhere")):
            code, _, said = baton("gateway", *args)
            self.assertEqual(code, 2)
            self.assertIn(word, said)
        for config, word in (("[]", "not a JSON object"), ('{"publisher":"kafka"}', "kafka"),
                             ('{"endpoint":"*:5557"}', "tcp://HOST:PORT"), ('{"buffer_steps":0}', "buffer_steps")):
            code, _, said = baton("serve", str(MODEL), "--kv-events-config", config)
            self.assertEqual(code, 2)
            self.assertIn(word, said)


if __name__ == "__main__":
    unittest.main()
