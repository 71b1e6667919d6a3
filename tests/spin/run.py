#!/usr/bin/env python3
"""Checks the models of the protocols with spin, each exhaustively, and each again with one rule taken out, when it must fail:
a model that cannot fail proves nothing. Prints "ok - NAME" or "not ok - NAME" for each. The table of request.pml must be that
of src/gateway/part.c."""
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
SECONDS = 120  # a model that takes longer has grown too large to be a test
MODELS = [("lease", [], ["UNCONFIRMED", "NO_TIMER", "NO_SILENCE"]),
          ("push", [], ["UNFENCED", "UNCONFIRMED", "EARLY", "NO_TIMER", "NO_SILENCE"]),
          ("request", ["ORDER=PULL"], ["REUSE", "NO_SETTLE"]),
          ("request", ["ORDER=PUSH"], ["NO_CUT", "NO_CLEAR"]),
          ("request", ["ORDER=TOGETHER"], ["NO_CUT", "NO_CLEAR"])]
# Groups of ranks: no deadlock and no failed assertion, and, as a search of its own, no cycle.
GROUP = {"safety": (["-DSAFETY", "-DNOCLAIM", "-DCOLLAPSE", "-DVECTORSZ=2048"], []),
         "every run ends": (["-DNP", "-DNOCLAIM", "-DCOLLAPSE", "-DVECTORSZ=2048"], ["-l"])}
bad = 0


def report(name, ok, output):
    global bad
    bad += not ok
    if not ok:
        print(output)
    print(f"{'ok' if ok else 'not ok'} - spin {name}", flush=True)


def run(folder, *argv):
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    return done.stdout + done.stderr


def check(model, defines):
    """What the checker says."""
    with tempfile.TemporaryDirectory() as folder:
        said = run(folder, "spin", *["-D" + d for d in defines], "-a", os.path.join(HERE, model + ".pml"))
        # Under weak fairness, which holds for each process: nobody is kept from doing what it can.
        said += run(folder, "gcc", "-O2", "-w", "-DNFAIR=4", "-o", "pan", "pan.c")
        return said + run(folder, "./pan", "-a", "-f", "-m1000000")


def check_group(model, compile_flags, flags, defines=()):
    with tempfile.TemporaryDirectory() as folder:
        said = run(folder, "spin", *["-D" + d for d in defines], "-a", os.path.join(HERE, model + ".pml"))
        said += run(folder, "gcc", "-O2", "-w", *compile_flags, "-o", "pan", "pan.c")
        return said + run(folder, "./pan", *flags, "-m1000000", "-w25")


def holds(said):
    return "errors: 0" in said and "max search depth too small" not in said


def table_of_code():
    with open(os.path.join(ROOT, "src/gateway/part.c"), encoding="utf-8") as f:
        table = re.search(r"table\[PART_STATES\]\[PART_EVENTS\] = \{(.*?)\n\};", f.read(), re.S).group(1)
    rows = set()
    for state, actions in re.findall(r"\[(PART_\w+)\] =\s*\{(.*?)\n        \}", table, re.S):
        rows |= {(state, event, action) for event, action in re.findall(r"\[(PART_\w+)\] = (\w+)", actions)}
    return rows


def table_of_model():
    with open(os.path.join(HERE, "request.pml"), encoding="utf-8") as f:
        return set(re.findall(r":: state == (PART_\w+) && event == (PART_\w+) -> (\w+)\(\)", f.read()))


def main():
    code, model = table_of_code(), table_of_model()
    report("the table of part.c is that of the model", code == model and len(code) > 40,
           f"only in part.c: {sorted(code - model)}\nonly in request.pml: {sorted(model - code)}")
    for name, defines, switches in MODELS:
        said = check(name, defines)
        report(" ".join([name, *defines]), holds(said), said)
        for switch in switches:
            said = check(name, [*defines, switch])
            report(" ".join([name, *defines, "fails with", switch]), re.search(r"errors: [1-9]", said) is not None, said)
    for model, switches in (("group", ["NO_END"]), ("regroup", ["SWITCH_ALONE", "NO_DOOR"])):
        for name, (compile_flags, flags) in GROUP.items():
            said = check_group(model, compile_flags, flags)
            report(f"{model}: {name}", holds(said), said)
        for switch in switches:
            said = check_group(model, *GROUP["safety"], [switch])
            report(f"{model} fails with {switch}", re.search(r"errors: [1-9]", said) is not None, said)
    return 1 if bad else 0


sys.exit(main())
