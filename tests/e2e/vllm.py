#!/usr/bin/env python3
"""Real vLLM servers behind the gateway: what clients read through it is what vLLM says without it, also when a server is
killed in mid-stream. By hand, where a vLLM is installed (for CPUs too); `make vllm VLLM=…` runs it.

    tests/e2e/vllm.py /path/to/bin/vllm [--pd]

--pd: with a prefiller and two decoders over NixlConnector, too. Servers take a minute or two each to start on a small machine."""
import argparse
import json
import os
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from gateway_case import CHAT, COMPLETIONS, Gateway, in_threads, text_of  # noqa: E402
from harness import MODEL, Connection, Process, answers, free_port, http, stream, wait_until  # noqa: E402

STARTS_WITHIN = 600
STORY = "Once upon a time there was a girl"
ASK = [{"role": "user", "content": "Tell me a story about Mia and a lantern."}]


class Vllm(Process):
    def __init__(self, binary, *args):
        self.port = free_port()
        # Our model's heads have other sizes than the kernels for latent attention on CPUs know.
        env = {"VLLM_MLA_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
               "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port())}
        # float32: the same tokens, however requests are batched.
        super().__init__([binary, "serve", MODEL, "--served-model-name", "fake", "--dtype", "float32", "--max-model-len", "1024",
                          "--max-num-seqs", "16", "--enforce-eager", "--host", "127.0.0.1", "--port", str(self.port), *args], env)

    @property
    def url(self):
        return f"127.0.0.1:{self.port}"

    def ready(self):
        wait_until(lambda: answers(self.port) or not self.alive(), "vLLM answers", STARTS_WITHIN)
        if not self.alive():
            raise SystemExit(f"vllm ended:\n{self.output()[-3000:]}")

    def kill(self):
        """All of it: its engine is a process of its own."""
        os.killpg(self.pid, signal.SIGKILL)

    def stop(self, number=signal.SIGTERM):
        if self.alive():
            self.kill()
        super().stop(number)


def bodies():
    greedy = {"model": "fake", "temperature": 0}
    chats = [{}, {"max_completion_tokens": 9}, {"n": 2, "temperature": 1, "seed": 7}, {"logprobs": True, "top_logprobs": 2}, {"stop": ["the"]},
             {"return_token_ids": True}, {"max_tokens": 0}, {"temperature": -1}, {"seed": 3, "temperature": 1}]
    texts = [{}, {"echo": True}, {"logprobs": 1}, {"stop": " the"}, {"n": 2, "temperature": 1, "seed": 5}, {"return_token_ids": True},
             {"prompt": [STORY, "The old boat"]}, {"prompt": [5, 6, 7]}, {"min_tokens": 30, "max_tokens": 40}, {"max_tokens": 5000},
             {"model": "nobody"}, {"prompt": [2] * 2000}]
    for base, variants in (({**greedy, "messages": ASK, "max_tokens": 24}, chats), ({**greedy, "prompt": STORY, "max_tokens": 24}, texts)):
        for v in variants:
            for more in ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}):
                yield {**base, **v, **more}


def path_of(body):
    return CHAT if "messages" in body else COMPLETIONS


def fold(events):
    """A stream's events as one: vLLM puts what has come meanwhile into one chunk, as many tokens as that may be."""
    choices, rest = {}, []
    for e in events:
        for c in e.get("choices") or []:
            whole = choices.setdefault(c["index"], {"members": set()})
            whole["members"] |= set(c) | set(c.get("delta", ()))
            for key, value in {**c, **c.get("delta", {})}.items():
                if isinstance(value, dict) and key == "logprobs":
                    for k, v in value.items():
                        whole.setdefault("logprobs " + k, []).extend(v)
                elif key in ("content", "text"):
                    whole[key] = whole.get(key, "") + (value or "")
                elif key == "token_ids" and value:
                    whole[key] = whole.get(key, []) + value
                elif value is not None and key not in ("delta", "index"):
                    whole.setdefault(key, []).append(value)
        if not e.get("choices"):
            rest.append(e)
    frames = {(e.get("object"), e.get("model")) for e in events}
    return sorted(frames, key=str), sorted(choices.items()), rest


def strip(e):
    """What differs from one time to the next."""
    for key in ("id", "created", "kv_transfer_params", "system_fingerprint"):
        e.pop(key, None)
    if e.get("usage"):  # of caches, which are warm for whoever asks second; null members are no news
        e["usage"] = {k: v for k, v in e["usage"].items() if k != "prompt_tokens_details" and v is not None}
    return e


def told(port, body):
    r = http(port, "POST", path_of(body), body)
    if r.status != 200 or not body.get("stream"):
        return r.status, strip(r.json())
    parts = [p[6:] for p in r.body.decode().split("\n\n") if p]
    return r.status, parts[-1], fold([strip(json.loads(p)) for p in parts[:-1]])


def compare(gateway, engine):
    wrong = count = 0
    for body in bodies():
        got, want = told(gateway.port, body), told(engine.port, body)
        count += 1
        if got != want:
            wrong += 1
            print(f"not equal: {json.dumps(body)[:300]}\n  through the gateway: {str(got)[:2500]}\n  without: {str(want)[:2500]}")
    print(f"{count - wrong} of {count} answers equal those without the gateway", flush=True)
    return wrong


def kill_one(gateway, engine, victim):
    """Streams on it go on elsewhere, and read as if nothing had been."""
    requests = [{"model": "fake", "temperature": 0, "max_tokens": 300, "ignore_eos": True, "stream": True,
                 "stream_options": {"include_usage": True}, **more}
                for more in ({"messages": ASK}, {"prompt": STORY})] * 4
    want = [stream(engine.port, path_of(b), b) for b in requests[:2]]
    begun, wrong = [], []

    def one(n):
        body = requests[n]
        with Connection(gateway.port) as c:
            c.request("POST", path_of(body), body)
            events = []
            for e in c.events():
                events.append(e)
                if len(events) == 5:
                    begun.append(dict(c.headers)["X-Baton-Decode"])
        events = [json.loads(e) for e in events[:-1]]
        usage = [{k: u for k, u in e["usage"].items() if k != "prompt_tokens_details"} for es in (events, want[n % 2])
                 for e in es[-1:] if e.get("usage")]
        if text_of(events) != text_of(want[n % 2]) or len({e.get("id") for e in events}) != 1 or usage[:1] != usage[1:]:
            wrong.append(n)
            print(f"not equal after a kill: {events[-1]}\n  {text_of(events)}\n  {text_of(want[n % 2])}")

    def kill():
        wait_until(lambda: begun.count(victim.url) >= 2, "its streams run")
        victim.kill()
    in_threads([lambda n=n: one(n) for n in range(len(requests))] + [kill])
    continued = gateway.count("continuations_total")
    print(f"killed in mid-stream: {len(requests) - len(wrong)} of {len(requests)} streams equal those without a kill, "
          f"{continued:.0f} were continued", flush=True)
    return len(wrong) + (continued == 0)


def main():
    a = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    a.add_argument("vllm", help="its program")
    a.add_argument("--pd", action="store_true", help="prefill and decode apart, over NixlConnector")
    o = a.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # vLLM's engines outlive whoever does not end them
    engines, wrong, begun = [], 0, time.monotonic()
    try:
        roles = ["kv_producer", "kv_consumer", "kv_consumer"] if o.pd else [None, None]
        for role in roles:
            config = {"kv_connector": "NixlConnector", "kv_role": role, "kv_buffer_device": "cpu"}
            engines.append(Vllm(o.vllm, *(["--kv-transfer-config", json.dumps(config)] if role else [])))
            engines[-1].ready()  # one after the other: each wants the whole machine while it starts
        print(f"{len(engines)} servers of vLLM {http(engines[0].port, 'GET', '/version').json()['version']} after "
              f"{time.monotonic() - begun:.0f} s", flush=True)
        prefill, decode = ([engines[0].url], [e.url for e in engines[1:]]) if o.pd else ([], [e.url for e in engines])
        with Gateway(prefill, decode) as g:
            wrong += compare(g, engines[-1])
            wrong += kill_one(g, engines[-1], engines[-2])
    finally:
        for e in engines:
            e.stop()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
