#!/usr/bin/env python3
"""Ranks that share experts, in figures: CPU of idle ranks, memory beside what a rank's tensors take, time from a rank's death to the
next token of the others. By hand: python3 tests/bench/ranks.py (BATON=... for another program)."""
import json
import os
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
from gateway_case import COMPLETIONS  # noqa: E402
from harness import MODEL, Connection, metric, wait_until  # noqa: E402
from test_ep import PROMPT, Group  # noqa: E402
from test_eplb import eplb  # noqa: E402

ROUNDS = 11


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid):
    """What is its own: not the checkpoint's pages, which are the file's."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
        return 1024 * int(next(line for line in f if line.startswith("Anonymous")).split()[1])


def idle():
    with Group(4) as group:
        for r in group.ranks:
            r.ready()
        begun, before = time.monotonic(), sum(cpu_seconds(r.pid) for r in group.ranks)
        time.sleep(10)
        used = sum(cpu_seconds(r.pid) for r in group.ranks) - before
        print(f"4 idle ranks: {100 * used / (time.monotonic() - begun):.1f} % of a core together")


def large_model(folder):
    """The small model with 128 experts of 512 columns: zeros, which weigh as much as anything."""
    with open(os.path.join(MODEL, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    config.update(n_routed_experts=128, moe_intermediate_size=512)
    for name in os.listdir(MODEL):
        if name.endswith((".json", ".model", ".txt")) and "index" not in name:
            shutil.copy(os.path.join(MODEL, name), folder)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f)
    tensors = {}
    for name in sorted(os.listdir(MODEL)):
        if name.endswith(".safetensors"):
            with open(os.path.join(MODEL, name), "rb") as f:
                header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
            tensors.update({k: v["shape"] for k, v in header.items() if k != "__metadata__" and ".experts." not in k})
    expert = 0
    for name in list(tensors):
        if name.endswith("mlp.gate.weight"):
            tensors[name] = [128, 256]
            for e in range(128):
                for part, shape in (("gate_proj", [512, 256]), ("up_proj", [512, 256]), ("down_proj", [256, 512])):
                    tensors[f"{name[:-11]}experts.{e}.{part}.weight"] = shape
                    expert += 2 * shape[0] * shape[1]
        if name.endswith("e_score_correction_bias"):
            tensors[name] = [128]
        if "shared_experts" in name:
            tensors[name] = [256, 512] if "down" in name else [512, 256]
    header, at = {}, 0
    for name, shape in tensors.items():
        kind, size = ("F32", 4) if name.endswith("bias") else ("BF16", 2)
        for n in shape:
            size *= n
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + at)


def memory():
    with tempfile.TemporaryDirectory() as folder:
        large_model(folder)
        for size, args in ((1, ()), (2, ()), (4, ()), (4, eplb(num_redundant_experts=32))):
            with Group(size, *args, model=folder) as group:
                base = []
                for r in group.ranks:
                    told = float(r.output().split(" MiB of weights")[0].split()[-1])
                    base.append((resident(r.pid) / 2**20, told))
                print(f"EP {size}{' with 32 replicas' if args else ''}: resident " +
                      ", ".join(f"{a:.0f} MiB for {b:.0f} of weights" for a, b in base))


def deaths():
    """A stream of rank 0: the longest pause between two of its tokens while rank 2 is killed."""
    for size, redundant in ((3, 8),):
        with Group(size, *eplb(num_redundant_experts=redundant)) as group:
            pauses = []
            for _ in range(ROUNDS):
                with Connection(group.ranks[0].port) as c:
                    c.request("POST", COMPLETIONS, {**PROMPT, "max_tokens": 400, "stream": True})
                    times = []
                    for event in c.events():
                        times.append(time.monotonic())
                        if len(times) == 20:
                            group.ranks[2].signal(signal.SIGKILL)
                    assert event == "[DONE]"
                pauses.append(max(b - a for a, b in zip(times, times[1:])))
                group.restart(2)
                group.ranks[2].ready()
                wait_until(lambda: metric(group.ranks[0].port, "baton:group_ranks") == size, "it is back")
            print(f"EP {size}, a rank killed: the others' streams pause {1000 * statistics.median(pauses):.0f} ms "
                  f"(median of {ROUNDS}, {1000 * min(pauses):.0f} to {1000 * max(pauses):.0f})")


if __name__ == "__main__":
    idle()
    memory()
    deaths()
