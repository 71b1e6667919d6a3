"""How the gateway chooses and admits: who gets which request, in which order, and who is sent away."""
import unittest

from gateway_case import COMPLETIONS, Gateway, GatewayCase, chat, completion
from harness import http


class Choosing(GatewayCase):
    def decoder_of(self, g, body, headers=None):
        return self.post(g, body, headers=headers).header("X-Baton-Decode")

    def test_a_conversation_goes_on_where_its_beginning_is_cached(self):
        ledger, p, d = self.engines(4, 1)
        with Gateway(p, d, "--policy", "prefix_aware") as g:
            seen = {}
            for turn in range(3):
                for who in range(8):
                    said = [{"role": "user", "content": f"{who} asks question {n}, which is not short"}
                            for n in range(turn + 1)]
                    prefiller = self.post(g, {**chat(), "messages": said}).header("X-Baton-Prefill")
                    self.assertEqual(seen.setdefault(who, prefiller), prefiller)
            self.assertEqual(len(set(seen.values())), 4)  # new ones are spread
            # Other tools stand before the messages: nothing of it is cached.
            self.assert_quiet(g)
            self.assertEqual(http(g.port, "POST", "/reset_prefix_cache").status, 200)

    def test_a_session_stays_with_its_instance(self):
        _, _, d = self.engines(0, 5)
        with Gateway([], d, "--policy", "consistent_hash") as g:
            at = {k: self.decoder_of(g, completion(f"{k}"), {"X-Session-ID": f"s{k}"}) for k in range(20)}
            for k in range(20):
                self.assertEqual(self.decoder_of(g, chat(f"again {k}"), {"x-session-id": f"s{k}"}), at[k])
            self.assertGreater(len(set(at.values())), 2)
        # After a restart, and in any other gateway, it is the same one.
        with Gateway([], d[::-1], "--policy", "consistent_hash", "--session-header", "X-Who") as g:
            for k in range(20):
                self.assertEqual(self.decoder_of(g, completion(), {"X-Who": f"s{k}"}), at[k])
            self.assertEqual(http(g.port, "POST", COMPLETIONS, completion()).status, 200)


if __name__ == "__main__":
    unittest.main()
