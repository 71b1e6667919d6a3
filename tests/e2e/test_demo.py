"""`make demo`, on ports of its own: what the README promises first."""
import os
import re
import signal
import subprocess
import tempfile
import unittest

from harness import BATON, MODEL, ROOT, TestCase, wait_until


def base_port():
    """The beginning of forty ports of which none is listened on, below the ephemeral range."""
    import socket
    for _ in range(100):
        base = 10000 + int.from_bytes(os.urandom(2), "big") % 20000
        sockets = []
        try:
            for port in range(base, base + 40):
                s = socket.socket()
                sockets.append(s)
                s.bind(("127.0.0.1", port))
            return base
        except OSError:
            continue
        finally:
            for s in sockets:
                s.close()
    raise RuntimeError("no free ports")


class Demo(TestCase):
    def setUp(self):
        base = base_port()
        with open(os.path.join(ROOT, "examples", "local.yaml"), encoding="utf-8") as f:
            text = f.read()
        for name, port in (("api_port: 9100", base), ("kv_port: 9600", base + 5), ("api_port: 9200", base + 10),
                           ("port: 8000", base + 20)):
            self.assertIn(name, text)
            text = text.replace(name, f"{name.split(':')[0]}: {port}")
        text = text.replace("dp: 2,", f"dp: 2, dp_port: {base + 25}, kv_port: {base + 30},").replace("models/baton-tiny", MODEL)
        self.file = tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False)
        self.file.write(text)
        self.file.close()
        self.addCleanup(os.unlink, self.file.name)
        self.environment = {**os.environ, "BATON": BATON, "BATON_DEMO_FILE": self.file.name, "BATON_DEMO_PORT": str(base + 20)}

    def start(self, *args):
        return subprocess.Popen([os.path.join(ROOT, "tools", "demo"), *args], env=self.environment, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, start_new_session=True, text=True)

    def assert_nothing_is_left(self):
        def left():
            found = []
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open(f"/proc/{pid}/cmdline", "rb") as f:
                        line = f.read().replace(b"\0", b" ").decode("utf-8", "replace")
                except OSError:
                    continue
                if self.file.name in line:
                    found.append(line)
            return found
        wait_until(lambda: not left(), f"every process has ended: {left()}", 20)

    def test_it_answers_hands_over_and_loses_nothing(self):
        p = self.start()
        said, _ = p.communicate(timeout=240)
        self.assertEqual(p.returncode, 0, said)
        self.assertIn("The capital of Norway is Oslo.", said)
        self.assertIn("8 of 8 P→D pairs", said)
        self.assertRegex(said, r"p[01]\.0 → d[01]\.[01] +\d+ prompt tokens \(\d+ cached\) · KV [0-9.]+ KB in [0-9.]+ ms")
        self.assertRegex(said, r"continued on d[01]\.[01] after \d+ tokens")
        self.assertIn("16 of 16 answers are whole and the same as before", said)
        self.assertGreater(int(re.search(r"(\d+) of them went on elsewhere: nothing lost", said).group(1)), 0)
        self.assertIn("d1.0 is back", said)
        self.assert_nothing_is_left()

    def test_ctrl_c_leaves_nothing(self):
        p = self.start("run")
        lines = iter(p.stdout.readline, "")
        self.assertTrue(any("Ctrl-C" in line for line in lines))
        os.killpg(p.pid, signal.SIGINT)
        p.communicate(timeout=60)
        self.assertEqual(p.returncode, 130)
        self.assert_nothing_is_left()


if __name__ == "__main__":
    unittest.main()
