"""A few rounds of chaos.py, which by hand runs for as long as one likes."""
import unittest

import chaos
from gateway_case import in_threads
from harness import TestCase


class Chaos(TestCase):
    def rounds(self, *args, **more):
        said = []
        problems = chaos.run(*args, **more, say=said.append)
        self.assertEqual(problems, [], "\n".join(said))

    def test_embedded_engines_come_and_go_and_no_client_notices(self):
        self.rounds(3, 64, 7, tokens=60, harms=[("decode", "kill"), ("prefill", "restart"), ("decode", "end")])

    def test_whatever_the_connector(self):
        harms = [("decode", "kill"), ("prefill", "restart")]
        in_threads([lambda c=c: self.rounds(2, 12, 5, kind="fault", connector=c, tokens=30, harms=harms)
                    for c in ("pull", "push", "mooncake", "sglang")])


if __name__ == "__main__":
    unittest.main()
