"""`baton verify` and `baton ranktable` with real processes: agents here and over a stand-in for ssh, and stand-ins for hccn_tool
and npu-smi that answer as recorded (tests/data/ascend)."""
import json
import os
import shutil
import subprocess
import sys
import tempfile

from harness import BATON, ROOT, TestCase

DATA = os.path.join(ROOT, "tests", "data", "ascend")
ADDRESSES = {"p0": "10.20.0.11", "p1": "10.20.0.12", "d0": "10.20.0.13", "d1": "10.20.0.14"}
FILE = """\
model: {path: /models/DeepSeek-R1-W8A8}
engine: {kind: vllm-ascend}
platform: ascend-a2
nodes:
"""
SSH = """#!{python}
import os, sys
options = sys.argv[1:sys.argv.index("--")]
assert options[:3] == ["-T", "-oBatchMode=yes", "-oConnectTimeout=10"] and all(o[0] == "-" for o in options), sys.argv
del sys.argv[1:1 + len(options) - 3]
node = {nodes!r}.get(sys.argv[5])
if node is None:
    sys.exit("ssh: connect to host %s port 22: No route to host" % sys.argv[5])
os.environ["PATH"] = "{dir}/" + node + "/bin:" + os.environ["PATH"]
os.environ["HCCN_CONF_PATH"] = "{dir}/" + node + "/etc/hccn.conf"
os.environ["ASCEND_REPLAY_LOG"] = "{dir}/" + node + "/log"
os.execvp("/bin/sh", ["sh", "-c", " ".join(sys.argv[6:])])
"""


class Site:
    """Nodes that answer as recorded, each in a folder, and a cluster file of them."""

    def __init__(self, fault=None, prefill=("p0",), decode=("d0",), lost=()):
        self.tmp = tempfile.TemporaryDirectory(prefix="baton-e2e-")
        self.dir = self.tmp.name
        nodes = [*prefill, *decode]
        for node in nodes:
            subprocess.run([sys.executable, "-ISE", os.path.join(DATA, "replay"), "install",
                            os.path.join(DATA, "clusters", "a2-4node"), node, os.path.join(self.dir, node),
                            *([os.path.join(DATA, "faults", fault + ".json")] if fault else [])], check=True)
        self.script("bin/ssh", SSH.format(python=sys.executable, dir=self.dir,
                                          nodes={ADDRESSES[n]: n for n in nodes if n not in lost}))
        os.symlink(BATON, os.path.join(self.dir, "bin", "baton"))
        self.file = os.path.join(self.dir, "cluster.yaml")
        with open(self.file, "w", encoding="utf-8") as f:
            f.write(FILE + "".join(f"  {n}: {{ip: {ADDRESSES[n]}}}\n" for n in nodes))
            f.write(f"prefill: {{groups: [[{', '.join(prefill)}]], dp: {len(prefill)}, tp: 8}}\n")
            f.write(f"decode: {{groups: [[{', '.join(decode)}]], dp: {8 * len(decode)}, tp: 1}}\n")
            f.write("gateway: {node: p0, port: 8000}\n")

    def script(self, name, text):
        path = os.path.join(self.dir, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(path, 0o755)

    def run(self, *args, local=None, stdin=None):
        """baton in the site's folder; `local`: the node that this machine is."""
        env = {**os.environ, "PATH": f"{self.dir}/bin:{os.environ['PATH']}"}
        env.pop("HCCN_TOOL_PATH", None)
        if local:
            env.update(PATH=f"{self.dir}/{local}/bin:{env['PATH']}", HCCN_CONF_PATH=f"{self.dir}/{local}/etc/hccn.conf")
        done = subprocess.run([BATON, *args], cwd=self.dir, env=env, input=stdin, capture_output=True, timeout=200)
        return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")

    def verify(self, *args):
        code, out, err = self.run("verify", self.file, "--check", "npus", "--format", "json", *args)
        return code, json.loads(out)["findings"] if out else err

    def read(self, name):
        with open(os.path.join(self.dir, name), "rb") as f:
            return f.read()

    def calls(self, node):
        """[(start, end, argv)] of the tools on a node."""
        found = []
        for line in self.read(f"{node}/log").decode().splitlines():
            start, end, _, _, argv = line.split(" ", 4)
            found.append((float(start), float(end), json.loads(argv)))
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.tmp.cleanup()


def recorded_table(case):
    with open(os.path.join(DATA, "ranktable", case, "ranktable.json"), "rb") as f:
        return f.read()


class Verify(TestCase):
    def test_a_healthy_cluster_is_fine_and_each_npu_is_asked_one_thing_at_a_time(self):
        with Site() as s:
            self.assertEqual(s.verify(), (0, []))
            calls = s.calls("p0")
            pings = [c for c in calls if "-ping" in c[2]]
            self.assertEqual(len(pings), 8 * 8)
            for device in range(8):
                mine = sorted(c for c in calls if c[2][:3] == ["hccn_tool", "-i", str(device)])
                self.assertGreater(len(mine), 12)
                for before, after in zip(mine, mine[1:]):
                    self.assertLessEqual(before[1], after[0], (before, after))

    def test_a_hanging_command_is_ended_and_the_others_are_reported(self):
        with Site(fault="command-hangs") as s:
            code, findings = s.verify("--ping", "none")
            self.assertEqual(code, 3)
            self.assertEqual([(f["node"], f["device"], f["check"]) for f in findings], [("d0", 2, "net_health")])
            self.assertIn("timed out", findings[0]["cause"])

    def test_a_missing_tool_and_a_missing_node_are_told_apart_from_faults(self):
        with Site(fault="tool-missing-hccn") as s:
            code, findings = s.verify("--ping", "none")
            self.assertEqual((code, [(f["node"], f["check"]) for f in findings]), (3, [("p0", "tools")]))
        with Site(lost=("d0",)) as s:
            code, findings = s.verify("--ping", "none")
            self.assertEqual((code, [(f["node"], f["check"]) for f in findings]), (3, [("d0", "node")]))
            self.assertIn("ssh", findings[0]["cause"])

    def test_a_fault_ends_with_one_and_the_text_names_place_cause_and_cure(self):
        with Site(fault="hccn-conf-incomplete") as s:
            code, out, _ = s.run("verify", s.file, "--check", "npus", "--ping", "none")
            self.assertEqual(code, 1)
            self.assertIn("error V15  p0 npu 7 hccn_conf: /etc/hccn.conf has no address_7", out)
            self.assertIn("cure: add address_7=11.12.165.87 to /etc/hccn.conf", out)
            self.assertIn("1 error, 0 warnings", out)

    def test_busy_is_asked_again(self):
        with Site(fault="busy-then-ok-link") as s:
            os.environ["ASCEND_REPLAY_STATE"] = os.path.join(s.dir, "state")
            try:
                self.assertEqual(s.verify("--ping", "none"), (0, []))
            finally:
                del os.environ["ASCEND_REPLAY_STATE"]

    def test_an_agent_runs_nothing_but_what_is_listed(self):
        with Site() as s:
            mark = os.path.join(s.dir, "mark")
            for words in (["touch", mark], ["/bin/sh", "-c", f"touch {mark}"], ["../npu-smi"], [], ["npu-smi"] * 11, [7],
                          ["nft", "list"], ["nft", "list", "tables"], ["nft", "add", "ruleset"], ["iptables", "-F"],
                          ["iptables", "-S", "INPUT"], ["host"], ["host", "facts", "/"], ["host", "write", "/", "/"],
                          ["hccn.conf", mark]):
                code, out, _ = s.run("verify", "--agent", stdin=json.dumps([{"words": words}]).encode() + b"\n")
                self.assertEqual((code, out), (3, ""), words)
            for text in (b"\n", b"{}\n", b"[]\n", b"nonsense\n"):
                self.assertEqual(s.run("verify", "--agent", stdin=text)[0], 3, text)
            self.assertFalse(os.path.exists(mark))

    def test_what_has_no_npus_is_wrong_use(self):
        with Site() as s:
            text = s.read("cluster.yaml").replace(b"ascend-a2", b"cpu").replace(b"vllm-ascend", b"embedded")
            s.script("cpu.yaml", text.decode())
            code, _, err = s.run("verify", "cpu.yaml", "--check", "npus")
            self.assertEqual(code, 2)
            self.assertIn("platform cpu has no NPUs", err)
            self.assertEqual(s.run("verify", s.file, "--node", "nobody")[0], 2)


class Ranktable(TestCase):
    NODES = {"prefill": ("p0", "p1"), "decode": ("d0", "d1")}

    def test_over_ssh_it_is_the_generators_file_and_replaces_an_old_one(self):
        with Site(**self.NODES) as s:
            shutil.copy(os.path.join(DATA, "ranktable", "a3-4node-stale-file-v0.9.1", "stale.json"),
                        os.path.join(s.dir, "ranktable.json"))
            code, out, err = s.run("ranktable", s.file)
            self.assertEqual((code, out), (0, ""), err)
            self.assertIn("it was different before", err)
            self.assertEqual(s.read("ranktable.json"), recorded_table("a2-4node-2p2d-v0.9.1"))
            code, out, err = s.run("ranktable", s.file, "--ranktable-path", "out/rt/ranktable.json")
            self.assertEqual(code, 0, err)
            self.assertEqual(s.read("out/rt/ranktable.json"), s.read("ranktable.json"))

    def test_parts_of_every_node_merge_to_the_same(self):
        with Site(**self.NODES) as s:
            text = s.read("cluster.yaml").decode()
            for node, ip in ADDRESSES.items():  # on each node the file is the same, and its address is its own
                s.script("local.yaml", text.replace(ip, "127.0.0.1"))
                code, _, err = s.run("ranktable", "local.yaml", "--node", node, local=node)
                self.assertEqual(code, 0, err)
                part = s.read(f"ranktable-{node}.part").replace(b"127.0.0.1", ip.encode())
                s.script(f"ranktable-{node}.part", part.decode())
            parts = [f"ranktable-{n}.part" for n in ADDRESSES]
            code, out, err = s.run("ranktable", s.file, "--output", "-", "--merge", *parts)
            self.assertEqual((code, out.encode()), (0, recorded_table("a2-4node-2p2d-v0.9.1")), err)
            code, out, err = s.run("ranktable", s.file, "--merge", *parts[1:])
            self.assertEqual(code, 2)
            self.assertIn("no part of node p0", err)

    def test_the_generators_flags_work_as_they_are(self):
        with Site(**self.NODES) as s:
            ips = ["127.0.0.1", *list(ADDRESSES.values())[1:]]
            flags = ["--ips", *ips, "--npus-per-node", "8", "--network-card-name", "enp67s0f5"]
            counts = ["--prefill-device-cnt", "16", "--decode-device-cnt", "16"]
            code, _, err = s.run("ranktable", *flags, *counts, local="p0")
            self.assertEqual(code, 0, err)
            self.assertEqual(s.read("ranktable.json").replace(b"127.0.0.1", b"10.20.0.11"),
                             recorded_table("a2-4node-2p2d-v0.9.1"))
            code, _, err = s.run("ranktable", *flags, "--prefill-device-cnt", "20", "--decode-device-cnt", "20")
            self.assertEqual(code, 2)
            self.assertIn("4 nodes of 8 have 32", err)
            code, _, err = s.run("ranktable", "--ips", "10.20.0.12", "10.20.0.13", *counts)
            self.assertEqual(code, 2)
            self.assertIn("no address of this machine is in --ips", err)

    def test_what_is_wrong_refuses_it_and_writes_nothing(self):
        with Site(fault="ip-not-preset") as s:
            code, _, err = s.run("ranktable", s.file)
            self.assertEqual(code, 1)
            self.assertIn("d0 npu 7 ip: no RoCE address (ip) is set", err)
            self.assertIn("cure: hccn_tool -i 7 -ip -s address", err)
            self.assertFalse(os.path.exists(os.path.join(s.dir, "ranktable.json")))
