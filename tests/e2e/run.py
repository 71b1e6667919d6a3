#!/usr/bin/env python3
"""Runs tests/e2e/test_*.py and prints one line per test: "ok - NAME" or "not ok - NAME" after what went wrong. With words as
arguments, only tests whose name has one of them. The tests of a class run one after the other, in a process of their own
beside those of other classes: most of the time they wait for something."""
import collections
import concurrent.futures
import os
import signal
import subprocess
import sys
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
TEST_SECONDS = 300  # a test that takes longer hangs
ENDING_SECONDS = 30  # for an interrupted one to end its clusters

# Whoever starts the tests in the background of a script has SIGINT ignored, and what is ignored is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)


def too_long(*_):
    raise AssertionError(f"the test did not end within {TEST_SECONDS} s")


class Result(unittest.TestResult):
    def startTest(self, test):
        super().startTest(test)
        self.begun = time.monotonic()
        signal.alarm(TEST_SECONDS)

    def stopTest(self, test):
        signal.alarm(0)
        super().stopTest(test)

    def line(self, ok, test):
        name = test.id().replace("test_", "")
        print(f"{'ok' if ok else 'not ok'} - {name} ({time.monotonic() - self.begun:.1f} s)", flush=True)

    def addSuccess(self, test):
        self.line(True, test)

    def bad(self, test, error):
        super().addError(test, error)
        print(self.errors[-1][1], flush=True)
        self.begun = getattr(self, "begun", time.monotonic())
        self.line(False, test)

    addError = addFailure = bad

    def addSubTest(self, test, subtest, error):
        if error:
            self.bad(subtest, error)

    def addSkip(self, test, reason):
        self.bad(test, (AssertionError, AssertionError(f"skipped: {reason}"), None))


def flatten(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


def run_here(tests):
    """One after the other, in this process."""
    result = Result()
    signal.signal(signal.SIGALRM, too_long)
    unittest.TestSuite(tests).run(result)
    return 1 if result.errors else 0


def run_beside_each_other(classes):
    """A process for each class, a few at once. What one says is shown when it ends."""
    running, output, bad = set(), threading.Lock(), []

    def run_class(name):
        process = subprocess.Popen([sys.executable, __file__, "--class", name, *sys.argv[1:]], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        running.add(process)
        said = process.communicate()[0].decode("utf-8", "replace")
        running.discard(process)
        with output:
            print(said, end="", flush=True)
            if process.returncode:
                bad.append(name)
            if process.returncode not in (0, 1):
                print(f"not ok - {name} (status {process.returncode})", flush=True)

    pool = concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0)) + 1)
    try:
        for task in [pool.submit(run_class, name) for name in classes]:
            task.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        left = list(running)
        for process in left:  # a Ctrl-C of ours is theirs, too: they end what they have begun, once
            process.send_signal(signal.SIGINT)
        for process in left:
            try:
                process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
    return 1 if bad else 0


def main():
    only, words = (sys.argv[2], sys.argv[3:]) if sys.argv[1:2] == ["--class"] else (None, sys.argv[1:])
    found = unittest.defaultTestLoader.discover(HERE, pattern="test_*.py", top_level_dir=HERE)
    classes = collections.defaultdict(list)
    for test in flatten(found):
        if not words or any(w in "e2e " + test.id() for w in words):
            classes[test.id().rpartition(".")[0]].append(test)
    if only or len(classes) < 2:
        return run_here([t for name, tests in classes.items() for t in tests if only in (None, name)])
    # Those with many tests first, so that none of them is alone at the end.
    return run_beside_each_other(sorted(classes, key=lambda name: -len(classes[name])))


sys.exit(main())
