#!/usr/bin/env python3
"""Runs tests/e2e/test_*.py one after the other and prints one line per test: "ok - NAME" or "not ok - NAME" after what
went wrong. With words as arguments, only tests whose name has one of them."""
import os
import signal
import sys
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
TEST_SECONDS = 300  # a test that takes longer hangs

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


def main():
    words = sys.argv[1:]
    found = unittest.defaultTestLoader.discover(HERE, pattern="test_*.py", top_level_dir=HERE)
    chosen = unittest.TestSuite(t for t in flatten(found) if not words or any(w in "e2e " + t.id() for w in words))
    result = Result()
    signal.signal(signal.SIGALRM, too_long)
    chosen.run(result)
    return 1 if result.errors else 0


sys.exit(main())
