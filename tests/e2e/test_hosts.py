"""Several hosts: network namespaces with a wire between them. Needs root; without it these tests are told and not run."""
import json
import os
import subprocess
import unittest

from harness import BATON, MODEL, Process, TestCase, wait_until
from test_pd import COMMON, transfer


def run(*argv):
    done = subprocess.run(argv, capture_output=True, timeout=30)
    return done.returncode, done.stdout.decode()


class Host:
    """A network namespace with one address."""

    def __init__(self, name, address):
        self.name, self.address = f"baton-{os.getpid()}-{name}", address

    def run(self, *argv):
        return run("ip", "netns", "exec", self.name, *argv)

    def start(self, *argv):
        return Process(["ip", "netns", "exec", self.name, BATON, *argv])

    def curl(self, url, *more):
        return self.run("curl", "-s", "-m", "20", *more, url)[1]

    def healthy(self, url):
        return self.curl(f"{url}/health", "-o", "/dev/null", "-w", "%{http_code}") == "200"

    def ask(self, url, **more):
        body = {"prompt": "Once upon a time there was a girl", "temperature": 0, "max_tokens": 20, **more}
        text = self.curl(f"{url}/v1/completions", "-H", "Content-Type: application/json", "-d", json.dumps(body))
        return json.loads(text) if text else {}


class TwoHosts(TestCase):
    def setUp(self):
        if os.geteuid() != 0 or run("ip", "netns", "add", f"baton-{os.getpid()}-try")[0] != 0:
            print("not run: network namespaces need root", flush=True)
            self.hosts = None
            return
        run("ip", "netns", "del", f"baton-{os.getpid()}-try")
        self.hosts = [Host("a", "10.77.0.1"), Host("b", "10.77.0.2")]
        a, b = self.hosts
        for h in self.hosts:
            self.assertEqual(run("ip", "netns", "add", h.name)[0], 0)
            self.addCleanup(run, "ip", "netns", "del", h.name)
        self.assertEqual(run("ip", "link", "add", "wire0", "netns", a.name, "type", "veth", "peer", "name", "wire0",
                             "netns", b.name)[0], 0)
        for h in self.hosts:
            h.run("ip", "address", "add", f"{h.address}/24", "dev", "wire0")
            h.run("ip", "link", "set", "lo", "up")
            h.run("ip", "link", "set", "wire0", "up")

    def serve(self, host, port, *args):
        p = host.start("serve", MODEL, "--host", host.address, "--port", str(port), *COMMON, *args)
        self.addCleanup(p.stop)
        return p

    def ranks(self, *args):
        for i, h in enumerate(self.hosts):
            self.serve(h, 9000, "--data-parallel-size", "2", "--data-parallel-rank", str(i), "--data-parallel-address",
                       self.hosts[0].address, "--enable-expert-parallel", "--distributed-timeout-seconds", "2", *args)

    def wait_healthy(self, wanted=True):
        for h in self.hosts:
            wait_until(lambda h=h: h.healthy(f"http://{h.address}:9000") == wanted, f"{h.name} healthy: {wanted}")

    def test_a_prompt_goes_from_one_to_the_other(self):
        if not self.hosts:
            return
        a, b = self.hosts
        self.serve(a, 9001, *transfer("kv_producer", 5600))
        self.ranks(*transfer("kv_consumer"), "--log-level", "debug")
        gateway = a.start("gateway", "--host", a.address, "--port", "8000", "--prefill", f"http://{a.address}:9001",
                          "--decode", f"http://{a.address}:9000", f"http://{b.address}:9000")
        self.addCleanup(gateway.stop)
        self.wait_healthy()
        wait_until(lambda: a.curl(f"http://{a.address}:8000/ready", "-o", "/dev/null", "-w", "%{http_code}") == "200",
                   "the gateway is ready")
        want = a.ask(f"http://{a.address}:9001")["choices"][0]["text"]
        for _ in range(4):
            self.assertEqual(b.ask(f"http://{a.address}:8000")["choices"][0]["text"], want)
        for h in self.hosts:  # both fetched, the far one over the wire
            figures = h.curl(f"http://{h.address}:9000/metrics")
            hits = [line for line in figures.splitlines() if line.startswith("vllm:external_prefix_cache_hits_total")]
            self.assertGreater(float(hits[0].split()[-1]), 0)

    def test_a_wire_that_breaks_ends_the_epoch_and_comes_back(self):
        if not self.hosts:
            return
        a, b = self.hosts
        self.ranks()
        self.wait_healthy()
        want = a.ask(f"http://{a.address}:9000")["choices"][0]["text"]
        b.run("ip", "link", "set", "wire0", "down")
        self.assertEqual(a.ask(f"http://{a.address}:9000")["error"]["code"], 500)
        wait_until(lambda: not a.healthy(f"http://{a.address}:9000"), "the near rank says so")
        wait_until(lambda: not b.healthy(f"http://{b.address}:9000"), "the far rank, which had no work, does too")
        b.run("ip", "link", "set", "wire0", "up")
        self.wait_healthy()
        self.assertEqual(b.ask(f"http://{a.address}:9000")["choices"][0]["text"], want)


if __name__ == "__main__":
    unittest.main()
