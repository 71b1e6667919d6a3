"""Ranks with replicas of experts, as processes: placements, experts that move while text is made, and ranks that die or hang while the
others go on. BATON_KILLS=N takes a rank away N times in a row (2)."""
import json
import os
import random
import signal
import unittest

from gateway_case import COMPLETIONS, Gateway, GatewayCase, in_threads, stream_whole, text_of
from harness import MODEL, Connection, Serve, TestCase, baton, free_port, http, metric, stream, wait_until
from test_ep import PROMPT, Group, ask
from test_pd import COMMON, Prefiller, at_rest, host, transfer

KILLS = int(os.environ.get("BATON_KILLS", "2"))
PROMPTS = [f"Once upon a time there {'was a girl ' * n}" for n in range(1, 7)]


def eplb(**config):
    return ("--enable-eplb", "--eplb-config", json.dumps({"step_interval": 0, **config}))


def shown(rank):
    return http(rank.port, "GET", "/debug/experts").json()


def count_ranks(rank, wanted):
    wait_until(lambda: metric(rank.port, "baton:group_ranks") == wanted, f"rank {rank.rank} sees {wanted} ranks")


def rebalances(rank):
    return metric(rank.port, "baton:eplb_rebalances_total")


class Placements(TestCase):
    def check(self, ranks, want):
        def one(rank, p):
            self.assertEqual(ask(rank.port, prompt=p), want[p])
        in_threads([lambda r=r, p=p: one(r, p) for r in ranks for p in PROMPTS])
        for r in ranks:
            at_rest(r)

    def test_placements_rebalances_and_drafts_change_no_text(self):
        with Serve(*COMMON) as one:
            want = {p: ask(one.port, prompt=p) for p in PROMPTS}
        with Group(3, "--expert-placement-strategy", "round_robin") as group:
            self.check(group.ranks, want)
            held = shown(group.ranks[1])["layers"][0]["experts"]
            self.assertEqual(held[1], [1, 4, 7, 10, 13])
            self.assertEqual(http(group.ranks[0].port, "POST", "/rebalance_experts").status, 400)
        with Group(4, *eplb(num_redundant_experts=8, log_balancedness=True), "--speculative-config",
                   '{"method":"deepseek_mtp","num_speculative_tokens":1}') as group:
            self.check(group.ranks, want)
            first = shown(group.ranks[0])
            for n, rank in enumerate(group.ranks[:2]):  # asked of anybody, with and without work
                self.assertEqual(http(rank.port, "POST", "/rebalance_experts").status, 202)
                if n == 0:
                    self.check(group.ranks[:3], want)
                for r in group.ranks:
                    wait_until(lambda r=r: rebalances(r) > n, f"rank {r.rank} has rebalanced")
            self.check(group.ranks, want)
            self.assertIn("expected after the rebalance", group.ranks[0].output())
            self.assertGreater(sum(metric(r.port, "baton:eplb_experts_moved_total") for r in group.ranks), 0)
            now = [shown(r) for r in group.ranks]
            self.assertNotEqual([x["experts"] for x in now[0]["layers"]], [x["experts"] for x in first["layers"]])
            for layer in range(len(now[0]["layers"])):
                self.assertEqual(len({json.dumps(x["layers"][layer]["experts"]) for x in now}), 1)
                self.assertEqual({e for r in now[0]["layers"][layer]["experts"] for e in r}, set(range(16)))
            self.assertEqual(sum(sum(x["tokens"]) for x in shown(group.ranks[3])["layers"]) > 0, True)

    def test_a_rank_with_other_settings_is_told(self):
        with Group(2) as group:
            group.ranks[1].stop()
            with type(group.ranks[1])(1, 2, group.dp_port, "--expert-placement-strategy", "round_robin") as other:
                wait_until(lambda: "its expert-placement-strategy is round_robin, rank 0's is linear" in other.output(),
                           "it is told")

    def test_settings_that_cannot_be_are_refused(self):
        ranks = ("--enable-expert-parallel", "--data-parallel-size", "3", "--data-parallel-rank", "0")
        for flags, words in (((*ranks, "--enable-eplb"), "make num_redundant_experts 2"),
                             ((*ranks, "--eplb-config", '{"num_redundant_experts":2}'), "takes --enable-eplb"),
                             ((*ranks, *eplb(num_redundant_experts=64)), "at most 32 make sense"),
                             ((*ranks, *eplb(redundant=2)), "`redundant` is no key"),
                             ((*ranks, *eplb(window_size=0)), "window_size is to be a number from 1 on"),
                             ((*ranks, "--enable-eplb", "--eplb-config", "[]"), "is to be a JSON object"),
                             ((*ranks, "--expert-placement-strategy", "best"), "linear")):
            code, _, said = baton("serve", MODEL, "--port", str(free_port()), *flags)
            self.assertEqual(code, 2, said)
            self.assertIn(words, said)


class WithoutARank(TestCase):
    """Three ranks of which two can hold everything. Any but rank 0 is killed or stopped, again and again, in the middle of
    streams of the others, which must not notice."""

    def test_the_others_go_on(self):
        chance = random.Random(7)
        with Serve(*COMMON) as one:
            want = ask(one.port, max_tokens=120)
        with Group(3, *eplb(num_redundant_experts=8), "--distributed-timeout-seconds", "2") as group:
            for n in range(KILLS):
                gone = 1 + n % 2
                self.away(group, gone, signal.SIGSTOP if n % 4 == 1 else signal.SIGKILL, want, chance)

    def away(self, group, gone, how, want, chance):
        others = [r for r in group.ranks if r.rank != gone]
        begun = []

        def check(rank):
            body = {**PROMPT, "max_tokens": 120, "stream": True}
            self.assertEqual(text_of(stream_whole(rank.port, COMPLETIONS, body, begun)), want)

        def take():
            wait_until(lambda: len(begun) >= 4, "streams run")
            if chance.random() < 0.5:
                http(others[0].port, "POST", "/rebalance_experts")
            group.ranks[gone].signal(how)
        in_threads([lambda r=r: check(r) for r in others * 2] + [take])
        for r in others:
            count_ranks(r, 2)
            self.assertEqual(ask(r.ready().port, max_tokens=120), want)
            self.assertEqual(shown(r)["ranks"], [r.rank for r in group.ranks if r.rank != gone])
        if how == signal.SIGSTOP:
            group.ranks[gone].signal(signal.SIGCONT)
        else:
            group.restart(gone)
        in_threads([lambda r=r: check(r) for r in others])  # while it comes back
        for r in group.ranks:
            self.assertEqual(ask(r.ready().port, max_tokens=120), want)
            count_ranks(r, 3)
            at_rest(r)

    def test_rank_0_is_waited_for(self):
        with Group(2, *eplb(num_redundant_experts=16)) as group:
            want = ask(group.ranks[1].port)
            group.ranks[0].signal(signal.SIGKILL)
            group.ranks[1].unready()
            group.restart(0)
            self.assertEqual(ask(group.ranks[0].ready().port), want)
            self.assertEqual(ask(group.ranks[1].ready().port), want)


class BehindTheGateway(GatewayCase):
    def test_a_killed_rank_costs_only_its_own_requests_a_detour(self):
        body = {**PROMPT, "max_tokens": 200, "stream": True}
        p = Prefiller()
        self.addCleanup(p.stop)
        with Serve(*COMMON) as one:
            want = text_of(stream(one.port, COMPLETIONS, body))
        with Group(3, *transfer("kv_consumer"), *eplb(num_redundant_experts=8)) as a, \
                Gateway([host(p)], [host(r) for r in a.ranks]) as g:
            begun = []

            def check():
                self.assertEqual(text_of(stream_whole(g.port, COMPLETIONS, body, begun)), want)

            def kill():
                wait_until(lambda: len(begun) >= 6, "streams run")
                http(a.ranks[0].port, "POST", "/rebalance_experts")
                a.ranks[2].signal(signal.SIGKILL)
            in_threads([check] * 9 + [kill])
            for r in a.ranks[:2]:
                count_ranks(r, 2)
            a.restart(2)
            a.ready()
            for r in a.ranks:
                count_ranks(r, 3)
            in_threads([check] * 6)
            self.assert_quiet(g)


if __name__ == "__main__":
    unittest.main()
