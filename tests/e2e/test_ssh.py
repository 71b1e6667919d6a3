"""`baton up`, `status`, `logs`, `restart`, `down` over several hosts: network namespaces, each with an sshd of its own, and a
stand-in for vLLM that keeps what it was started with and then is the embedded engine. Needs root; without it these tests
are told and not run."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

from harness import BATON, MODEL, ROOT, Process, TestCase, wait_until
from test_hosts import Host, run
from test_launch import runs

SSHD = "/usr/sbin/sshd"
# What a shell, sshd or JSON might take for something else.
HOSTILE = "two  words 'single' \"double\" $(touch /tmp/owned) `id` $HOME \\ %s ; & | > < * ? ~ # !\nnew\tline ü"

# vLLM's command line and environment, kept and then served by the embedded engine with a small model.
VLLM = '''#!{python}
import json, os, sys, time
words = sys.argv[1:]
options = {{words[i]: words[i + 1] for i in range(2, len(words) - 1) if words[i].startswith("--")}}
kv = json.loads(options["--kv-transfer-config"])
name = kv["engine_id"]
with open("{dir}/seen-" + name + ".json", "w") as f:
    json.dump({{"argv": sys.argv, "env": dict(os.environ), "cwd": os.getcwd()}}, f)
sys.stderr.write(os.environ.get("FAKE_WORDS", ""))
if os.path.exists("{dir}/fail-" + name):
    sys.exit(1)
while os.path.exists("{dir}/hold-" + kv["kv_role"]):
    time.sleep(0.05)
open(os.environ["DISAGGREGATED_PREFILL_RANK_TABLE_PATH"]).close()
local, width = int(os.environ["VLLM_DP_RANK_LOCAL"]), int(options["--tensor-parallel-size"])
kv.update(kv_port=int(os.environ["VLLM_LLMDD_RPC_PORT"]) + local * width,
          kv_connector_extra_config={{"host": os.environ["VLLM_HOST_IP"]}})
os.execv("{baton}", ["baton", "serve", "{model}", "--host", options["--host"], "--port", options["--port"],
         "--served-model-name", options["--served-model-name"], "--max-model-len", options["--max-model-len"],
         "--data-parallel-size", os.environ["VLLM_DP_SIZE"], "--data-parallel-rank", os.environ["VLLM_DP_RANK"],
         "--data-parallel-address", os.environ["VLLM_DP_MASTER_IP"],
         "--data-parallel-rpc-port", os.environ["VLLM_DP_MASTER_PORT"], "--enable-expert-parallel",
         "--distributed-timeout-seconds", "2", "--kv-transfer-config", json.dumps(kv), "--threads", "1",
         "--kv-cache-blocks", "128"])
'''
# The page's example of large expert parallelism, smaller: one prefiller of two ranks, one decode group of four on two nodes.
PAGE = """\
model: {{path: vllm-ascend/DeepSeek-R1-W8A8, served_name: deepseek_r1, max_len: 1024, quantization: ascend}}
engine:
  kind: vllm-ascend
  version: "0.9.1"
  ranktable: {dir}/ranktable.json
  binary: {dir}/vllm
  env: {{HOSTILE: {hostile}, UNSET_ME: null}}
  args: {{hostile: {hostile}}}
platform: ascend-a3
nodes:
  p0: {{ip: 10.78.0.2, nic: wire0}}
  d0: {{ip: 10.78.0.3, nic: wire0}}
  d1: {{ip: 10.78.0.4, nic: wire0}}
prefill: {{groups: [[p0]], dp: 2, tp: 8, api_port: 9000, dp_port: 13395, kv_port: 6500}}
decode: {{groups: [[d0, d1]], dp: 4, tp: 1, api_port: 9000, dp_port: 13395, kv_port: 6500}}
gateway: {{node: p0, port: 8000}}
supervise: {{ready_seconds: 60, stop_seconds: 10, state_dir: {dir}/state, baton: {dir}/baton}}
"""
# Embedded ranks on two nodes, each whole.
PLAIN = """\
model: {{path: {model}, served_name: tiny, max_len: 1024}}
engine: {{kind: embedded, args: {{threads: 1, kv-cache-blocks: 64}}}}
platform: cpu
nodes:
  d0: {{ip: 10.78.0.3}}
  d1: {{ip: 10.78.0.4}}
decode: {{groups: [[d0], [d1]], api_port: 9000}}
gateway: {{node: d0, port: 8000}}
supervise: {{ready_seconds: 60, stop_seconds: 10, restarts: 0, state_dir: {dir}/state, baton: {dir}/baton}}
"""


class SshHost(Host):
    """A host with an sshd, reached from the first one."""

    def __init__(self, name, address, folder):
        super().__init__(name, address)
        self.short, self.dir, self.sshd = name, folder, None

    def path(self, name):
        return os.path.join(self.dir, f"{self.short}-{name}")

    def start_sshd(self):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.path("key")], check=True)
        with open(self.path("sshd"), "w", encoding="ascii") as f:
            f.write(f"ListenAddress {self.address}:2222\nHostKey {self.path('key')}\nPidFile none\nUsePAM no\n"
                    f"AuthorizedKeysFile {self.dir}/user.pub\nStrictModes no\nPasswordAuthentication no\n"
                    f"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
                    f"SetEnv PATH=/usr/local/bin:/usr/bin:/bin UNSET_ME=1\n")
        self.sshd = Process(["ip", "netns", "exec", self.name, SSHD, "-D", "-e", "-f", self.path("sshd")])
        wait_until(lambda: "Server listening" in self.sshd.output() or not self.sshd.alive(), "sshd listens")
        assert self.sshd.alive(), self.sshd.output()

    def public_key(self):
        with open(self.path("key.pub"), encoding="ascii") as f:
            return " ".join(f.read().split()[:2])

    def pids(self):
        """What runs there but for sshd and what it has for each connection."""
        pids = [int(pid) for pid in run("ip", "netns", "pids", self.name)[1].split()]
        return {pid: name for pid, name in ((pid, command(pid)) for pid in pids) if name and not name.startswith("sshd")}


def command(pid):
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as f:
            return f.read().strip()
    except OSError:
        return ""


class Ssh(TestCase):
    NODES = {"p0": "10.78.0.2", "d0": "10.78.0.3", "d1": "10.78.0.4"}

    @classmethod
    def setUpClass(cls):
        cls.hosts = None
        if os.geteuid() != 0 or run("ip", "netns", "add", f"baton-{os.getpid()}-try")[0] != 0:
            print("not run: network namespaces need root", flush=True)
            return
        run("ip", "netns", "del", f"baton-{os.getpid()}-try")
        cls.tmp = tempfile.TemporaryDirectory(prefix="baton-e2e-")
        cls.dir = cls.tmp.name
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # its privilege separation wants it
        cls.hosts = {n: SshHost(n, a, cls.dir) for n, a in {"c": "10.78.0.1", **cls.NODES}.items()}
        cls.wire()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{cls.dir}/user"], check=True)
        for name in cls.NODES:
            cls.hosts[name].start_sshd()

    @classmethod
    def wire(cls):
        """All on one bridge, which is in the first one's namespace."""
        c = cls.hosts["c"]
        for h in cls.hosts.values():
            assert run("ip", "netns", "add", h.name)[0] == 0
            h.run("ip", "link", "set", "lo", "up")
        c.run("ip", "link", "add", "bridge0", "type", "bridge")
        c.run("ip", "address", "add", f"{c.address}/24", "dev", "bridge0")
        c.run("ip", "link", "set", "bridge0", "up")
        for name in cls.NODES:
            h = cls.hosts[name]
            assert run("ip", "link", "add", f"to-{name}", "netns", c.name, "type", "veth", "peer", "name", "wire0", "netns",
                       h.name)[0] == 0
            c.run("ip", "link", "set", f"to-{name}", "master", "bridge0", "up")
            h.run("ip", "address", "add", f"{h.address}/24", "dev", "wire0")
            h.run("ip", "link", "set", "wire0", "up")

    @classmethod
    def tearDownClass(cls):
        for h in (cls.hosts or {}).values():
            if h.sshd:
                h.sshd.stop()
            for pid in h.pids():
                os.kill(pid, signal.SIGKILL)
            run("ip", "netns", "del", h.name)
        if cls.hosts:
            cls.tmp.cleanup()

    def setUp(self):
        if not self.hosts:
            return
        for name in "seen", "words":
            for path in os.listdir(self.dir):
                if path.startswith(name):
                    os.unlink(os.path.join(self.dir, path))
        self.file = f"{self.dir}/cluster.yaml"
        self.know(self.NODES)
        self.write("ssh_config", f"Host *\n  User root\n  Port 2222\n  IdentityFile {self.dir}/user\n  IdentitiesOnly yes\n"
                                 f"  UserKnownHostsFile {self.dir}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
                                 f"  StrictHostKeyChecking yes\n")
        self.script("bin/ssh", f'#!/bin/sh\nexec /usr/bin/ssh -F {self.dir}/ssh_config "$@"\n')
        self.script("baton", f'#!/bin/sh\nexec {BATON} "$@"\n')
        self.script("vllm", VLLM.format(python=sys.executable, dir=self.dir, baton=BATON, model=MODEL))
        self.write("ranktable.json", "{}")
        shutil.rmtree(f"{self.dir}/state", ignore_errors=True)
        self.addCleanup(self.leave_nothing)

    def leave_nothing(self):
        if os.path.exists(self.file):
            self.baton("down", self.file)
        left = {h.short: h.pids() for h in self.hosts.values()}
        self.assertFalse(any(left.values()), left)

    def write(self, name, text):
        path = os.path.join(self.dir, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        return path

    def script(self, name, text):
        os.chmod(self.write(name, text), 0o755)

    def cluster(self, text, **more):
        text = text.format(dir=self.dir, model=MODEL, hostile=json.dumps(HOSTILE, ensure_ascii=False))
        for old, new in more.items():
            text = text.replace(old, new)
        self.write("cluster.yaml", text)

    def know(self, names, keys=None):
        self.write("known_hosts", "".join(f"[{self.NODES[n]}]:2222 {self.hosts[(keys or {}).get(n, n)].public_key()}\n"
                                          for n in names))

    def argv(self, *args):
        return ["ip", "netns", "exec", self.hosts["c"].name, "env", f"PATH={self.dir}/bin:{os.environ['PATH']}", BATON,
                *args]

    def baton(self, *args):
        done = subprocess.run(self.argv(*args), cwd=self.dir, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
        return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")

    def up(self, *args):
        code, _, said = self.baton("up", self.file, *args)
        self.assertEqual(code, 0, said)
        return said

    def status(self):
        code, out, said = self.baton("status", self.file, "--format", "json")
        self.assertTrue(out, said)
        return code, {n["node"]: n for n in json.loads(out)["nodes"]}

    def processes(self):
        return {p["name"]: p for n in self.status()[1].values() for p in (n["status"] or {"processes": []})["processes"]}

    def chat(self):
        body = {"model": "deepseek_r1", "messages": [{"role": "user", "content": "What is the capital of Norway?"}],
                "max_tokens": 12, "temperature": 0}
        text = self.hosts["c"].curl("http://10.78.0.2:8000/v1/chat/completions", "-H", "Content-Type: application/json",
                                    "-d", json.dumps(body))
        return json.loads(text)["choices"][0]["message"]["content"] if text else None

    # ---- what goes well

    def test_the_pages_plan_serves_and_leaves_nothing(self):
        if not self.hosts:
            return
        self.cluster(PAGE)
        said = self.up()
        self.assertIn("serving on http://10.78.0.2:8000", said)
        plan = json.loads(self.baton("plan", self.file, "--format", "json")[1])
        for rank in plan["ranks"]:  # argv and environment are the plan's, to the letter
            with open(f"{self.dir}/seen-{rank['name']}.json", encoding="utf-8") as f:
                seen = json.load(f)
            self.assertEqual(seen["argv"][1:], rank["argv"][1:])
            self.assertIn(HOSTILE, seen["argv"])
            for variable in rank["env"]:
                name, is_set, value = variable.partition("=")
                self.assertEqual(seen["env"].get(name), value if is_set else None)
            self.assertEqual(seen["cwd"], self.dir)
        self.assertFalse(os.path.exists("/tmp/owned"))
        want = self.chat()
        self.assertIn("Oslo", want)

        code, nodes = self.status()
        self.assertEqual(code, 0)
        self.assertEqual([n["load"].get(f"{name}.0", {}).get("running") for name, n in nodes.items()], [0, 0, 0])
        self.assertEqual({n["load"][f"{name}.0"]["version"] for name, n in nodes.items()}, {"0.1.0"})
        code, table, _ = self.baton("status", self.file)
        for name in "p0.0", "p0.1", "d0.0", "d0.1", "d1.0", "d1.1", "gateway":
            self.assertRegex(table, rf"(?m)^{name} .* healthy .* 0\.1\.0 ")
        code, out, _ = self.baton("logs", self.file, "d1.1")
        self.assertIn("serving deepseek_r1 on", out)
        code, _, said = self.baton("up", self.file)
        self.assertEqual(code, 2, said)
        self.assertIn("is up already on p0", said)

        # A rank of another node dies: its group begins anew, on both of its nodes, and nobody else.
        before = self.processes()
        self.write("hold-kv_consumer", "")
        os.kill(before["d1.0"]["pid"], signal.SIGKILL)

        def anew(state):
            now = self.processes()
            return all(p["state"] == (state if name.startswith("d") else "healthy") and
                       (p["pid"] != before[name]["pid"]) == name.startswith("d") for name, p in now.items())
        wait_until(lambda: anew("starting"), "all of its group start again")
        os.unlink(f"{self.dir}/hold-kv_consumer")
        wait_until(lambda: anew("healthy"), "all ranks are healthy again")
        now = self.processes()
        self.assertEqual(self.chat(), want)

        code, _, said = self.baton("restart", self.file, "decode:0")
        self.assertEqual(code, 0, said)
        self.assertIn("drained", said)
        after = self.processes()
        for name in now:
            self.assertEqual(after[name]["pid"] != now[name]["pid"], name.startswith("d"), name)
            self.assertEqual(after[name]["state"], "healthy")
        self.assertEqual(self.chat(), want)

        code, _, said = self.baton("down", self.file)
        self.assertEqual(code, 0, said)
        for h in self.hosts.values():
            self.assertEqual(h.pids(), {})
        self.assertEqual(self.status()[0], 1)

    def test_values_that_look_like_shell_reach_the_engine_untouched(self):
        """(Held above, rank by rank; here nothing of them is in any command line of ssh.)"""
        if not self.hosts:
            return
        self.cluster(PAGE)
        self.script("bin/ssh", f'#!/bin/sh\nprintf "%s\\n" "$*" >>{self.dir}/words\n'
                               f'exec /usr/bin/ssh -F {self.dir}/ssh_config "$@"\n')
        self.baton("status", self.file)
        with open(f"{self.dir}/words", encoding="utf-8") as f:
            words = f.read()
        self.assertNotIn("HOSTILE", words)
        self.assertEqual(len(re.findall(rf"-- 10\.78\.0\.\d {self.dir}/baton node$", words, re.M)), 3)

    # ---- what does not

    def refused(self, node, cause, cure, code=3):
        """`up` names the node, the cause and what to do, and starts nothing."""
        got, _, said = self.baton("up", self.file)
        self.assertEqual(got, code, said)
        self.assertRegex(said, rf"(?m)^{node}: .*{cause}")
        self.assertRegex(said, rf"cure: .*{cure}")
        self.assertIn("nothing was started", said)
        self.assertFalse(any(h.pids() for h in self.hosts.values()))

    def test_a_node_that_cannot_be_reached_is_named_with_the_cause(self):
        if not self.hosts:
            return
        self.cluster(PLAIN)
        with self.subTest("host key"):
            self.know(self.NODES, {"d1": "d0"})
            self.refused("d1", "its host key is another one", "ssh-keygen -R")
        with self.subTest("unknown host key"):
            self.know(["d0"])
            self.refused("d1", "its host key is not in known_hosts", "known_hosts")
        self.know(self.NODES)
        with self.subTest("auth"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{self.dir}/stranger"], check=True)
            self.write("ssh_config", f"Host 10.78.0.4\n  IdentityFile {self.dir}/stranger\n" +
                       open(f"{self.dir}/ssh_config", encoding="ascii").read().replace("Host *", "Host * !10.78.0.4\n "
                       f"IdentityFile {self.dir}/user\nHost *").replace(f"  Port 2222\n  IdentityFile {self.dir}/user\n",
                                                                        "  Port 2222\n"))
            self.refused("d1", "takes none of the keys", "ssh-copy-id")
        self.setUp()
        self.cluster(PLAIN)
        with self.subTest("refused"):
            self.cluster(PLAIN, **{"ip: 10.78.0.4": "ip: 10.78.0.4, ssh: closed"})
            self.write("ssh_config", "Host closed\n  HostName 10.78.0.4\n  Port 2223\n" +
                       open(f"{self.dir}/ssh_config", encoding="ascii").read())
            self.refused("d1", "nobody listens on its ssh port", "sshd running")
        with self.subTest("name"):
            self.cluster(PLAIN, **{"ip: 10.78.0.4": "ip: 10.78.0.4, ssh: no-such-host.invalid"})
            self.refused("d1", "no such host name", "ssh_config")
        with self.subTest("timeout"):
            self.cluster(PLAIN)
            d1 = self.hosts["d1"]
            d1.run("ip", "link", "set", "wire0", "down")
            try:
                self.refused("d1", "(does not answer within|no way leads there)", "is the machine up")
                code, out, said = self.baton("status", self.file)
                self.assertEqual(code, 3)
                self.assertIn("d0: not up", out)
                self.assertRegex(said, "(?m)^d1: ")
            finally:
                d1.run("ip", "link", "set", "wire0", "up")

    def test_a_node_without_this_baton_is_named(self):
        if not self.hosts:
            return
        with self.subTest("missing"):
            self.cluster(PLAIN, **{f"baton: {self.dir}/baton": f"baton: {self.dir}/none"})
            self.refused("d0", "cannot be started there", "install baton")
        with self.subTest("another version"):
            self.cluster(PLAIN)
            self.script("baton", "#!/bin/sh\necho '{\"baton\":\"0.0.1\"}'\nread line\n")
            self.refused("d1", "is version 0.0.1", "install .* there too")
        with self.subTest("what a shell would read"):
            self.cluster(PLAIN, **{f"baton: {self.dir}/baton": "baton: 'baton; reboot'"})
            code, _, said = self.baton("up", self.file)
            self.assertEqual(code, 2)
            self.assertIn("only letters, digits", said)

    def test_a_shell_that_greets_is_no_trouble(self):
        if not self.hosts:
            return
        self.cluster(PLAIN)
        self.script("baton", f'#!/bin/sh\necho "Welcome to {{the machine}}"\nexec {BATON} "$@"\n')
        self.assertEqual(self.status()[0], 1)

    def test_a_rank_that_dies_at_start_is_explained_and_all_is_stopped(self):
        if not self.hosts:
            return
        self.cluster(PAGE, **{"HOSTILE: ": "FAKE_WORDS: ", "ready_seconds: 60": "ready_seconds: 60, restarts: 0"})
        text = open(self.file, encoding="utf-8").read()
        words = ("Traceback (most recent call last):\n  File x\n"
                 "ValueError: KV transfer 'prefill' config has a conflicting data parallel size. Expected 1, but got 2\n"
                 "RuntimeError: Engine core initialization failed. See root cause above.\n")
        self.write("cluster.yaml", re.sub(r"FAKE_WORDS: \".*\", UNSET", lambda _: f"FAKE_WORDS: {json.dumps(words)}, UNSET",
                                          text))
        self.write("fail-d1.1", "")
        self.addCleanup(os.unlink, f"{self.dir}/fail-d1.1")
        code, _, said = self.baton("up", self.file)
        self.assertEqual(code, 1, said)
        self.assertIn("d1.1 failed: exit status 1", said)
        self.assertIn("ValueError: KV transfer 'prefill' config has a conflicting data parallel size", said)
        self.assertIn("that is: kv_connector_extra_config names another dp_size", said)
        self.assertIn("stopping what was started", said)
        self.assertFalse(any(h.pids() for h in self.hosts.values()))
        code, _, said = self.baton("up", self.file, "--keep")
        self.assertEqual(code, 1, said)
        self.assertIn("what was started is kept", said)
        self.assertEqual(self.processes()["d1.1"]["state"], "failed")
        code, out, said = self.baton("logs", self.file, "d1.1", "-n", "1")
        self.assertEqual((code, out), (0, words.splitlines()[-1] + "\n"), said)

    def test_ctrl_c_in_up_leaves_nothing(self):
        if not self.hosts:
            return
        self.cluster(PLAIN, **{"kind: embedded,": f"kind: embedded, binary: {self.dir}/mute,"})
        self.script("mute", "#!/bin/sh\nexec sleep 600\n")
        with Process(self.argv("up", self.file), cwd=self.dir) as up:
            wait_until(lambda: all("sleep" in self.hosts[n].pids().values() for n in ("d0", "d1")), "both ranks run")
            up.signal(signal.SIGINT)
            self.assertEqual(up.wait(), 1, up.output())
            self.assertIn("stopping", up.output())
        self.assertFalse(any(h.pids() for h in self.hosts.values()))

    def test_of_two_up_at_once_one_is_refused(self):
        if not self.hosts:
            return
        self.cluster(PLAIN)
        ups = [Process(self.argv("up", self.file), cwd=self.dir) for _ in range(2)]
        for up in ups:
            self.addCleanup(up.stop)
        codes = sorted(up.wait() for up in ups)
        self.assertEqual(codes, [0, 2], [up.output() for up in ups])
        self.assertEqual(self.status()[0], 0)

    def test_a_supervisor_outlives_its_ssh_and_is_found_again(self):
        if not self.hosts:
            return
        self.cluster(PLAIN)
        self.up()
        pids = [n["status"]["pid"] for n in self.status()[1].values()]
        self.assertTrue(all(os.getsid(pid) == pid for pid in pids))  # a session of its own
        self.hosts["d1"].sshd.stop()
        self.assertTrue(all(map(runs, pids)))
        code, _, said = self.baton("down", self.file)  # what can be reached is stopped, the other named
        self.assertEqual(code, 3)
        self.assertRegex(said, "(?m)^d1: .*nobody listens")
        self.assertIn("left running", said)
        self.assertTrue(runs(pids[1]))
        self.assertFalse(runs(pids[0]))
        shutil.rmtree(f"{self.dir}/d1-key", ignore_errors=True)
        os.unlink(self.hosts["d1"].path("key"))
        self.hosts["d1"].start_sshd()
        self.know(self.NODES)
        self.assertEqual(self.baton("down", self.file)[0], 0)
        self.assertFalse(runs(pids[1]))

    def test_a_node_by_itself_under_another_orchestrator(self):
        if not self.hosts:
            return
        self.cluster(PLAIN)
        d1 = self.hosts["d1"]
        with d1.start("up", self.file, "--node", "d1", "--foreground") as up:
            wait_until(lambda: "d1.0       ready" in up.output() or not up.alive(), "its rank is ready")
            self.assertTrue(d1.healthy("http://10.78.0.4:9000"))
            code, out = d1.run(BATON, "status", self.file, "--node", "d1", "--format", "json")
            self.assertEqual([p["name"] for p in json.loads(out)["nodes"][0]["status"]["processes"]], ["d1.0"])
            up.signal(signal.SIGTERM)
            self.assertEqual(up.wait(), 0, up.output())
        self.assertEqual(d1.pids(), {})

    def test_the_flags_of_launch_online_dp_call_the_template_as_it_does(self):
        if not self.hosts:
            return
        d1, folder = self.hosts["d1"], os.path.join(self.dir, "online")
        with open(os.path.join(ROOT, "tests", "data", "cluster", "launch.json"), encoding="utf-8") as f:
            cases = {c["case"]: c for c in json.load(f)}
        os.makedirs(folder, exist_ok=True)
        d1.run("ip", "address", "add", "192.0.0.1/24", "dev", "wire0")

        def online(command, *args):
            words = ["ip", "netns", "exec", d1.name, BATON, command, *args]
            done = subprocess.run(words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
            return done.returncode, done.stderr.decode("utf-8", "replace")
        code, said = online("up", *cases["no-template"]["args"])
        self.assertEqual(code, cases["no-template"]["rc"], said)
        self.assertIn("there is no ./run_dp_template.sh here", said)
        self.script("online/run_dp_template.sh", f"""#!/bin/bash
printf '%s\\n' "$0 $*" >>{folder}/calls
exec {sys.executable} -ISc 'import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
http.server.ThreadingHTTPServer(("", int(sys.argv[1])), H).serve_forever()' "$2"
""")
        for name in "prefill-node0", "prefill-node1", "defaults", "tp16":
            with self.subTest(name):
                if name in ("prefill-node1", "tp16"):  # this is not the node of rank 0
                    d1.run("ip", "address", "del", "192.0.0.1/24", "dev", "wire0")
                    d1.run("ip", "address", "replace", "192.0.0.9/24", "dev", "wire0")
                else:
                    d1.run("ip", "address", "replace", "192.0.0.1/24", "dev", "wire0")
                code, said = online("up", *cases[name]["args"])
                self.assertEqual(code, 0, said)
                path, node = re.search(r"baton down (\S+) --node (\S+)`", said).groups()
                self.addCleanup(online, "down", path, "--node", node)
                with open(f"{folder}/calls", encoding="utf-8") as f:
                    calls = sorted(line.split() for line in f)
                self.assertEqual(calls, sorted(cases[name]["template_calls"]))
                self.assertEqual(online("status", path, "--node", node)[0], 0)
                self.assertEqual(online("down", path, "--node", node)[0], 0)
                os.unlink(f"{folder}/calls")
        for name in "no-address", "local-zero", "local-minus-2", "ranks-past-the-end", "port-overflow":
            with self.subTest(name):
                d1.run("ip", "address", "replace", "192.0.0.1/24", "dev", "wire0")
                code, said = online("up", *cases[name]["args"])
                self.assertEqual(code, 2, said)
                self.assertFalse(os.path.exists(f"{folder}/calls"))
        self.assertEqual(d1.pids(), {})


if __name__ == "__main__":
    unittest.main()
