"""What the end-to-end tests share: starting real processes, waiting for what can be observed, plain HTTP over sockets.

Nothing here sleeps for luck: waits poll an observable state and end with a deadline. Processes are ended by their own
pid. What a process printed is shown when its test fails."""
import ctypes
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BATON = os.environ.get("BATON", os.path.join(ROOT, "build", "baton"))
MODEL = os.path.join(ROOT, "models", "baton-tiny")
DEADLINE = 60.0  # for anything that should take far less; generous because CI machines are shared


def free_port():
    """A port that was free a moment ago, below the ephemeral range so that no outgoing connection takes it."""
    for _ in range(200):
        port = 10000 + int.from_bytes(os.urandom(2), "big") % 20000
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise RuntimeError("no free port")


def wait_until(condition, what, seconds=DEADLINE):
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


TERM, KILL, HUP = signal.SIGTERM, signal.SIGKILL, signal.SIGHUP  # inside the class `signal` is its method
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def die_with_parent():
    """In the child before exec: a test run that is killed leaves nothing behind. The kernel means the *thread* that
    starts the process, so start processes from the main one."""
    LIBC.prctl(PR_SET_PDEATHSIG, KILL)


class Process:
    """A child with its output in a file. Use as a context manager, or stop() it."""

    def __init__(self, argv, env=None, cwd=None):
        self.log = tempfile.NamedTemporaryFile(prefix="baton-e2e-", suffix=".log", delete=False)
        self.argv = argv
        self.child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
                                      env={**os.environ, **(env or {})}, cwd=cwd, start_new_session=True,
                                      preexec_fn=die_with_parent)
        self.pid = self.child.pid

    def output(self):
        with open(self.log.name, encoding="utf-8", errors="replace") as f:
            return f.read()

    def alive(self):
        return self.child.poll() is None

    def signal(self, number):
        self.child.send_signal(number)

    def wait(self, seconds=DEADLINE):
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.argv} did not end within {seconds} s; it said:\n{self.output()}") from None

    def stop(self, number=TERM):
        if self.alive():
            self.signal(number)
            try:
                self.child.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self.pid, KILL)  # not yet waited for, so the group is still its own
                self.child.wait()
        self.log.close()
        if os.path.exists(self.log.name):
            os.unlink(self.log.name)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is not None:
            print(f"--- {' '.join(self.argv)} said:\n{self.output()[-4000:]}", flush=True)
        self.stop()


class Response:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def header(self, name):
        for k, v in self.headers:
            if k.lower() == name.lower():
                return v
        return None

    def json(self):
        return json.loads(self.body)


class Connection:
    """One HTTP/1.1 connection, byte by byte under the test's control."""

    def __init__(self, port, host="127.0.0.1", timeout=DEADLINE):
        self.socket = socket.create_connection((host, port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.held = b""

    def send(self, data):
        self.socket.sendall(data)

    def request(self, method, path, body=None, headers=None):
        lines = [f"{method} {path} HTTP/1.1", "Host: test"]
        data = b""
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            lines += [f"Content-Length: {len(data)}"]
            if not any(k.lower() == "content-type" for k in (headers or {})):
                lines += ["Content-Type: application/json"]
        lines += [f"{k}: {v}" for k, v in (headers or {}).items()]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + data)

    def read_some(self):
        data = self.socket.recv(65536)
        self.held += data
        return data

    def read_until(self, mark):
        while mark not in self.held:
            if not self.read_some():
                raise EOFError(f"closed before {mark!r}; held {self.held[-500:]!r}")
        at = self.held.index(mark) + len(mark)
        out, self.held = self.held[:at], self.held[at:]
        return out

    def read_exactly(self, n):
        while len(self.held) < n:
            if not self.read_some():
                raise EOFError(f"closed after {len(self.held)} of {n} bytes")
        out, self.held = self.held[:n], self.held[n:]
        return out

    def read_head(self):
        head = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
        return status, [tuple(line.split(": ", 1)) for line in head[1:] if line]

    def chunks(self, headers):
        """The body's pieces as they arrive."""
        fields = {k.lower(): v for k, v in headers}
        if fields.get("transfer-encoding", "").lower() == "chunked":
            while True:
                size = int(self.read_until(b"\r\n").split(b";")[0], 16)
                data = self.read_exactly(size)
                self.read_until(b"\r\n")
                if size == 0:
                    return
                yield data
        elif "content-length" in fields:
            yield self.read_exactly(int(fields["content-length"]))
        else:
            while True:
                data, self.held = self.held, b""
                if not data:
                    data = self.socket.recv(65536)
                if not data:
                    return
                yield data

    def response(self, head_only=False):
        status, headers = self.read_head()
        while status == 100:
            status, headers = self.read_head()
        body = b"" if head_only or status in (204, 304) else b"".join(self.chunks(headers))
        return Response(status, headers, body)

    def events(self):
        """After the head of a streamed answer: the data of each server-sent event, as text."""
        status, headers = self.read_head()
        if status != 200:
            raise AssertionError(f"status {status}: {b''.join(self.chunks(headers))!r}")
        self.headers = headers
        held = b""
        for piece in self.chunks(headers):
            held += piece
            while b"\n\n" in held:
                event, held = held.split(b"\n\n", 1)
                if event.startswith(b"data: "):
                    yield event[6:].decode()
        if held:
            raise AssertionError(f"cut off in an event: {held!r}")

    def reset(self):
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def http(port, method, path, body=None, headers=None):
    with Connection(port) as c:
        c.request(method, path, body, headers)
        return c.response(head_only=method == "HEAD")


def stream(port, path, body, headers=None):
    """All events of a streamed answer, parsed; the closing [DONE] must be there and is left out."""
    with Connection(port) as c:
        c.request("POST", path, body, headers)
        events = list(c.events())
    assert events and events[-1] == "[DONE]", events[-1:]
    return [json.loads(e) for e in events[:-1]]


def answers(port, path="/health"):
    try:
        return http(port, "GET", path).status == 200
    except (OSError, EOFError):
        return False


def metric(port, name, **labels):
    """The sum of a metric's samples whose labels hold the given ones."""
    total = None
    for line in http(port, "GET", "/metrics").body.decode().splitlines():
        if not line.startswith(name) or line[len(name)] not in " {":
            continue
        if all(f'{k}="{v}"' in line for k, v in labels.items()):
            total = (total or 0.0) + float(line.rsplit(" ", 1)[1])
    return total


class Serve(Process):
    """`baton serve`, ready to answer."""

    def __init__(self, *args, model=MODEL, port=None, env=None):
        self.port = port or free_port()
        super().__init__([BATON, "serve", model, "--host", "127.0.0.1", "--port", str(self.port), *args], env=env)
        try:
            wait_until(lambda: answers(self.port) or not self.alive(), "baton serve is ready")
            if not self.alive():
                raise AssertionError(f"baton serve ended with {self.child.returncode}:\n{self.output()}")
        except BaseException:
            self.stop(signal.SIGKILL)
            raise


def baton(*args, env=None, seconds=DEADLINE, cwd=None):
    """Run a command to its end: (exit code, stdout, stderr)."""
    done = subprocess.run([BATON, *args], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds,
                          env={**os.environ, **(env or {})}, cwd=cwd)
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


class TestCase(unittest.TestCase):
    maxDiff = 4000
