"""The checkers of the house refuse what they are there to refuse."""
import glob
import os
import re
import subprocess
import tempfile
import unittest

import harness


class CheckIncludes(harness.TestCase):
    def check(self, files):
        """What tools/check-includes says of a tree with these files under src/."""
        with tempfile.TemporaryDirectory() as root:
            for path, text in files.items():
                whole = os.path.join(root, "src", path)
                os.makedirs(os.path.dirname(whole), exist_ok=True)
                with open(whole, "w", encoding="utf-8") as f:
                    f.write(text)
            done = subprocess.run([os.path.join(harness.ROOT, "tools", "check-includes"), root], capture_output=True,
                                  text=True, timeout=harness.DEADLINE)
            self.assertEqual(done.returncode, 1 if done.stdout else 0, done.stderr)
            return done.stdout.splitlines()

    def test_rooms_above_and_public_headers_are_allowed(self):
        self.assertEqual(self.check({
            "base/buf.c": '#include "base/buf.h"\n#include <stdio.h>\n',
            "http/x.c": '#include "base/buf.h"\n#include "os/os.h"\n#include "http/codec.h"\n',
            "gateway/x.c": '#include "http/http.h"\n#include "http/sse.h"\n#include "openai/openai.h"\n',
            "cli/x.c": '#include "gateway/gateway.h"\n#include "engine/api.h"\n',
        }), [])

    def test_each_breach_is_named_with_its_place(self):
        for path, include, rule in (
                ("base/x.c", "os/os.h", "base/ must not include os/, which is not above it"),
                ("http/x.h", "gateway/gateway.h", "http/ must not include gateway/"),
                ("gateway/x.c", "engine/engine.h", "gateway/ must not include engine/"),
                ("gateway/x.c", "http/codec.h", "http/codec.h is private to http/"),
                ("cli/x.c", "launch/process.h", "launch/process.h is private to launch/"),
                ("http/x.c", "buf.h", 'include "room/file.h" of a known room'),
                ("http/x.c", "../base/buf.h", 'include "room/file.h" of a known room'),
                ("http/x.c", "nowhere/x.h", 'include "room/file.h" of a known room'),
                ("attic/x.c", "base/buf.h", "src/attic is no room")):
            with self.subTest(path=path, include=include):
                said = self.check({path: f'/* a comment */\n  #  include "{include}"\n'})
                self.assertEqual(len(said), 1, said)
                self.assertTrue(said[0].startswith(f"src/{path}:2: "), said[0])
                self.assertIn(rule, said[0])


class Documents(harness.TestCase):
    """What docs/ say of tests is true."""

    def read(self, *path):
        with open(os.path.join(harness.ROOT, *path), encoding="utf-8") as f:
            return f.read()

    def test_each_defect_has_a_test_that_exists(self):
        text = self.read("docs", "proxy-defects.md")
        there = {name.removeprefix("test_").replace(".test_", ".")
                 for name in (t.id() for t in tests_of(unittest.defaultTestLoader.discover(os.path.dirname(__file__))))}
        for path in glob.glob(os.path.join(harness.ROOT, "tests/unit/*/*.c")):
            there |= {"unit " + name for name in re.findall(r"cmocka_unit_test(?:_\w+)?\((\w+)", self.read(path))}
        named = re.findall(r"`((?:\w+\.[A-Z]\w*\.|unit )\w+)`", text)
        self.assertEqual([n for n in named if n not in there], [])
        rows = [line for line in text.splitlines() if re.match(r"\| *\d+ *\|", line)]
        self.assertEqual([int(r.split("|")[1]) for r in rows], list(range(1, 31)))
        self.assertEqual([r for r in rows if not re.search(r"`(\w+\.[A-Z]\w*\.|unit )\w+`[^|]*\|$", r)], [])

    def test_files_that_are_named_are_there(self):
        for doc in sorted(glob.glob(os.path.join(harness.ROOT, "docs", "*.md"))):
            for path in re.findall(r"`((?:tests|tools|docs|examples|src)/[\w./-]+)`", self.read(doc)):
                self.assertTrue(os.path.exists(os.path.join(harness.ROOT, path)), f"{doc}: {path}")


def tests_of(suite):
    for t in suite:
        yield from tests_of(t) if isinstance(t, unittest.TestSuite) else [t]
