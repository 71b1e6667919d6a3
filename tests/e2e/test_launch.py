"""A cluster file's whole life on one machine: `baton check`, `plan`, `up`, `status`, `logs`, `restart`, `warmup`, `down`, with
real ranks of the embedded engine. Whatever is killed, the rest goes on or ends; nothing stays behind."""
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import tempfile

from fault_engine import Engine, Ledger
from harness import BATON, MODEL, Process, TestCase, baton, free_port, http, wait_until

FILE = """\
model: {{path: {model}, served_name: baton-tiny, max_len: 2048}}
engine: {{kind: embedded, args: {{threads: 1, kv-cache-blocks: 256}}}}
platform: cpu
nodes:
  d0: {{ip: 127.0.0.1}}
  d1: {{ip: 127.0.0.1}}
decode: {{groups: [[d0], [d1]], host: 127.0.0.1, api_port: {api}}}
gateway: {{node: d0, host: 127.0.0.1, port: {port}}}
supervise: {{ready_seconds: 60, stop_seconds: 10, state_dir: {dir}/state}}
"""


def runs(pid):
    """Whether a process has not ended; one that nobody has waited for yet has."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Cluster:
    """A cluster file in a directory of its own. On leaving, what still runs is ended by the supervisor's pid."""

    def __init__(self, model=MODEL, text=FILE):
        self.dir = tempfile.TemporaryDirectory(prefix="baton-e2e-")
        self.file = os.path.join(self.dir.name, "cluster.yaml")
        self.port, self.api = free_port(), free_port()
        with open(self.file, "w", encoding="utf-8") as f:
            f.write(text.format(model=model, api=self.api, port=self.port, dir=self.dir.name))

    def script(self, name, text):
        """A program in its directory."""
        path = os.path.join(self.dir.name, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(f"#!/bin/sh\n{text}\n")
        os.chmod(path, 0o755)

    def log(self, name):
        with open(os.path.join(self.dir.name, "state", name), encoding="utf-8") as f:
            return f.read()

    def run(self, command, *args):
        return baton(command, self.file, *args)

    def status(self):
        code, out, _ = self.run("status", "--format", "json")
        return code, json.loads(out) if out else None

    def process(self, name):
        return next((p for p in self.status()[1]["processes"] if p["name"] == name), None)

    def pids(self):
        whole = self.status()[1]
        return [whole["pid"]] + [p["pid"] for p in whole["processes"]]

    def ask(self):
        return http(self.port, "POST", "/v1/completions", {"prompt": "The capital of Norway is", "max_tokens": 4,
                                                            "temperature": 0})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.run("down")
        self.dir.cleanup()


class Launch(TestCase):
    def up(self, cluster):
        code, _, said = cluster.run("up")
        self.assertEqual(code, 0, said)
        return said

    def gone(self, pids):
        wait_until(lambda: not any(map(runs, pids)), f"none of {pids} runs")

    def test_up_status_logs_down(self):
        with Cluster() as c:
            said = self.up(c)
            self.assertIn(f"serving on http://127.0.0.1:{c.port}", said)
            self.assertEqual(c.ask().status, 200)
            code, whole = c.status()
            self.assertEqual(code, 0)
            self.assertEqual({p["name"]: p["state"] for p in whole["processes"]},
                             {"d0.0": "healthy", "d1.0": "healthy", "gateway": "healthy"})
            code, table, _ = c.run("status")
            self.assertEqual(code, 0)
            for name in "d0.0", "d1.0", "gateway":
                self.assertRegex(table, rf"(?m)^{name} .* healthy ")
            code, out, said = c.run("logs", "d0.0")
            self.assertEqual(code, 0, said)
            self.assertIn("serving baton-tiny on", out)
            code, _, said = c.run("logs", "d7.0")
            self.assertEqual(code, 2)
            self.assertIn("no rank is named `d7.0`", said)
            pids = c.pids()
            code, _, said = c.run("up")
            self.assertEqual(code, 2)
            self.assertIn("is up already", said)
            self.assertTrue(all(map(runs, pids)))
            self.assertEqual(c.run("down")[0], 0)
            self.gone(pids)
            code, _, said = c.run("status")
            self.assertEqual(code, 1)
            self.assertIn("is not up", said)
            self.assertEqual(c.run("down")[0], 0)

    def test_a_killed_rank_is_started_again_and_nobody_notices(self):
        with Cluster() as c:
            self.up(c)
            want = c.ask().json()["choices"][0]["text"]
            os.kill(c.process("d0.0")["pid"], signal.SIGKILL)
            for _ in range(20):
                r = c.ask()
                self.assertEqual(r.status, 200, r.body)
                self.assertEqual(r.json()["choices"][0]["text"], want)

            def back():
                p = c.process("d0.0")
                return p["state"] == "healthy" and p["restarts"] == 1
            wait_until(back, "d0.0 is healthy again")
            self.assertIn("SIGKILL", c.process("d0.0")["last_exit"])

    def test_want_of_descriptors_is_waited_out(self):
        with Cluster() as c:
            self.up(c)
            supervisor, victim = c.status()[1]["pid"], c.process("d0.0")["pid"]
            _, most = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
            resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (3, most))
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: "cannot make a pipe" in c.log("supervisor.log"), "it could not be started again")
            resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (most, most))
            wait_until(lambda: c.process("d0.0")["state"] == "healthy", "d0.0 is healthy again")

    def test_a_rank_that_never_answers_is_ended_and_the_cluster_with_it(self):
        text = FILE.replace("{{kind: embedded,", "{{kind: embedded, binary: {dir}/mute,").replace(
            "ready_seconds: 60,", "ready_seconds: 1, restarts: 1,")
        with Cluster(text=text) as c:
            c.script("mute", "exec sleep 600")
            code, _, said = c.run("up")
            self.assertEqual(code, 1, said)
            name = re.search(r"(d[01]\.0) failed: killed by SIGKILL", said)[1]
            self.assertEqual(c.log("supervisor.log").count(f"{name} is not ready after 1 s"), 2)

    def test_restart_takes_one_and_leaves_the_others(self):
        with Cluster() as c:
            self.up(c)
            old = {p["name"]: p["pid"] for p in c.status()[1]["processes"]}
            self.assertEqual(c.run("restart", "d1.0")[0], 0)

            def another():
                p = c.process("d1.0")
                return p["state"] == "healthy" and p["pid"] != old["d1.0"]
            wait_until(another, "d1.0 is another process")
            new = {p["name"]: p["pid"] for p in c.status()[1]["processes"]}
            self.assertEqual([new["d0.0"], new["gateway"]], [old["d0.0"], old["gateway"]])
            code, _, said = c.run("restart", "d9.0")
            self.assertEqual(code, 2)
            self.assertIn("no rank or group is named `d9.0`", said)

    def test_restart_of_a_gateway_whose_turn_has_not_come_keeps_it_waiting(self):
        with Cluster(text=FILE.replace("{{kind: embedded,", "{{kind: embedded, binary: {dir}/slow,")) as c:
            go = os.path.join(c.dir.name, "go")
            c.script("slow", f'while [ ! -e {go} ]; do sleep 0.02; done; exec {BATON} "$@"')
            with Process([BATON, "up", c.file]) as up:
                wait_until(lambda: c.status()[1], "the supervisor answers")
                self.assertEqual(c.run("restart", "gateway")[0], 0)
                gateway = c.process("gateway")
                self.assertEqual((gateway["state"], gateway["pid"]), ("waiting", None))
                open(go, "w").close()
                self.assertEqual(up.wait(), 0)
            self.assertEqual(c.ask().status, 200)
            pids = c.pids()
            self.assertEqual(c.run("down")[0], 0)
            self.gone(pids)

    def test_warmup_reaches_every_rank(self):
        with Cluster() as c:
            self.up(c)
            # Whether latency settles depends on the machine; that every rank was reached does not.
            code, out, said = c.run("warmup", "--steady", "100000", "--max-prompt", "64", "--quiet")
            self.assertEqual(code, 0, said)
            self.assertIn("2 of 2 P→D pairs", out)
            for api in c.status()[1]["processes"][:2]:
                port = int(api["url"].rsplit(":", 1)[1])
                self.assertIn(b"vllm:request_success_total", http(port, "GET", "/metrics").body)

    def test_warmup_hands_params_over_as_they_came(self):
        ledger = Ledger()
        p, d = Engine("prefill", ledger), Engine("decode", ledger)
        self.addCleanup(p.stop)
        self.addCleanup(d.stop)
        code, out, said = baton("warmup", "--prefill", f"http://{p.url}", "--decode", f"http://{d.url}", "--steady",
                                "100000", "--max-prompt", "64", "--quiet")
        self.assertEqual(code, 0, said)
        self.assertIn("1 of 1 P→D pairs", out)
        # Its legs carry no X-Request-Id, of which the ledger complains.
        self.assertEqual([v for v in ledger.violations if not v.startswith("decode leg")], [])
        self.assertEqual(ledger.stranded(), [])

    def test_foreground_ends_with_ctrl_c_and_leaves_nothing(self):
        with Cluster() as c, Process([BATON, "up", c.file, "--foreground"]) as p:
            wait_until(lambda: "serving on" in p.output() or not p.alive(), "the cluster is up")
            pids = c.pids()
            p.signal(signal.SIGINT)
            self.assertEqual(p.wait(), 0, p.output())
            self.gone(pids)

    def test_foreground_tells_when_its_supervisor_dies(self):
        with Cluster() as c, Process([BATON, "up", c.file, "--foreground"]) as p:
            wait_until(lambda: "serving on" in p.output() or not p.alive(), "the cluster is up")
            pids = c.pids()
            os.kill(pids[0], signal.SIGKILL)
            self.assertEqual(p.wait(), 1, p.output())
            self.assertIn("the supervisor ended (killed by SIGKILL)", p.output())
            self.gone(pids)

    def test_foreground_ends_well_with_a_down_from_elsewhere(self):
        with Cluster() as c, Process([BATON, "up", c.file, "--foreground"]) as p:
            wait_until(lambda: "serving on" in p.output() or not p.alive(), "the cluster is up")
            self.assertEqual(c.run("down")[0], 0)
            self.assertEqual(p.wait(), 0, p.output())

    def test_a_supervisor_that_dies_while_ranks_start_is_told(self):
        with Cluster(text=FILE.replace("{{kind: embedded,", "{{kind: embedded, binary: {dir}/mute,")) as c:
            c.script("mute", "exec sleep 600")
            with Process([BATON, "up", c.file]) as p:
                wait_until(lambda: c.status()[1], "the supervisor answers")
                os.kill(c.status()[1]["pid"], signal.SIGKILL)
                self.assertEqual(p.wait(), 1, p.output())
                self.assertIn("the supervisor ended (killed by SIGKILL)", p.output())

    def test_a_supervisor_that_does_not_stop_is_killed(self):
        text = FILE.replace("stop_seconds: 10", "stop_seconds: 0")
        with Cluster(text=text) as c, Process([BATON, "up", c.file, "--foreground"]) as p:
            wait_until(lambda: "serving on" in p.output() or not p.alive(), "the cluster is up")
            pids = c.pids()
            os.kill(pids[0], signal.SIGSTOP)
            p.signal(signal.SIGINT)
            self.assertEqual(p.wait(), 3, p.output())
            self.assertIn("does not stop", p.output())
            self.gone(pids)

    def test_ctrl_c_while_starting_leaves_nothing(self):
        with Cluster(text=FILE.replace("{{kind: embedded,", "{{kind: embedded, binary: {dir}/mute,")) as c:
            c.script("mute", "exec sleep 600")  # starting is all it ever does
            with Process([BATON, "up", c.file]) as p:
                wait_until(lambda: c.status()[1], "the supervisor answers")
                pids = [pid for pid in c.pids() if pid]
                p.signal(signal.SIGINT)
                self.assertEqual(p.wait(), 1, p.output())
                self.gone(pids)

    def test_a_killed_supervisor_takes_its_children_along_and_the_next_one_starts(self):
        with Cluster() as c:
            self.up(c)
            pids = c.pids()
            os.kill(pids[0], signal.SIGKILL)
            self.gone(pids)
            self.up(c)
            self.assertEqual(c.ask().status, 200)

    def test_what_cannot_start_is_explained_and_all_is_stopped(self):
        with tempfile.TemporaryDirectory() as empty, Cluster(model=empty) as c:
            code, _, said = c.run("up")
            self.assertEqual(code, 1, said)
            self.assertIn("d0.0 failed", said)
            self.assertIn("config.json", said)
            self.assertIn("cure: model.path: the folder on this node", said)
            self.assertEqual(c.status()[0], 1)

    def test_a_port_that_is_taken_is_named_before_anything_starts(self):
        with Cluster() as c:
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", c.api))
                taken.listen()
                code, _, said = c.run("up")
            self.assertNotEqual(code, 0)
            self.assertIn(str(c.api), said)
            self.assertEqual(c.status()[0], 1)


class Logs(TestCase):
    def test_a_line_that_is_not_ended_is_waited_for(self):
        """Whoever follows a log is answered when there is a line, not again and again while a progress bar grows."""
        with Cluster() as c:
            os.makedirs(os.path.join(c.dir.name, "state", "logs"), mode=0o700)
            os.chmod(os.path.join(c.dir.name, "state"), 0o700)
            log = os.path.join(c.dir.name, "state", "logs", "d0.0.log")
            with open(log, "w", encoding="utf-8") as f:
                f.write("loading: 10 %")
            with open(c.file, encoding="utf-8") as f:
                text = f.read()
            with subprocess.Popen([BATON, "node"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as node:
                def ask(**request):
                    node.stdin.write(json.dumps(request).encode() + b"\n")
                    node.stdin.flush()
                node.stdout.readline()
                ask(id=1, op="open", file=c.file, directory=c.dir.name, node=None, text=text)
                self.assertEqual(json.loads(node.stdout.readline()), {"id": 1})
                ask(id=2, op="logs", wait_ms=10000, of=[{"name": "d0.0", "at": 0}])
                self.assertEqual(select.select([node.stdout], [], [], 0.3)[0], [], "it answers at once")
                with open(log, "a", encoding="utf-8") as f:
                    f.write(" 20 %\n")
                self.assertEqual(json.loads(node.stdout.readline())["logs"],
                                 [{"name": "d0.0", "at": 19, "text": "loading: 10 % 20 %\n"}])
                node.stdin.close()


class File(TestCase):
    def test_the_example_is_clean_and_its_plan_names_every_rank(self):
        example = os.path.join(os.path.dirname(os.path.dirname(MODEL)), "examples", "local.yaml")
        code, out, _ = baton("check", example, cwd=os.path.dirname(os.path.dirname(example)))
        self.assertEqual((code, out), (0, f"{example}: no findings\n"))
        code, out, _ = baton("plan", example, "--format", "json")
        self.assertEqual(code, 0)
        self.assertEqual([r["name"] for r in json.loads(out)["ranks"]], ["p0.0", "p1.0", "d0.0", "d0.1", "d1.0", "d1.1"])

    def test_a_mistake_is_told_with_its_place_and_a_code_that_can_be_explained(self):
        with Cluster(text=FILE.replace("nodes:", "nodse:")) as c:
            code, out, _ = c.run("check", "--format", "json")
            self.assertEqual(code, 1)
            found = json.loads(out)["findings"]
            self.assertTrue(any(f["line"] == 4 for f in found), found)
            for f in found:
                self.assertEqual(baton("explain", f["code"])[0], 0)
            self.assertEqual(c.run("up")[0], 2)
        self.assertEqual(baton("check", "/no/such/file")[0], 2)
