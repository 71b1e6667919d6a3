"""The push protocol: the decoder first, which asks the gateway for its prefill. The client notices nothing of what engines
do, whatever that is; no decoder waits for KV that does not come; nothing is left behind."""
import threading
import unittest

import test_gateway_cancel
import test_gateway_faults
from gateway_case import CHAT, COMPLETIONS, GatewayCase, chat, completion, expected, in_threads
from harness import Connection, answers, baton, http, wait_until


class PushCancel(test_gateway_cancel.Cancel):
    """The client leaves, as with the pull protocol."""
    connector = "push"
    test_the_matrix = None  # it is for all connectors
    # Of KV that waits at a prefiller, which this protocol has not.
    test_a_decode_leg_has_its_grace_to_fetch = None
    test_many_that_leave_near_the_hand_off_strand_nothing = None
    test_a_decoder_that_dies_while_settling_strands_one_and_says_so = None
    test_a_stop_does_not_wait_for_kv_that_nobody_fetches = None
    test_a_stop_begins_no_more_parts = None


class PushBeforeTheFirstByte(test_gateway_faults.BeforeTheFirstByte):
    connector = "push"
    # Of kv_transfer_params in prefill answers.
    test_params_that_a_decoder_could_not_use_are_never_sent = None
    test_without_params_from_any_prefiller_the_client_is_told = None
    test_a_decoder_may_be_let_compute_the_prompt = None
    test_a_decoder_that_is_too_busy_leaves_the_prompt_prefilled = None

    def assert_quiet(self, gateway, ledger=None, stranded=0):
        super().assert_quiet(gateway, ledger, 0)


class PushAfterTheFirstByte(test_gateway_faults.AfterTheFirstByte):
    connector = "push"
    test_a_plain_stream_goes_on_too = None


class Push(GatewayCase):
    connector = "push"

    def test_the_decoder_is_first_and_the_prefiller_gets_what_it_asked_with(self):
        ledger, p, d = self.engines(1, 1)
        with self.gateway(p, d) as g:
            for body in (chat(), chat(stream=True), completion(), completion([500, 65, 66], stream=True)):
                self.assertEqual(self.ask(g, body), expected(body))
            self.assertEqual(d[0].calls, [200] * 4)
            for asked, did in zip(d[0].requests, p[0].requests):
                self.assertLess(asked["at"], did["at"])
                self.assertEqual(asked["body"]["kv_transfer_params"],
                                 {"do_remote_decode": False, "do_remote_prefill": True,
                                  "metaserver": f"http://127.0.0.1:{g.port}/v1/metaserver"})
            self.assert_quiet(g)

    def test_a_list_of_prompts_and_n_choices_ask_one_by_one(self):
        ledger, p, d = self.engines()
        with self.gateway(p, d) as g:
            prompts = ["one", "two", "three"]
            answer = self.post(g, completion(prompts, n=2)).json()
            self.assertEqual([c["text"] for c in answer["choices"]],
                             [expected(completion(x)) for x in prompts for _ in range(2)])
            self.assertEqual(ledger.reserved, 6)
            self.assert_quiet(g)

    def test_nobody_can_ask_for_a_prefill_who_was_not_told_its_id(self):
        ledger, p, d = self.engines(1, 1)
        with self.gateway(p, d) as g:
            d[0].faults = [{"calls": 0}]
            with Connection(g.port) as c:
                c.request("POST", CHAT, chat(), {"X-Request-Id": "known"})
                wait_until(lambda: ledger.reserved == 1, "the decoder has room")
                for name in ("chatcmpl-known", "known", "chatcmpl-known-", "cmpl-known-0", "", None, 5):
                    self.assertEqual(http(g.port, "POST", "/v1/metaserver", {"request_id": name}).status, 404)
                for body in (b"", b"[]", b"{", b"\xff"):
                    self.assertEqual(http(g.port, "POST", "/v1/metaserver", body).status, 400)
                self.assertEqual(p[0].requests, [])
                told = d[0].requests[0]["fields"]["x-request-id"]
                self.assertRegex(told, "^known-[0-9a-f]{32}$")
            self.assert_quiet(g)
            # Nor later, who was.
            self.assertEqual(http(g.port, "POST", "/v1/metaserver", {"request_id": f"chatcmpl-{told}"}).status, 404)

    def test_a_decoder_that_asks_twice_gets_one_prefill(self):
        ledger, p, d = self.engines(1, 1, prefill_time=0.2)
        with self.gateway(p, d) as g:
            d[0].faults = [{"calls": 2}]
            self.assertEqual(self.ask(g, chat()), expected(chat()))
            self.assertEqual((d[0].calls, len(p[0].requests)), ([200, 200], 1))
            self.assert_quiet(g)

    def test_a_decoder_that_never_asks_is_left_for_another(self):
        ledger, p, d = self.engines()
        with self.gateway(p, d, "--first-byte-timeout", "1") as g:
            for body in (chat(), chat(stream=True)):
                d[0].faults = [{"calls": 0}]
                d[1].faults = []
                for _ in range(2):
                    self.assertEqual(self.ask(g, body), expected(body))
                self.assertEqual(d[0].faults, [])
            self.assertEqual(g.count("legs_total", role="decode", end="timeout"), 2)
            self.assert_quiet(g)

    def test_every_attempt_has_an_id_of_its_own(self):
        ledger, p, d = self.engines()
        with self.gateway(p, d) as g:
            for e in p:
                e.faults = [{"reset": "request"}]
            d[0].faults = d[1].faults = []
            self.assertEqual(self.ask(g, chat()), expected(chat()))
            ids = [r["fields"]["x-request-id"] for e in d for r in e.requests]
            self.assertEqual((len(ids), len(set(ids))), (3, 3))
            self.assert_quiet(g)

    def test_attempts_that_failed_are_known_no_more(self):
        ledger, p, d = self.engines(1, 2)
        with self.gateway(p, d, "--max-retries", 100) as g:
            def some():
                for i in range(50):
                    d[i % 2].faults = [{"reset": "request"}]
                    self.assertEqual(self.ask(g, chat(max_tokens=1)), expected(chat(max_tokens=1)))
            in_threads([some] * 8)
            self.assert_quiet(g)

    def test_a_prefiller_that_has_not_begun_leaves_the_decoders_room_to_another(self):
        ledger, p, d = self.engines(2, 1)
        with self.gateway(p, d, "--health-check-interval-secs", "1000") as g:
            p[0].faults = [{"status": 503}]
            p[1].faults = [{"status": 429}]
            self.assertEqual(self.ask(g, chat()), expected(chat()))
            p[0].stop()
            for _ in range(2):
                self.assertEqual(self.ask(g, chat()), expected(chat()))
            self.assertEqual(ledger.reserved, 3)
            self.assert_quiet(g)

    def test_a_prefill_that_fails_everywhere_ends_the_request(self):
        ledger, p, d = self.engines()
        with self.gateway(p, d) as g:
            words = b'{"error":{"message":"boom","type":"InternalServerError","param":null,"code":500}}'
            for e in p:
                e.faults = [{"status": 500, "body": words, "always": True}]
            for body in (chat(), chat(stream=True)):
                self.assertEqual(self.post(g, body, status=500).body, words)
            for e in p:
                e.faults = [{"status": 400, "always": True}]
            self.post(g, chat(), status=400)
            self.assert_quiet(g)

    def test_without_a_prefiller_the_decoder_does_not_wait_for_ever(self):
        ledger, p, d = self.engines(1, 1)
        p[0].stop()
        with self.gateway(p, d, "--queue-timeout-secs", "0.5", wait_ready=False) as g:
            wait_until(lambda: answers(g.port) and g.count("instances", role="decode", state="healthy") == 1, "a decoder")
            self.assertIn("prefill", self.post(g, chat(), status=503).json()["error"]["message"])
            self.assert_quiet(g)

    def test_many_that_leave_near_the_hand_off_leave_nothing(self):
        ledger, p, d = self.engines(2, 2, prefill_time=0.02, admit_time=0.01, fetch_time=0.01)
        with self.gateway(p, d) as g:
            def one(i):
                c = Connection(g.port)
                c.request("POST", CHAT, chat(f"request {i}", stream=bool(i % 2)))
                threading.Event().wait(0.001 * (i % 60))
                if i % 3:
                    c.reset()
                else:
                    c.close()
            for k in range(4):
                in_threads([lambda i=i: one(i) for i in range(40 * k, 40 * k + 40)])
            self.assert_quiet(g)

    def test_the_metaserver_has_an_address_that_can_be_called(self):
        for host in ("0.0.0.0", "::", "unix:/tmp/x.sock"):
            code, _, said = baton("gateway", "--connector", "push", "--host", host, "--prefill", "a:1", "--decode", "b:1")
            self.assertEqual(code, 2)
            self.assertIn("--metaserver-url", said)
        ledger, p, d = self.engines(1, 1)
        with self.gateway(p, d, "--metaserver-url", "http://127.0.0.1:1/elsewhere") as g:
            d[0].faults = [{"calls": 0}]
            with Connection(g.port) as c:
                c.request("POST", COMPLETIONS, completion())
                wait_until(lambda: d[0].requests, "the decoder has it")
            self.assertEqual(d[0].requests[0]["body"]["kv_transfer_params"]["metaserver"],
                             "http://127.0.0.1:1/elsewhere")


if __name__ == "__main__":
    unittest.main()
