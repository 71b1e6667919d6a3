"""`baton init` and `baton plan` from the command line, and that what plans are exported as starts the very processes of the
plan: each script runs with programs in its PATH that write down how they were called."""
import json
import os
import re
import signal
import subprocess
import tempfile

from harness import TestCase, baton, wait_until

# Everything that a shell, a unit file or a manifest might take for more than text.
HOSTILE = """it's "quoted" $(touch pwned) `touch pwned` $HOME ${HOME} %h %% \\\\ \\n ; | & > < * ? ~ # end"""
FILE = """\
model: {path: "/models/deep seek's", served_name: "x y"}
engine:
  kind: vllm
  env:
    HOSTILE: %s
    LINES: "one\\n  two\\n\\nBATON\\nesac"
    EMPTY: ""
    REMOVED: null
  args: {additional-config: {text: %s}, chat-template: %s}
platform: cpu
nodes:
  p0: {ip: 127.0.0.1}
  d0: {ip: 127.0.0.2}
  d1: {ip: 127.0.0.3}
prefill: {groups: [[p0]], api_port: 7000}
decode: {groups: [[d0, d1]], dp: 4, api_port: 8000}
gateway: {node: p0, port: 9000, args: {api-key: %s}}
supervise: {stop_seconds: 5}
""" % ((json.dumps(HOSTILE),) * 4)

# Writes how it was called, says that it runs, and stays until it is told to end, unless EXIT says otherwise.
RECORD = """\
#!/usr/bin/env python3
import json, os, signal, sys
folder = os.environ["RECORDS"]
name = os.environ.get("RECORD_AS") or next((a for b, a in zip(sys.argv, sys.argv[1:]) if b == "--port"), str(os.getpid()))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
with open(os.path.join(folder, name + ".new"), "w") as f:
    json.dump({"argv": [os.path.basename(sys.argv[0])] + sys.argv[1:], "env": dict(os.environ), "pid": os.getpid()}, f)
os.rename(os.path.join(folder, name + ".new"), os.path.join(folder, name + ".json"))
if name == os.environ.get("EXIT_AT"):
    sys.exit(7)
if not os.environ.get("RECORD_ONLY"):
    signal.sigwait([signal.SIGTERM])
"""


class Exported:
    """A cluster file, its plan as JSON and as files of a format, and a PATH with recording programs."""

    def __init__(self, form, *options):
        self.held = tempfile.TemporaryDirectory(prefix="baton-e2e-")
        self.dir = self.held.name
        self.file, self.out = os.path.join(self.dir, "cluster.yaml"), os.path.join(self.dir, "out")
        self.records = os.path.join(self.dir, "records")
        os.makedirs(os.path.join(self.dir, "bin"))
        os.makedirs(self.records)
        with open(self.file, "w", encoding="utf-8") as f:
            f.write(FILE)
        for name in ("vllm", "baton", "docker"):
            self.program(name, RECORD)
        self.program("srun", '#!/bin/bash\nwhile [ "$1" != bash ]; do shift; done\nexec "$@"\n')
        code, text, said = baton("plan", self.file, "--format", "json")
        assert code == 0, said
        self.plan = json.loads(text)
        code, _, said = baton("plan", self.file, "--format", form, "-o", self.out, *options)
        assert code == 0, said

    def program(self, name, text):
        path = os.path.join(self.dir, "bin", name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(path, 0o755)

    def read(self, *path):
        with open(os.path.join(self.out, *path), encoding="utf-8") as f:
            return f.read()

    def ranks(self, node):
        return [r for r in self.plan["ranks"] if r["node"] == node]

    def environment(self, **more):
        path = os.path.join(self.dir, "bin") + os.pathsep + os.environ["PATH"]
        return {**os.environ, "PATH": path, "RECORDS": self.records, "http_proxy": "http://proxy", "REMOVED": "x", **more}

    def start(self, *argv, **environment):
        return subprocess.Popen(argv, cwd=self.dir, env=self.environment(**environment), stdin=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, text=True)

    def record(self, name):
        try:
            with open(os.path.join(self.records, f"{name}.json"), encoding="utf-8") as f:
                return json.load(f)
        except FileNotFoundError:
            return None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.held.cleanup()


class Plan(TestCase):
    def test_json_tells_devices_ports_files_and_the_hand_off(self):
        with Exported("shell") as x:
            self.assertEqual(x.plan["connector"], "NixlConnector")
            self.assertEqual(x.plan["files"], [{"what": "model", "path": "/models/deep seek's"}])
            d = x.ranks("d1")[1]
            self.assertEqual((d["name"], d["dp_rank"], d["dp_size"], d["dp_address"], d["api_port"]),
                             ("d1.1", 3, 4, "127.0.0.2", 8001))

    def expect_rank(self, rank, record):
        self.assertEqual(record["argv"], rank["argv"])
        for entry in rank["env"]:
            name, is_set, value = entry.partition("=")
            self.assertEqual(record["env"].get(name), value if is_set else None, name)

    def run_node(self, x, node, *argv, **environment):
        """Start a script of `node`, see that its ranks (and the gateway) are the plan's, end it."""
        script = x.start(*argv, **environment)
        ports = [str(r["api_port"]) for r in x.ranks(node)] + (["9000"] if node == "p0" else [])
        try:
            wait_until(lambda: script.poll() is not None or all(x.record(p) for p in ports), "all that was planned to run")
            self.assertIsNone(script.poll(), "the script ended")
            for r in x.ranks(node):
                self.expect_rank(r, x.record(r["api_port"]))
            if node == "p0":
                self.assertEqual(x.record("9000")["argv"][1:], x.plan["gateway"]["argv"][1:])
            self.assertFalse(os.path.exists(os.path.join(x.dir, "pwned")))
        finally:
            script.terminate()
            said = script.communicate()[1]
        self.assertEqual(script.returncode, 143, said)
        for p in ports:
            with self.assertRaises(ProcessLookupError):
                os.kill(x.record(p)["pid"], 0)

    def test_a_shell_script_starts_what_the_plan_says_and_ends_it(self):
        with Exported("shell") as x:
            self.assertEqual(sorted(os.listdir(x.out)), ["d0.sh", "d1.sh", "p0.sh"])
            for node in ("p0", "d1"):
                self.run_node(x, node, os.path.join(x.out, f"{node}.sh"), "logs here")
            self.assertTrue(os.path.exists(os.path.join(x.dir, "logs here", "d1.0.log")))

    def test_when_a_rank_of_a_script_ends_the_others_do(self):
        with Exported("shell") as x:
            script = x.start(os.path.join(x.out, "d0.sh"), EXIT_AT="8001")
            said = script.communicate(timeout=60)[1]
            self.assertEqual(script.returncode, 7, said)
            self.assertIn("status 7", said)
            wait_until(lambda: not x.record("8000") or not os.path.exists(f"/proc/{x.record('8000')['pid']}"),
                       "the other rank to end")

    def test_a_batch_script_gives_every_node_its_own(self):
        with Exported("slurm") as x:
            text = x.read("baton.sbatch")
            self.assertIn("#SBATCH --nodelist=p0,d0,d1\n#SBATCH --nodes=3\n", text)
            self.run_node(x, "d0", "bash", os.path.join(x.out, "baton.sbatch"), SLURMD_NODENAME="d0")
            self.run_node(x, "p0", "bash", os.path.join(x.out, "baton.sbatch"), SLURMD_NODENAME="p0.cluster.local")
            stranger = x.start("bash", os.path.join(x.out, "baton.sbatch"), SLURMD_NODENAME="q7")
            self.assertIn("no ranks are planned for q7", stranger.communicate(timeout=60)[1])
            self.assertEqual(stranger.returncode, 2)

    def test_a_manifest_carries_the_scripts_in_its_config_maps(self):
        with Exported("k8s") as x:
            text = x.read("baton.k8s.yaml")
            block = re.search(r"name: baton-d1\ndata:\n  d1\.sh: \|\n((?:    .*\n|\n)*)", text).group(1)
            script = os.path.join(x.dir, "d1.sh")
            with open(script, "w", encoding="utf-8") as f:
                f.write(re.sub(r"^    ", "", block, flags=re.M))
            self.run_node(x, "d1", "bash", script, "logs")
            self.assertEqual(re.findall(r"kind: LeaderWorkerSet\nmetadata:\n  name: (.*)", text),
                             ["baton-prefill-0", "baton-decode-0"])
            self.assertIn("    size: 2\n", text)
            # Commands and arguments of a pod are not scripts; Kubernetes expands $(NAME) in them, and $$( stands for $(.
            self.assertIn("command:\n        - \"baton\"\n        - \"gateway\"\n        - \"--host\"\n", text)
            self.assertIn("- " + json.dumps(HOSTILE.replace("$(", "$$(")), text)

    def test_containers_get_what_the_plan_says(self):
        with Exported("docker", "--image", "an image:1") as x:
            for node in ("d0", "d1"):
                done = x.start("bash", os.path.join(x.out, f"{node}.docker.sh"), RECORD_ONLY="1", RECORD_AS=node)
                done.communicate(timeout=60)
                self.assertEqual(done.returncode, 0)
                rank, argv = x.ranks(node)[-1], x.record(node)["argv"]  # the last call's
                at = argv.index("an image:1")
                self.assertEqual([argv[argv.index("--entrypoint") + 1]] + argv[at + 1:], rank["argv"])
                given = [b for a, b in zip(argv, argv[1:]) if a == "-e"]
                self.assertEqual(given, [e if "=" in e else e + "=" for e in rank["env"]])
                self.assertIn("/models/deep seek's:/models/deep seek's:ro", argv)
            self.assertFalse(os.path.exists(os.path.join(x.dir, "pwned")))

    def test_units_hold_what_the_plan_says(self):
        def words(text):
            """systemd's quoting, undone."""
            for word in re.findall(r'"((?:[^"\\]|\\.)*)"', text, flags=re.S):
                yield re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m.group(1), m.group(1)), word).replace("%%", "%")

        with Exported("systemd") as x:
            self.assertEqual(sorted(os.listdir(os.path.join(x.out, "p0"))),
                             ["baton-gateway.service", "baton-p0.0.service", "baton-p0.target"])
            for rank in x.plan["ranks"]:
                unit = x.read(rank["node"], f"baton-{rank['name']}.service")
                command = unit[unit.index("ExecStart="):unit.index("\nLimitNOFILE")]
                self.assertEqual([w.replace("$$", "$") for w in words(command)], rank["argv"])
                self.assertEqual(list(words("\n".join(re.findall(r"^Environment=(.*)$", unit, flags=re.M)))),
                                 [e for e in rank["env"] if "=" in e])
                self.assertEqual(list(words("\n".join(re.findall(r"^UnsetEnvironment=(.*)$", unit, flags=re.M)))),
                                 [e for e in rank["env"] if "=" not in e])

    def test_one_node_goes_to_standard_output(self):
        with Exported("shell") as x:
            code, out, _ = baton("plan", x.file, "--format", "shell", "--node", "d0")
            self.assertEqual((code, out), (0, x.read("d0.sh")))
            code, _, said = baton("plan", x.file, "--format", "shell", "--node", "d7")
            self.assertEqual(code, 2)
            self.assertIn("d7", said)


class Init(TestCase):
    def test_what_is_written_passes_the_check(self):
        with tempfile.TemporaryDirectory(prefix="baton-e2e-") as folder:
            file = os.path.join(folder, "c.yaml")
            code, _, said = baton("init", "--platform", "ascend-a3", "--prefill-hosts", "192.0.2.1", "192.0.2.2",
                                  "--decode-hosts", "192.0.2.3", "192.0.2.4", "--model", "/m/R1", "-o", file)
            self.assertEqual(code, 0, said)
            self.assertEqual(baton("check", file), (0, f"{file}: no findings\n", ""))
            code, out, _ = baton("plan", file)
            self.assertEqual((code, len(re.findall("^p[01]", out, re.M)), len(re.findall("^d[01]", out, re.M))), (0, 4, 32))
            code, _, said = baton("init", "-o", file)
            self.assertEqual(code, 2)
            self.assertIn("--force", said)

    def test_what_does_not_fit_is_told_and_not_written(self):
        with tempfile.TemporaryDirectory(prefix="baton-e2e-") as folder:
            file = os.path.join(folder, "c.yaml")
            code, out, said = baton("init", "--platform", "cuda", "--prefill-tp", "16", "-o", file)
            self.assertEqual((code, out), (2, ""))
            self.assertIn("D03", said)
            self.assertFalse(os.path.exists(file))

    def test_recipes_are_listed(self):
        code, out, _ = baton("init", "--recipes")
        self.assertEqual(code, 0)
        self.assertIn("r1-w8a8-a3", out)
