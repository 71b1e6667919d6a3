"""`baton chat` and `baton complete`: answers from a folder, and nothing that is cut or left behind."""
import glob
import json
import os
import signal
import socket
import subprocess

from harness import BATON, DEADLINE, MODEL, Serve, TestCase, baton, die_with_parent, wait_until


def ready_for_signals():
    """A test run in the background ignores SIGINT, and its children would too."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
        return [int(word) for word in f.read().split()]


def arguments(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as f:
        return f.read().decode().split("\0")


class Chat:
    """`baton chat MODEL` without a question: its input is a pipe, its directory that of the server it started."""

    def __init__(self):
        self.child = subprocess.Popen([BATON, "chat", MODEL], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, preexec_fn=ready_for_signals)
        # Between fork and exec the server's arguments are still those of its parent.
        argv = wait_until(lambda: next((a for a in map(arguments, children(self.child.pid)) if "--uds" in a), None),
                          "the server has started")
        self.directory = os.path.dirname(argv[argv.index("--uds") + 1])

    def ask(self, question):
        self.child.stdin.write(question.encode() + b"\n")
        self.child.stdin.flush()
        return self.child.stdout.readline().decode()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.child.poll() is None:
            self.child.kill()
        self.child.communicate()
        for path in glob.glob(os.path.join(self.directory, "*")):  # of a test that failed
            os.unlink(path)
        if os.path.exists(self.directory):
            os.rmdir(self.directory)


def event(text):
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


class Talk(TestCase):
    def test_chat_and_complete_answer_from_a_folder(self):
        code, out, err = baton("chat", MODEL, "What is the capital of Norway?", "--stats")
        self.assertEqual((0, "The capital of Norway is Oslo.\n"), (code, out), err)
        self.assertIn("tokens/s", err)
        code, out, err = baton("complete", MODEL, "The capital of Norway is", "--max-tokens", "4")
        self.assertEqual(0, code, err)
        self.assertIn("Oslo", out)
        code, _, err = baton("chat", "/no/such", "x")
        self.assertEqual(2, code)
        self.assertIn("/no/such", err)

    def test_lines_are_turns_until_the_end_of_input(self):
        done = subprocess.run([BATON, "chat", MODEL], input=b"\nWhat is the capital of Norway?\nAnd of France?",
                              capture_output=True, timeout=DEADLINE)
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertEqual("The capital of Norway is Oslo.", done.stdout.decode().splitlines()[0])
        self.assertEqual(2, len(done.stdout.decode().splitlines()))

    def test_ctrl_c_ends_the_answer_and_not_the_talk(self):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(DEADLINE)
            child = subprocess.Popen([BATON, "chat", f"http://127.0.0.1:{server.getsockname()[1]}"],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=ready_for_signals)
            self.addCleanup(child.communicate)
            self.addCleanup(child.kill)
            os.write(child.stdin.fileno(), b"first\nsecond\n")
            with server.accept()[0] as peer:
                peer.settimeout(DEADLINE)
                peer.sendall(head + event("begun"))
                self.assertEqual(b"begun", os.read(child.stdout.fileno(), 100))
                child.send_signal(signal.SIGINT)
                while peer.recv(65536):  # until it leaves
                    pass
            with server.accept()[0] as peer:
                peer.sendall(head + event("done") + b"data: [DONE]\n\n")
                peer.shutdown(socket.SHUT_WR)
                child.stdin.close()
                self.assertEqual(b"\ndone\n", child.stdout.read())
            child.stdin = None
            self.assertEqual(0, child.wait(DEADLINE))

    def test_a_signal_between_answers_ends_the_talk_and_leaves_nothing(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with Chat() as chat:
                self.assertEqual("The capital of Norway is Oslo.\n", chat.ask("What is the capital of Norway?"))
                chat.child.send_signal(number)
                self.assertEqual(130, chat.child.wait(DEADLINE))
                self.assertFalse(os.path.exists(chat.directory))

    def test_a_signal_while_the_model_is_loaded_leaves_nothing(self):
        with Chat() as chat:
            chat.child.send_signal(signal.SIGINT)
            self.assertEqual(130, chat.child.wait(DEADLINE))
            self.assertFalse(os.path.exists(chat.directory))

    def test_input_that_is_too_long_is_refused_not_cut(self):
        done = subprocess.run([BATON, "complete", "http://127.0.0.1:1"], input=b"x" * ((16 << 20) + 1),
                              capture_output=True, timeout=DEADLINE)
        self.assertEqual(2, done.returncode, done.stderr)
        self.assertIn(b"16 MiB", done.stderr)

    def test_a_long_key_is_sent_whole(self):
        key = "k" * 3000
        with Serve("--api-key", key) as s:
            code, out, err = baton("chat", f"http://127.0.0.1:{s.port}", "What is the capital of Norway?", "--api-key", key)
            self.assertEqual((0, "The capital of Norway is Oslo.\n"), (code, out), err)

    def test_every_word_for_the_server_reaches_it(self):
        words = ["--serve=--threads", "--serve=1"] * 40
        code, _, err = baton("chat", MODEL, "x", *words, "--serve=--no-such-option")
        self.assertEqual(2, code)
        self.assertIn("--no-such-option", err)
