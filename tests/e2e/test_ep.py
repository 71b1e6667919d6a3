"""Ranks that share experts, as processes: one text, whoever is asked; a rank that dies or hangs ends its epoch and may come back;
behind the gateway nothing of it is seen."""
import json
import signal
import unittest

from gateway_case import COMPLETIONS, Gateway, GatewayCase, in_threads, stream_whole, text_of
from harness import BATON, MODEL, Connection, Process, Serve, TestCase, answers, baton, free_port, http, stream, wait_until
from test_pd import COMMON, Prefiller, at_rest, host, transfer

PROMPT = {"prompt": "Once upon a time there was a girl", "temperature": 0, "max_tokens": 60, "ignore_eos": True}


class Rank(Process):
    """One rank; ready only when all of its group are, so it is not waited for here."""

    def __init__(self, rank, size, dp_port, *args, port=None, env=None, model=MODEL):
        self.port, self.rank = port or free_port(), rank
        flags = [] if env else ["--data-parallel-size", str(size), "--data-parallel-rank", str(rank),
                                "--data-parallel-rpc-port", str(dp_port)]
        super().__init__([BATON, "serve", model, "--host", "127.0.0.1", "--port", str(self.port), *COMMON, *flags,
                          "--enable-expert-parallel", *args], env=env)

    def ready(self):
        wait_until(lambda: answers(self.port) or not self.alive(), f"rank {self.rank} is ready")
        if not self.alive():
            raise AssertionError(f"rank {self.rank} ended:\n{self.output()}")
        return self

    def unready(self):
        wait_until(lambda: not answers(self.port), f"rank {self.rank} is not ready any more")
        return self


class Group:
    """All ranks of one, ready."""

    def __init__(self, size, *args, model=MODEL):
        self.dp_port = free_port()
        self.ranks = [Rank(i, size, self.dp_port, *args, model=model) for i in reversed(range(size))][::-1]
        self.size, self.args = size, args

    def ready(self):
        for r in self.ranks:
            r.ready()
        return self

    def restart(self, i):
        old = self.ranks[i]
        old.stop(signal.SIGKILL)
        self.ranks[i] = Rank(i, self.size, self.dp_port, *self.args, port=old.port)

    def __enter__(self):
        return self.ready()

    def __exit__(self, kind, value, trace):
        for r in self.ranks:
            r.__exit__(kind, value, trace)


def ask(port, **more):
    r = http(port, "POST", COMPLETIONS, {**PROMPT, **more})
    assert r.status == 200, r.body
    return r.json()["choices"][0]["text"]


class Ranks(TestCase):
    def test_every_rank_says_what_one_engine_says(self):
        with Serve(*COMMON) as one, Group(3) as group:
            prompts = [f"Once upon a time there {'was a girl ' * n}" for n in range(1, 12)]
            want = {p: ask(one.port, prompt=p) for p in prompts}

            def check(rank, p):
                self.assertEqual(ask(rank.port, prompt=p), want[p])
            in_threads([lambda r=r, p=p: check(r, p) for r in group.ranks for p in prompts])
            for r in group.ranks:
                at_rest(r)

    def test_ranks_hold_parts(self):
        with Serve(*COMMON) as one, Group(2) as group:
            def held(process):
                return float(process.output().split(" MiB of weights")[0].split()[-1])
            for r in group.ranks:
                self.assertLess(held(r), held(one))

    def test_the_variables_of_older_guides_do(self):
        port = free_port()
        env = {"VLLM_DP_SIZE": "2", "VLLM_DP_MASTER_IP": "127.0.0.1", "VLLM_DP_MASTER_PORT": str(port)}
        ranks = [Rank(i, 2, port, env={**env, "VLLM_DP_RANK": str(i)}) for i in range(2)]
        for r in ranks:
            self.addCleanup(r.stop)
        self.assertEqual(ask(ranks[0].ready().port), ask(ranks[1].ready().port))

    def test_a_killed_rank_ends_the_epoch_and_comes_back(self):
        for gone in (1, 0):
            with Group(2) as group:
                want = ask(group.ranks[0].port)
                other = group.ranks[1 - gone]
                with Connection(other.port) as c:
                    c.request("POST", COMPLETIONS, {**PROMPT, "max_tokens": 1900, "stream": True})
                    events = c.events()
                    next(events)
                    group.ranks[gone].signal(signal.SIGKILL)
                    rest = list(events)
                self.assertEqual(rest[-1], "[DONE]")
                self.assertIn("error", json.loads(rest[-2]))
                other.unready()
                r = http(other.port, "POST", COMPLETIONS, PROMPT)
                self.assertEqual(r.status, 503)
                self.assertIn("missing", r.json()["error"]["message"])
                self.assertTrue(other.alive())
                group.restart(gone)
                self.assertEqual(ask(group.ranks[gone].ready().port), want)
                self.assertEqual(ask(other.ready().port), want)
                at_rest(other)

    def test_a_rank_that_hangs_is_noticed(self):
        with Group(2, "--distributed-timeout-seconds", "1") as group:
            group.ranks[1].signal(signal.SIGSTOP)
            try:
                r = http(group.ranks[0].port, "POST", COMPLETIONS, PROMPT)
                self.assertEqual(r.status, 500)
                group.ranks[0].unready()
                self.assertIn("has said nothing for 1000 ms", group.ranks[0].output())
            finally:
                group.ranks[1].signal(signal.SIGCONT)
            self.assertEqual(ask(group.ranks[0].ready().port), ask(group.ranks[1].ready().port))

    def test_a_rank_of_another_model_is_told_what_differs(self):
        port = free_port()
        with Rank(0, 2, port) as zero, Rank(1, 2, port, "--dtype", "bfloat16") as one:
            wait_until(lambda: "does not fit" in zero.output() and "does not take" in one.output(), "both say so")
            self.assertIn("its activations is bfloat16, rank 0's is float32", one.output())
            self.assertTrue(zero.alive() and one.alive())

    def test_sizes_that_cannot_be_are_refused(self):
        for flags, word in ((("--data-parallel-size", "2"), "--data-parallel-rank"),
                            (("--data-parallel-size", "2", "--data-parallel-rank", "2"), "ranks 0 to 1"),
                            (("--pipeline-parallel-size", "2"), "pipeline")):
            code, _, said = baton("serve", MODEL, "--port", str(free_port()), "--enable-expert-parallel", *flags)
            self.assertEqual(code, 2)
            self.assertIn(word, said)


class BehindTheGateway(GatewayCase):
    def test_a_killed_rank_of_a_group_is_not_seen(self):
        body = {**PROMPT, "max_tokens": 300, "stream": True}
        p = Prefiller()
        self.addCleanup(p.stop)
        with Group(2, *transfer("kv_consumer")) as a, Group(2, *transfer("kv_consumer")) as b, Serve(*COMMON) as one, \
                Gateway([host(p)], [host(r) for g in (a, b) for r in g.ranks]) as g:
            want = text_of(stream(one.port, COMPLETIONS, body))
            begun = []

            def check():
                self.assertEqual(text_of(stream_whole(g.port, COMPLETIONS, body, begun)), want)

            def kill():
                wait_until(lambda: len(begun) >= 8, "streams run")
                a.ranks[0].signal(signal.SIGKILL)
            in_threads([check] * 16 + [kill])
            self.assertGreater(g.count("continuations_total") + g.count("retries_total"), 0)
            a.restart(0)
            a.ready()
            self.assert_quiet(g)


if __name__ == "__main__":
    unittest.main()
