"""`baton verify` of hosts: two of them in network namespaces with a wire between, agents over a stand-in for ssh. Needs root;
without it these tests are told and not run."""
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest
from html.parser import HTMLParser

from harness import BATON, MODEL, TestCase, wait_until
from test_hosts import Host, run

# The agent there: in its namespace, with a model folder and an environment of its own, perhaps through a filter of its answers.
SSH = """#!{python}
import os, subprocess, sys
options = sys.argv[1:sys.argv.index("--")]
assert options[:3] == ["-T", "-oBatchMode=yes", "-oConnectTimeout=10"] and all(o[0] == "-" for o in options), sys.argv
del sys.argv[1:1 + len(options) - 3]
if sys.argv[5] != "10.78.0.2":
    sys.exit("ssh: connect to host %s port 22: No route to host" % sys.argv[5])
os.environ.update({env!r})
command = ["ip", "netns", "exec", "{ns}", "unshare", "-m", "sh", "-c",
           '[ -z "$OTHER_MODEL" ] || mount --bind "$OTHER_MODEL" "$MODEL_HERE"; exec "$@"', "sh", {baton!r}, *sys.argv[7:]]
skew = int(os.environ.get("CLOCK_AHEAD_NS", "0"))
if not skew:
    os.execvp(command[0], command)
import json
agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
for line in sys.stdin.buffer:
    clock = [q["words"] for q in json.loads(line)] == [["host", "clock"]]
    agent.stdin.write(line)
    agent.stdin.flush()
    answer = agent.stdout.readline()
    if clock:
        answers = json.loads(answer)
        answers[0]["out"] = str(int(answers[0]["out"]) + skew)
        answer = json.dumps(answers).encode() + b"\\n"
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
agent.stdin.close()
sys.exit(agent.wait())
"""
FILE = """\
model: {{path: {model}}}
engine: {{kind: embedded}}
platform: cpu
nodes:
  a: {{ip: 10.78.0.1, nic: {nic}}}
  b: {{ip: 10.78.0.2, nic: {nic}}}
prefill: {{groups: [[a]], api_port: 9100, kv_port: 9600}}
decode: {{groups: [[b]], api_port: 9200}}
gateway: {{node: a, host: 0.0.0.0, port: 8000}}
supervise: {{log_bytes: 4096, log_files: 1, state_dir: {dir}/state}}
"""


class Page(HTMLParser):
    """The text of a page, elements left open, and attributes that would fetch something."""
    EMPTY = {"meta", "rect", "path"}
    OPTIONAL = {"li", "tr", "td", "th", "p"}  # whose end may be left out

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.text = [], [], ""
        self.feed(text)
        self.close()
        self.open = [e for e in self.open if e not in self.OPTIONAL]

    def handle_starttag(self, tag, attrs):
        self.links += [f"{tag} {k}={v}" for k, v in attrs if k in ("src", "href", "xlink:href") or k.startswith("on")]
        if tag in ("script", "link", "iframe", "img"):
            self.links.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open[-1] != tag and self.open[-1] in self.OPTIONAL:
            self.open.pop()
        if self.open and self.open[-1] == tag:
            self.open.pop()
        elif tag not in self.EMPTY:
            self.open.append("/" + tag)

    def handle_data(self, data):
        self.text += data


MACHINES_OWN = ("V34", "V36")  # limits and space are what this machine has


class Verify(TestCase):
    def setUp(self):
        if os.geteuid() != 0 or run("ip", "netns", "add", f"baton-{os.getpid()}-try")[0] != 0:
            self.hosts = None
            print("not run: network namespaces need root", flush=True)
            return
        run("ip", "netns", "del", f"baton-{os.getpid()}-try")
        self.hosts = [Host("va", "10.78.0.1"), Host("vb", "10.78.0.2")]
        self.a, self.b = self.hosts
        tmp = tempfile.TemporaryDirectory(prefix="baton-e2e-")
        self.addCleanup(tmp.cleanup)
        self.dir = tmp.name
        self.model = os.path.join(self.dir, "model")
        shutil.copytree(MODEL, self.model)
        for h in self.hosts:
            self.assertEqual(run("ip", "netns", "add", h.name)[0], 0)
            self.addCleanup(run, "ip", "netns", "del", h.name)
        self.assertEqual(run("ip", "link", "add", "wire0", "netns", self.a.name, "type", "veth", "peer", "name", "wire0",
                             "netns", self.b.name)[0], 0)
        for h in self.hosts:
            h.run("ip", "address", "add", f"{h.address}/24", "dev", "wire0")
            h.run("ip", "link", "set", "lo", "up")
            h.run("ip", "link", "set", "wire0", "up")
        for h in self.hosts:
            wait_until(lambda h=h: "state UP" in h.run("ip", "link", "show", "wire0")[1], "the wire has a carrier")

    def verify_raw(self, *args, nic="wire0", env=None, form="json", stderr=subprocess.PIPE):
        """Exit code, stdout and stderr."""
        bin_dir = os.path.join(self.dir, "bin")
        os.makedirs(bin_dir, exist_ok=True)
        ssh = os.path.join(bin_dir, "ssh")
        with open(ssh, "w", encoding="utf-8") as f:
            f.write(SSH.format(python=sys.executable, env={"MODEL_HERE": self.model, **(env or {})}, ns=self.b.name,
                               baton=BATON))
        os.chmod(ssh, 0o755)
        path = os.path.join(self.dir, "cluster.yaml")
        with open(path, "w", encoding="utf-8") as f:
            f.write(FILE.format(model=self.model, dir=self.dir, nic=nic))
        clean = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        done = subprocess.run(["ip", "netns", "exec", self.a.name, BATON, "verify", path, "--format", form, *args],
                              env={**clean, "PATH": f"{bin_dir}:{os.environ['PATH']}"}, stdout=subprocess.PIPE,
                              stderr=stderr, timeout=120)
        return done.returncode, done.stdout.decode(), (done.stderr or b"").decode()

    def verify(self, *args, **more):
        """Exit code and findings [(code, node, peer_node, cause, cure)], but for what this machine has or lacks."""
        code, out, err = self.verify_raw(*args, **more)
        self.assertTrue(out, err)
        return code, [(f["code"], f["node"], f["peer_node"], f["cause"], f["cure"]) for f in json.loads(out)["findings"]
                      if f["code"] not in MACHINES_OWN]

    def the_one(self, *args, code=1, **more):
        got, findings = self.verify(*args, **more)
        self.assertEqual((got, len(findings)), (code, 1), findings)
        return findings[0]

    def test_two_hosts_that_reach_each_other_are_fine(self):
        if self.hosts:
            self.assertEqual(self.verify(), (0, []))
            out = self.verify_raw(form="text")[1]
            self.assertIn("2 of 2 answer", out)
            self.assertNotIn("NPUs", out)

    def test_the_report_is_a_page_and_progress_is_told_on_a_terminal(self):
        if not self.hosts:
            return
        report = os.path.join(self.dir, "report.html")
        self.assertEqual(self.verify("--report", report), (0, []))
        with open(report, encoding="utf-8") as f:
            page = Page(f.read())
        self.assertEqual(page.open, [])
        self.assertEqual(page.links, [])
        self.assertIn("10.78.0.2", page.text)
        self.assertIn("wire0, 1500", page.text)
        code, err = self.verify_raw("--report", os.path.join(self.dir, "nowhere", "report.html"))[::2]
        self.assertEqual(code, 2)
        self.assertIn("cannot write --report", err)
        code, out, _ = self.verify_raw("--json", form="text")
        self.assertEqual((code, [n["node"] for n in json.loads(out)["nodes"]]), (0, ["a", "b"]))
        there, here = os.openpty()
        try:
            self.verify_raw(stderr=here)
            os.close(here)
            said = b""
            try:
                while chunk := os.read(there, 65536):
                    said += chunk
            except OSError:  # the terminal's other end is closed
                pass
        finally:
            os.close(there)
        for step in (b"hosts    2 of 2", b"clocks", b"ports", b"reach    2 of 2"):
            self.assertIn(step, said)
        self.assertTrue(said.endswith(b"\r\x1b[K"), said)

    def test_a_port_that_is_taken_names_who_holds_it(self):
        if not self.hosts:
            return
        script = "import socket, time; s = socket.create_server(('10.78.0.2', 9200)); print('up', flush=True); time.sleep(99)"
        holder = subprocess.Popen(["ip", "netns", "exec", self.b.name, sys.executable, "-c", script],
                                  stdout=subprocess.PIPE)
        self.addCleanup(holder.wait)
        self.addCleanup(holder.kill)
        self.assertEqual(holder.stdout.readline(), b"up\n")
        holder.stdout.close()
        code, node, _, cause, _ = self.the_one()
        self.assertEqual((code, node), ("V30", "b"))
        self.assertIn("port 9200 (API port of b.0)", cause)
        self.assertIn(f"(pid {holder.pid})", cause)

    def test_dropped_rejected_and_refused_ports_are_told_apart(self):
        if not self.hosts:
            return
        # Answers from the port are thrown away: nothing comes back, as with a firewall that drops.
        self.assertEqual(self.b.run("ip", "rule", "add", "ipproto", "tcp", "sport", "9200", "blackhole")[0], 0)
        code, node, peer, cause, cure = self.the_one()
        self.assertEqual((code, node, peer), ("V31", "b", "a"))
        self.assertIn("port 9200 (API port of b.0): not reached from a: no answer within", cause)
        self.assertIn("dropped", cure)
        self.b.run("ip", "rule", "del", "ipproto", "tcp", "sport", "9200", "blackhole")
        self.assertEqual(self.a.run("ip", "rule", "add", "ipproto", "tcp", "dport", "9200", "unreachable")[0], 0)
        code, node, peer, cause, cure = self.the_one()
        self.assertEqual((code, node, peer), ("V31", "b", "a"))
        self.assertIn("unreachable", cause)
        self.assertIn("ip route get 10.78.0.2", cure)
        self.a.run("ip", "rule", "del", "ipproto", "tcp", "dport", "9200", "unreachable")
        if shutil.which("nft"):  # where there is one; the judgement of a refusal is a unit test too
            rule = "add table inet guard; add chain inet guard in { type filter hook input priority 0; }; " \
                   "add rule inet guard in tcp dport 9200 reject with tcp reset"
            self.assertEqual(self.b.run("nft", rule)[0], 0)
            code, node, peer, cause, cure = self.the_one()
            self.assertEqual((code, node, peer), ("V31", "b", "a"))
            self.assertIn("refused", cause)
            self.assertIn("nft table inet guard on b", cure)

    def test_interfaces_and_their_mtu(self):
        if not self.hosts:
            return
        self.b.run("ip", "link", "set", "wire0", "mtu", "1400")
        code, node, peer, cause, cure = self.the_one(code=0)
        self.assertEqual((code, node, peer), ("V29", "b", "a"))
        self.assertIn("the mtu of wire0 is 1400, a's wire0 has 1500", cause)
        self.b.run("ip", "link", "set", "wire0", "mtu", "1500")
        code, findings = self.verify(nic="wire7")
        self.assertEqual((code, [f[:2] for f in findings]), (1, [("V28", "a"), ("V28", "b")]))
        self.assertIn("there is no interface wire7; wire0 has 10.78.0.1", findings[0][3])
        self.b.run("ip", "address", "del", "10.78.0.2/24", "dev", "wire0")
        self.b.run("ip", "address", "add", "10.78.0.2/32", "dev", "lo")
        self.b.run("ip", "route", "add", "10.78.0.0/24", "dev", "wire0", "src", "10.78.0.2")
        code, node, _, cause, _ = self.the_one()
        self.assertEqual((code, node), ("V28", "b"))
        self.assertIn("10.78.0.2 is not on interface wire0 but on lo", cause)

    def test_ephemeral_ports_and_reserved_ones(self):
        if not self.hosts:
            return
        self.b.run("sysctl", "-w", "net.ipv4.ip_local_port_range=9000 9999")
        code, node, _, cause, cure = self.the_one(code=0)
        self.assertEqual((code, node), ("V32", "b"))
        self.assertIn("planned ports 9200 (the first: API port of b.0) lie in 9000..9999", cause)
        self.assertIn("ip_local_reserved_ports=9200,", cure)
        self.b.run("sysctl", "-w", "net.ipv4.ip_local_reserved_ports=9100-9300")
        self.assertEqual(self.verify(), (0, []))

    def test_a_clock_that_is_ahead(self):
        if not self.hosts:
            return
        code, node, peer, cause, _ = self.the_one(code=0, env={"CLOCK_AHEAD_NS": "7300000000"})
        self.assertEqual((code, node, peer), ("V35", "b", "a"))
        self.assertIn("its clock is 7.3 s ahead of a's (±", cause)
        code, node, peer, cause, _ = self.the_one(env={"CLOCK_AHEAD_NS": "-3600000000000"})
        self.assertEqual((code, node, peer), ("V35", "a", "b"))  # of two the slower one is taken for the measure
        self.assertIn("s ahead of b's", cause)

    def test_a_model_that_is_not_the_same_everywhere(self):
        if not self.hosts:
            return
        other = os.path.join(self.dir, "other")
        shutil.copytree(MODEL, other, ignore=shutil.ignore_patterns("eval"))
        self.assertEqual(self.verify(env={"OTHER_MODEL": other}), (0, []))
        with open(os.path.join(other, "config.json"), "r+b") as f:  # one byte, the size stays
            f.seek(-2, os.SEEK_END)
            last = f.read(1)
            f.seek(-2, os.SEEK_END)
            f.write(b" " if last != b" " else b"\t")
        code, node, peer, cause, _ = self.the_one(env={"OTHER_MODEL": other})
        self.assertEqual((code, node, peer), ("V38", "b", "a"))
        self.assertIn("config.json differs from a's", cause)
        shutil.copy(os.path.join(MODEL, "config.json"), other)
        os.truncate(os.path.join(other, "model.safetensors"), 4096)
        os.unlink(os.path.join(other, "tokenizer.json"))
        cause = self.the_one(env={"OTHER_MODEL": other})[3]
        self.assertIn("model.safetensors has 4096 bytes, on a ", cause)
        self.assertIn("tokenizer.json is missing", cause)
        for name in os.listdir(other):
            os.unlink(os.path.join(other, name))
        self.assertIn("has no config.json", self.the_one(env={"OTHER_MODEL": other})[3])

    def test_proxy_variables_and_a_node_that_is_gone(self):
        if not self.hosts:
            return
        proxy = {"http_proxy": "http://user:secret@proxy.example:3128", "no_proxy": "localhost,10.78.0.2"}
        code, node, _, cause, cure = self.the_one(code=0, env=proxy)
        self.assertEqual((code, node), ("V33", "b"))
        self.assertIn("http_proxy=proxy.example:3128 would catch 1 of 2 node addresses (10.78.0.1)", cause)
        self.assertNotIn("secret", cause)
        self.assertEqual(self.verify(env={**proxy, "no_proxy": "10.78.0.0/24"}), (0, []))
        with open(os.path.join(self.dir, "cluster.yaml"), encoding="utf-8") as f:
            text = f.read().replace("10.78.0.2", "10.78.0.3")
        path = os.path.join(self.dir, "gone.yaml")
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        done = subprocess.run(["ip", "netns", "exec", self.a.name, BATON, "verify", path, "--format", "json"],
                              env={**os.environ, "PATH": f"{self.dir}/bin:{os.environ['PATH']}"}, capture_output=True,
                              timeout=120)
        found = [f for f in json.loads(done.stdout)["findings"] if f["severity"] == "error"]
        self.assertEqual((done.returncode, [(f["code"], f["node"]) for f in found]), (3, [("V01", "b")]))

    def test_agents_leave_no_listener_behind(self):
        if not self.hosts:
            return
        self.verify()
        for h in self.hosts:
            wait_until(lambda h=h: not h.run("ss", "-Hltn")[1].strip(), "all listeners are gone")


if __name__ == "__main__":
    unittest.main()
