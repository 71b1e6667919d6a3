"""Prefiller and decoder called at once, told where to meet: vLLM's MooncakeConnector, SGLang. The client notices nothing of
what engines do; no decoder waits for KV that does not come; nothing is left behind."""
import unittest

import test_gateway_cancel
import test_gateway_faults
from fault_engine import Engine, decode, encode, generate
from gateway_case import CHAT, COMPLETIONS, GatewayCase, chat, completion, expected, in_threads, text_of
from harness import Connection, answers, http, stream, wait_until


class MooncakeCancel(test_gateway_cancel.Cancel):
    connector = "mooncake"
    test_the_matrix = None  # it is for all connectors
    # Of a hand-off in the prefill leg's answer.
    test_a_decode_leg_has_its_grace_to_fetch = None
    test_many_that_leave_near_the_hand_off_strand_nothing = None
    test_a_decoder_that_dies_while_settling_strands_one_and_says_so = None
    test_a_stop_does_not_wait_for_kv_that_nobody_fetches = None
    test_a_stop_begins_no_more_parts = None


class MooncakeBeforeTheFirstByte(test_gateway_faults.BeforeTheFirstByte):
    connector = "mooncake"
    test_params_that_a_decoder_could_not_use_are_never_sent = None
    test_without_params_from_any_prefiller_the_client_is_told = None
    test_a_decoder_may_be_let_compute_the_prompt = None
    test_a_decoder_that_is_too_busy_leaves_the_prompt_prefilled = None


class MooncakeAfterTheFirstByte(test_gateway_faults.AfterTheFirstByte):
    connector = "mooncake"
    test_a_plain_stream_goes_on_too = None


class SglangCancel(MooncakeCancel):
    connector = "sglang"


class Mooncake(GatewayCase):
    connector = "mooncake"
    in_body = ("kv_transfer_params",)

    def test_both_are_called_at_once_and_meet(self):
        ledger, p, d = self.engines(2, 2, prefill_time=0.05)
        with self.gateway(p, d) as g:
            bodies = [chat(), chat(stream=True), completion(), completion([500, 65, 66], stream=True)]
            in_threads([lambda b=b: self.assertEqual(self.ask(g, b), expected(b)) for b in bodies * 4])
            self.assertEqual((ledger.committed, ledger.fetched), (16, 16))
            for e in p + d:
                self.assertTrue(all(key in r["body"] for r in e.requests for key in self.in_body))
            self.assert_quiet(g)

    def test_the_decoder_does_not_wait_for_the_prefillers_answer(self):
        ledger, p, d = self.engines(1, 1, prefill_time=60)
        with self.gateway(p, d) as g:
            with Connection(g.port) as c:
                c.request("POST", CHAT, chat())
                wait_until(lambda: p[0].running == 1 and d[0].running == 1, "both work")
            self.assert_quiet(g)

    def test_lists_and_choices_meet_one_by_one(self):
        ledger, p, d = self.engines()
        with self.gateway(p, d) as g:
            answer = self.post(g, completion(["one", "two"], n=2)).json()
            self.assertEqual([c["text"] for c in answer["choices"]],
                             [expected(completion(x)) for x in ("one", "two") for _ in range(2)])
            self.assertEqual(ledger.committed, 4)
            self.assert_quiet(g)

    def test_a_prefill_that_fails_ends_its_decode_leg(self):
        """Which would wait for ever; both begin anew, elsewhere and under another name."""
        ledger, p, d = self.engines()
        with self.gateway(p, d) as g:
            for fault in ({"status": 500}, {"status": 429}, {"reset": "request"}):
                for body in (chat(), chat(stream=True)):
                    p[0].faults, p[1].faults = [fault], []
                    for _ in range(2):
                        self.assertEqual(self.ask(g, body), expected(body))
                    self.assertEqual(p[0].faults, [])
                    wait_until(g.all_healthy, "all healthy again")
            for e in p:
                e.faults = [{"status": 400, "always": True}]
            self.post(g, chat(), status=400)
            self.assert_quiet(g)

    def test_events_held_of_a_leg_are_forgotten_when_its_prefill_fails(self):
        """Half a character has come from the decoder, nothing has gone to the client; then the prefiller breaks."""
        prompt = next(p for p in map(str, range(1000)) if decode(generate(encode(p), 1)[0]) == "\ufffd")
        ledger, p, d = self.engines()
        with self.gateway(p, d, "--prefill-timeout", 1) as g:
            for e in p:
                e.faults = [{"hang": 0}]
            for e in d:
                e.faults = [{"hang": 1}]
            body = completion(prompt, stream=True, max_tokens=30, return_token_ids=True, ignore_eos=True)
            events = stream(g.port, COMPLETIONS, body)
            self.assertEqual([t for e in events for c in e["choices"] for t in c["token_ids"]],
                             generate(encode(prompt), 30, ignore_eos=True)[0])
            self.assertEqual(text_of(events), expected(body))

    def test_a_decoder_that_ends_first_does_not_cut_the_prefiller(self):
        ledger, p, d = self.engines(1, 1)
        with self.gateway(p, d) as g:
            p[0].faults = [{"drip": 0.002}]  # its answer takes its time, its KV is there
            self.assertEqual(self.ask(g, chat()), expected(chat()))
            self.assert_quiet(g)
            self.assertEqual(p[0].aborted, 0)
            self.assertEqual(g.count("legs_total", role="prefill", end="done"), 1)

    def test_many_that_leave_near_the_hand_off_strand_nothing(self):
        ledger, p, d = self.engines(2, 2, prefill_time=0.02, admit_time=0.01, fetch_time=0.01)
        with self.gateway(p, d) as g:
            def one(i):
                c = Connection(g.port)
                c.request("POST", CHAT, chat(f"request {i}", stream=bool(i % 2)))
                test_gateway_cancel.threading.Event().wait(0.001 * (i % 60))
                self.leave(c, i)
            for k in range(4):
                in_threads([lambda i=i: one(i) for i in range(40 * k, 40 * k + 40)])
            self.assert_quiet(g)

    def leave(self, c, i):
        if i % 3:
            c.reset()
        else:
            c.close()


class Sglang(Mooncake):
    connector = "sglang"
    in_body = ("bootstrap_host", "bootstrap_port", "bootstrap_room", "rid")


class Bootstrap(GatewayCase):
    connector = "mooncake"

    def test_an_engine_that_was_started_again_is_known_by_its_new_id(self):
        ledger, p, d = self.engines(1, 1)
        with self.gateway(p, d, "--health-check-interval-secs", "0.1") as g:
            self.assertEqual(self.ask(g, chat()), expected(chat()))
            seen = p[0].queries
            p[0].engine_id = "another"
            wait_until(lambda: p[0].queries > seen + 1, "it has been asked")
            self.assertEqual(self.ask(g, chat()), expected(chat()))
            self.assert_quiet(g)

    def test_an_engine_that_was_started_again_unnoticed_is_asked_for_its_id_when_a_decoder_misses_it(self):
        for prefillers in (1, 2):
            ledger, p, d = self.engines(prefillers, 1)
            with self.gateway(p, d, "--health-check-interval-secs", "1000") as g:
                for e in p:
                    e.earlier, e.engine_id = [e.engine_id], f"another {e.port}"
                for body in (chat(), chat(stream=True)):
                    self.assertEqual(self.ask(g, body), expected(body))
                self.assertEqual(g.count("requests_total", code="200"), 2)
                self.assertEqual(ledger.violations, [])

    def test_a_prefiller_whose_bootstrap_server_is_not_there_is_not_chosen(self):
        ledger, p, d = self.engines(1, 1)
        other = Engine("prefill", ledger)
        self.addCleanup(other.stop)
        p[0].query = {"status": 500}
        with self.gateway([*p, other], d, "--waiting-retry-interval", "0.05", wait_ready=False) as g:
            wait_until(lambda: answers(g.port, "/ready"), "one is ready")
            for _ in range(4):
                self.assertEqual(self.ask(g, chat()), expected(chat()))
            self.assertEqual(p[0].requests, [])
            self.assertIn("bootstrap server", g.output())
            p[0].query = None
            wait_until(g.all_healthy, "it is there")

    def test_ranks_are_named_one_by_one(self):
        ledger, p, d = self.engines(1, 1)
        p[0].query = {"body": {p[0].engine_id: {"0": {}, "1": {}}}}  # as vLLM wrote it first
        with self.gateway(p, d, wait_ready=False) as g:
            wait_until(lambda: "name each" in g.output(), "it is said")
            self.assertEqual(http(g.port, "GET", "/ready").status, 503)
        with self.gateway([f"{p[0].url}@1", str(p[0].port)], d) as g:
            self.assertEqual(self.ask(g, chat()), expected(chat()))
            self.assertEqual(p[0].requests[0]["fields"]["x-data-parallel-rank"], "1")
            self.assertEqual(d[0].requests[0]["body"]["kv_transfer_params"]["remote_dp_rank"], 1)


if __name__ == "__main__":
    unittest.main()
