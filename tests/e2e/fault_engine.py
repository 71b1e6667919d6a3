"""An engine made for tests: speaks vLLM's API over raw sockets, misbehaves on demand, and keeps the books.

Independent of baton's own HTTP code. Prefillers and decoders of one test share a Ledger, which checks what no single
engine can see: that each kv_transfer_params object is used once, by a decode leg with the prefill leg's X-Request-Id
and the same prompt, before its lease is over; and what was committed and never fetched (stranded).

The "model" is a function of the token sequence alone: whoever goes on from the same ids says the same. Ids 0..255 are
bytes, ids from 256 on are words; some characters take several tokens, so that text lags behind ids as it does with
real tokenizers."""
import http.client
import json
import random
import re
import select
import socket
import struct
import threading
import time
import urllib.parse
import zlib

WORDS = 200
BOS, USER, ASSISTANT, EOS = 500, 501, 502, 503
CHARACTERS = ["é", "你", "😀", "ß", "─"]


def encode(text):
    return [BOS] + list(text.encode())


def encode_chat(messages):
    ids = [BOS]
    for m in messages:
        content = m["content"]
        if isinstance(content, list):
            content = "".join(part["text"] for part in content)
        ids += [USER if m["role"] != "assistant" else ASSISTANT] + list(f"{m['role']}:{content}".encode())
    return ids + [ASSISTANT]


def piece(token):
    if token < 256:
        return bytes([token])
    if token < 256 + WORDS:
        return f" w{token - 256}".encode()
    return b""


def decode(ids):
    return b"".join(piece(t) for t in ids).decode("utf-8", "replace")


def open_bytes(ids):
    """The bytes of an unfinished character at the end, and how many are missing."""
    tail = b""
    for t in reversed(ids):
        if t >= 256 or t < 128:
            break
        tail = bytes([t]) + tail
        if t >= 192:
            break
    if not tail or tail[0] < 192:
        return b"", 0
    need = 2 if tail[0] < 0xE0 else 3 if tail[0] < 0xF0 else 4
    return (tail, need - len(tail)) if len(tail) < need else (b"", 0)


def next_token(ids, may_end=True):
    tail, missing = open_bytes(ids)
    h = zlib.crc32(b"".join(struct.pack("<I", t) for t in ids[-64:])) + len(ids)
    if missing:
        for c in CHARACTERS:
            raw = c.encode()
            if raw.startswith(tail):
                return raw[len(tail)]
    if may_end and h % 211 == 0:
        return EOS
    if h % 9 == 0:
        return CHARACTERS[h // 9 % len(CHARACTERS)].encode()[0]
    return 256 + h % WORDS


def generate(ids, count, ignore_eos=False, min_tokens=0):
    """The tokens an undisturbed engine gives, and the finish reason."""
    ids, out = list(ids), []
    while len(out) < count:
        t = next_token(ids, may_end=not ignore_eos and len(out) >= min_tokens)
        if t == EOS:
            return out, "stop"
        ids.append(t)
        out.append(t)
    return out, "length"


class Ledger:
    """What prefillers have committed, and what became of it."""

    def __init__(self, lease=30.0):
        self.lock = threading.Lock()
        self.lease = lease
        self.transfers = {}  # remote_request_id -> dict
        self.violations = []
        self.committed = self.reserved = self.fetched = self.released = 0

    def complain(self, what):
        self.violations.append(what)

    def commit(self, engine, request_id, prompt):
        with self.lock:
            self.committed += 1
            key = f"{request_id}-{self.committed:08x}"
            self.transfers[key] = {"engine": engine.engine_id, "id": request_id, "prompt": list(prompt),
                                   "state": "held", "at": time.monotonic()}
        return {"do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[self.committed, 2]],
                "remote_engine_id": engine.engine_id, "remote_request_id": key, "remote_host": "127.0.0.1",
                "remote_port": engine.port, "tp_size": 1, "remote_num_tokens": len(prompt),
                "exact": 0.1000000000000000055, "big": 12345678901234567890}

    def use(self, params, request_id, prompt):
        """A decode leg has been admitted. Returns the transfer, or None with a complaint."""
        with self.lock:
            t = self.transfers.get(params.get("remote_request_id"))
            if not t or t["engine"] != params.get("remote_engine_id"):
                self.complain(f"params of nobody: {params}")
                return None
            if t["state"] != "held":
                self.complain(f"params used twice: {params.get('remote_request_id')}")
                return None
            if time.monotonic() - t["at"] > self.lease:
                self.complain("params used after their lease")
            if t["id"] != request_id:
                self.complain(f"decode leg {request_id} uses params of {t['id']}")
            if t["prompt"] != list(prompt):
                self.complain(f"prompt of the decode leg differs: {len(prompt)} ids for {len(t['prompt'])}")
            if repr(params.get("exact")) != "0.1" or params.get("big") != 12345678901234567890:
                self.complain("params were printed again")
            t["state"] = "admitted"
            return t

    def fetch(self, t):
        with self.lock:
            if t["state"] == "admitted":
                t["state"] = "fetched"
                self.fetched += 1

    def release(self, t):
        """The decoder gave the request up before its fetch, and told the prefiller."""
        with self.lock:
            if t["state"] in ("admitted", "reserved", "pushing", "broken"):
                t["state"] = "released"
                self.released += 1

    def reserve(self, engine, request_id, name, prompt):
        """A decoder of the push protocol has room for a prompt: what a prefiller needs to write there."""
        with self.lock:
            self.reserved += 1
            if name in self.transfers:
                self.complain(f"an id came a second time: {name}")
            self.transfers[name] = {"engine": engine.engine_id, "id": request_id, "prompt": list(prompt),
                                    "state": "reserved", "at": time.monotonic()}
        return {"token_ids": [], "request_id": name, "do_remote_prefill": False, "do_remote_decode": True,
                "remote_block_ids": [[self.reserved, 2]], "remote_block_size": [128],
                "remote_engine_id": engine.engine_id, "remote_host": "127.0.0.1", "remote_port": engine.port,
                "remote_tp_size": 1, "remote_pcp_size": 1, "remote_dcp_size": 1, "remote_cached_tokens": 0,
                "exact": 0.1000000000000000055, "big": 12345678901234567890}

    def begin_push(self, params, raw, request_id, prompt):
        """A prefiller of the push protocol begins. Returns the transfer, or None when its decoder has gone."""
        with self.lock:
            t = self.transfers.get(params["request_id"])
            if not t or t["engine"] != params.get("remote_engine_id"):
                self.complain(f"a push to nobody: {params}")
                return None
            if t["state"] not in ("reserved", "released"):
                self.complain(f"pushed twice: {params['request_id']}")
                return None
            if t["id"] != request_id:
                self.complain(f"prefill leg {request_id} pushes for {t['id']}")
            if t["prompt"] != list(prompt):
                self.complain(f"prompt of the prefill leg differs: {len(prompt)} ids for {len(t['prompt'])}")
            if b'"exact":  0.1000000000000000055,' not in raw or params.get("big") != 12345678901234567890:
                self.complain("what the decoder asked with was printed again")
            if t["state"] == "released":
                return None
            t["state"] = "pushing"
            return t

    def end_push(self, t):
        """Has the prefiller written everything? Not when the decoder has gone meanwhile."""
        with self.lock:
            if t["state"] == "pushing":
                t["state"] = "admitted"
                return True
            return False

    def fail_push(self, t):
        """The prefiller stops short: another may write into the same blocks only if it had not begun."""
        with self.lock:
            if t["state"] == "pushing":
                t["state"] = "broken"

    def meet(self, engine, key, request_id, prompt):
        """A prefiller that was called together with its decoder holds the KV."""
        with self.lock:
            self.committed += 1
            if key in self.transfers:
                self.complain(f"a meeting came a second time: {key}")
            self.transfers[key] = {"engine": engine.engine_id, "port": engine.port, "id": request_id, "earlier": engine.earlier,
                                   "prompt": list(prompt), "state": "held", "at": time.monotonic()}

    def met(self, key, engine_id, port, request_id, prompt):
        """Its decoder: the transfer once the KV is there, None before. Sent to an engine that has been started again
        meanwhile it finds nobody (KeyError), which nobody could know who sent it."""
        with self.lock:
            t = self.transfers.get(key)
            if not t:
                return None
            if engine_id in t["earlier"]:
                raise KeyError(engine_id)
            if t["state"] != "held":
                self.complain(f"fetched twice: {key}")
            if (engine_id or t["engine"], port, request_id) != (t["engine"], t["port"], t["id"]):
                self.complain(f"the decoder was sent to {engine_id} at {port} as {request_id}, the prefiller is {t}")
            if t["prompt"] != list(prompt):
                self.complain(f"prompt of the decode leg differs: {len(prompt)} ids for {len(t['prompt'])}")
            t["state"] = "admitted"
            return t

    def stranded(self):
        with self.lock:
            return [k for k, t in self.transfers.items() if t["state"] not in ("fetched", "released")]


class Gone(Exception):
    """The peer closed or reset the connection."""


class Cut(Exception):
    """A fault ends the connection here."""


class Engine:
    """One instance. `faults`: a list of dicts, each used for one inference request (the next, or the next that its
    "when" accepts), unless it says "always". Keys:
      wait S                 before anything is answered
      status N [body, headers] answered instead of the work
      reset WHERE            RST; WHERE: "request" (at once), "head" (after the status line), or N (after N events or,
                             when not streamed, N bytes of the body)
      close WHERE            the same with FIN (half-close of a chunked body)
      hang WHERE             the same, but nothing is sent any more until the peer leaves; also "end": [DONE] is out, but
                             not the end of the body
      empty                  200 with an empty body
      truncate               the last chunk's size promises more than is sent
      drip S                 one byte at a time with S seconds between
      join N / split N       N events in one write / writes of N bytes
      pad N                  chunks with N bytes that nobody knows
      recomputed N           after N tokens: finish "stop", stop_reason "recomputed"
      error N                after N tokens: an SSE error event and [DONE] (not streamed: 500)
      no_params              a prefill without kv_transfer_params
      no_details             a prefill whose usage tells nothing of its cache
      params F               function that changes the params
      calls N                a decoder of the push protocol asks so often for its prefill (0: it never does)
      raw BYTES              sent in place of everything, then closed
    """

    def __init__(self, role, ledger=None, port=0, prefill_time=0.0, fetch_time=0.0, token_time=0.0, admit_time=0.0,
                 max_model_len=100000, model="fake", host="127.0.0.1"):
        self.host = host
        self.role, self.ledger, self.model = role, ledger or Ledger(), model
        self.prefill_time, self.fetch_time, self.token_time = prefill_time, fetch_time, token_time
        self.admit_time, self.max_model_len = admit_time, max_model_len
        self.faults = []
        self.requests = []  # what came, in order: dicts
        self.lock = threading.Lock()
        self.health = 200
        self.metrics = None  # or a text
        self.running = 0
        self.aborted = 0
        self.reset_calls = 0
        self.queries, self.query = 0, None  # of the bootstrap server: how often, and what it says instead
        self.calls = []  # statuses of a metaserver
        self.tokens_per_event = 1
        self.engine_id = f"engine-{random.getrandbits(64):016x}"
        self.earlier = []  # ids before it was started again
        self.listener = None
        self.connections = set()
        self.dead = threading.Event()
        self.moves = threading.Event()  # cleared: as one that got SIGSTOP
        self.moves.set()
        self.port = port
        self.start()

    # ---- life -------------------------------------------------------------------------------------------------------

    def start(self):
        self.listener = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((self.host, self.port))
        self.port = self.listener.getsockname()[1]
        self.listener.listen(512)
        self.dead = threading.Event()
        threading.Thread(target=self.accept, args=(self.listener, self.dead), daemon=True).start()

    def stop(self):
        """As kill -9: every connection is reset, nobody listens."""
        self.dead.set()
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        with self.lock:
            for s in list(self.connections):
                try:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    s.shutdown(socket.SHUT_RD)
                except OSError:
                    pass

    def freeze(self):
        """As SIGSTOP: connections stay, new ones are made by the kernel, nothing is answered."""
        self.moves.clear()

    def thaw(self):
        self.moves.set()

    def restart(self):
        self.earlier = [*self.earlier, self.engine_id]
        self.engine_id = f"engine-{random.getrandbits(64):016x}"
        self.start()

    @property
    def url(self):
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def accept(self, listener, dead):
        while not dead.is_set():
            try:
                s, _ = listener.accept()
            except OSError:
                return
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.connections.add(s)
            threading.Thread(target=self.serve, args=(s, dead), daemon=True).start()

    def serve(self, s, dead):
        held = b""
        try:
            while not dead.is_set():
                while b"\r\n\r\n" not in held:
                    data = s.recv(65536)
                    if not data:
                        return
                    held += data
                head, held = held.split(b"\r\n\r\n", 1)
                lines = head.decode("latin-1").split("\r\n")
                method, path, _ = lines[0].split(" ")
                headers = [tuple(line.split(": ", 1)) for line in lines[1:]]
                fields = {k.lower(): v for k, v in headers}
                need = int(fields.get("content-length", 0))
                while len(held) < need:
                    data = s.recv(65536)
                    if not data:
                        return
                    held += data
                body, held = held[:need], held[need:]
                Answer(self, s, dead, method, path, headers, fields, body).run()
                if fields.get("connection", "").lower() == "close":
                    return
        except (OSError, Gone, Cut):
            pass
        finally:
            with self.lock:
                self.connections.discard(s)
            if dead.is_set():
                try:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                except OSError:
                    pass
            s.close()

    def take_fault(self, request):
        with self.lock:
            for i, f in enumerate(self.faults):
                if "when" in f and not f["when"](request):
                    continue
                if not f.get("always"):
                    del self.faults[i]
                return f
        return {}


class Answer:
    """One request on one connection."""

    def __init__(self, engine, s, dead, method, path, headers, fields, body):
        self.engine, self.s, self.dead = engine, s, dead
        self.method, self.path, self.headers, self.fields, self.body = method, path, headers, fields, body
        self.fault = {}
        self.events = 0

    # ---- the wire ---------------------------------------------------------------------------------------------------

    def wait(self, seconds):
        """Wait, and see the peer leave or this engine die. Where times are set, an Event may stand: until it is set."""
        if isinstance(seconds, threading.Event):
            while not seconds.is_set():
                self.wait(0.02)
            return
        end = time.monotonic() + seconds
        while True:
            self.engine.moves.wait()
            left = end - time.monotonic()
            ready, _, _ = select.select([self.s], [], [], max(0, min(left, 0.05)))
            if ready:
                try:
                    if not self.s.recv(1, socket.MSG_PEEK):
                        raise Gone()
                except OSError:
                    raise Gone() from None
                if left > 0:
                    time.sleep(min(left, 0.005))  # a pipelined request: not ours to read
            if self.dead.is_set():
                raise Cut()
            if left <= 0:
                return

    def send(self, data):
        f = self.fault
        self.engine.moves.wait()
        try:
            if "drip" in f:
                for i in range(len(data)):
                    self.s.sendall(data[i:i + 1])
                    self.wait(f["drip"])
            elif "split" in f:
                for i in range(0, len(data), f["split"]):
                    self.s.sendall(data[i:i + f["split"]])
                    self.wait(0.0005)
            else:
                self.s.sendall(data)
        except OSError:
            raise Gone() from None

    def here(self, where):
        """Is this the place where the connection is to break?"""
        f = self.fault
        if f.get("reset") == where:
            self.s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise Cut()
        if f.get("close") == where:
            raise Cut()
        if f.get("hang") == where:
            self.wait(1e9)

    def answer(self, status, body, content_type="application/json", headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        head = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", f"content-length: {len(data)}"]
        head += [f"{k}: {v}" for k, v in headers]
        self.here("request")
        self.send(("\r\n".join(head) + "\r\n\r\n").encode())
        self.here("head")
        for where in ("reset", "close", "hang"):
            at = self.fault.get(where)
            if isinstance(at, int):
                self.send(data[:at])
                self.here(at)
        self.send(data)

    def error(self, status, message):
        self.answer(status, {"error": {"message": message, "type": "X", "param": None, "code": status}})

    def begin_stream(self):
        self.here("request")
        self.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                  b"transfer-encoding: chunked\r\nx-worker: " + self.engine.url.encode() + b"\r\n\r\n")
        self.here("head")
        self.pending = []

    def flush(self):
        data, self.pending = b"".join(self.pending), []
        if data:
            self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def event(self, value):
        """One SSE event. Places for faults count events, the role chunk of a chat included."""
        data = ("data: " + (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) + "\n\n").encode()
        self.here(self.events)
        self.events += 1
        self.pending.append(data)
        if len(self.pending) >= self.fault.get("join", 1):
            self.flush()

    def end_stream(self):
        self.event("[DONE]")
        self.flush()
        if self.fault.get("truncate"):
            self.send(b"40\r\nshort")
            raise Cut()
        self.here("end")
        self.send(b"0\r\n\r\n")

    # ---- routes -----------------------------------------------------------------------------------------------------

    def run(self):
        e = self.engine
        if self.path == "/health":
            if callable(e.health):
                return e.health(self)
            return self.answer(e.health, b"")
        if self.path == "/v1/models":
            return self.answer(200, {"object": "list", "data": [{"id": e.model, "object": "model",
                                                                  "max_model_len": e.max_model_len}]})
        if self.path == "/metrics" and e.metrics is not None:
            return self.answer(200, e.metrics.encode(), "text/plain")
        if self.path == "/version":
            return self.answer(200, {"version": "fake"})
        if self.path == "/query":
            e.queries += 1
            told = e.query or {}
            return self.answer(told.get("status", 200), told.get("body", {"0": {"engine_id": e.engine_id}}))
        if self.path.startswith("/reset_prefix_cache"):
            e.reset_calls += 1
            return self.answer(200 if e.health == 200 else 500, b"")
        if self.path in ("/v1/completions", "/v1/chat/completions"):
            with e.lock:
                e.running += 1
            try:
                return self.infer()
            except Gone:
                e.aborted += 1
                raise
            finally:
                with e.lock:
                    e.running -= 1
        if self.path == "/detokenize":
            return self.answer(200, {"prompt": decode(json.loads(self.body)["tokens"])})
        self.answer(404, {"detail": "Not Found"})

    def infer(self):
        e = self.engine
        request = json.loads(self.body)
        record = {"path": self.path, "headers": self.headers, "fields": self.fields, "body": request, "raw": self.body,
                  "at": time.monotonic()}
        with e.lock:
            e.requests.append(record)
        self.fault = e.take_fault(request)
        f = self.fault
        if "raw" in f:
            self.send(f["raw"])
            raise Cut()
        if "wait" in f:
            self.wait(f["wait"])
        self.here("request")
        if "status" in f:
            return self.answer(f["status"], f.get("body", {"error": {"message": "fault", "type": "X", "param": None,
                                                                     "code": f["status"]}}), headers=f.get("headers", ()))
        if f.get("empty"):
            return self.answer(200, b"")
        chat = "chat" in self.path
        prompt = request["prompt"] if not chat else None
        if chat:
            ids = encode_chat(request["messages"])
        elif isinstance(prompt, str):
            ids = encode(prompt)
        elif prompt and all(isinstance(p, int) for p in prompt):
            ids = list(prompt)
        else:
            return self.lists(request, prompt)
        if request.get("temperature", 0) is not None and request.get("temperature", 0) < 0:
            return self.error(400, "temperature must be non-negative")
        params = request.get("kv_transfer_params")
        self.request_id = self.fields.get("x-request-id", f"{random.getrandbits(64):016x}")
        if e.role == "prefill" and (params and params.get("do_remote_decode") or "bootstrap_room" in request):
            return self.prefill(request, ids, chat)
        transfer = None
        place = self.meeting_place(request)
        if place:
            self.wait(e.admit_time)
            while not transfer:
                try:
                    transfer = e.ledger.met(*place, self.request_id, ids)
                except KeyError:
                    return self.error(500, "no such engine")
                self.wait(0.005)
        elif params and params.get("do_remote_prefill"):
            self.wait(e.admit_time)
            if "metaserver" in params:
                asked = e.ledger.reserve(e, self.request_id, self.name(chat) + ("" if chat else "-0"), ids)
                transfer = e.ledger.transfers[asked["request_id"]]
            else:
                transfer = e.ledger.use(params, self.request_id, ids)
            if not transfer:
                return self.error(500, "no such transfer")
        try:
            if transfer and params and "metaserver" in params:
                for _ in range(f.get("calls", 1)):
                    self.ask_for_prefill(params["metaserver"], asked)
                while transfer["state"] != "admitted":
                    self.wait(0.005)
            self.wait(e.fetch_time)
            if transfer:
                e.ledger.fetch(transfer)
            self.decode(request, ids, chat)
        finally:
            if transfer:
                e.ledger.release(transfer)

    def meeting_place(self, request):
        """Of a decoder that was called together with its prefiller: the meeting's name, the engine and its port."""
        params = request.get("kv_transfer_params") or {}
        if "bootstrap_room" in request:
            if request["bootstrap_host"] != "127.0.0.1" or request["rid"] != self.request_id:
                self.engine.ledger.complain(f"met at {request['bootstrap_host']} as {request['rid']}")
            return request["bootstrap_room"], None, request["bootstrap_port"]
        if "transfer_id" in params:
            at = urllib.parse.urlsplit(params["remote_bootstrap_addr"])
            return params["transfer_id"], params["remote_engine_id"], at.port
        return None

    def ask_for_prefill(self, url, asked):
        """As the real one, which looks at no status."""
        at = urllib.parse.urlsplit(url)
        c = http.client.HTTPConnection(at.hostname, at.port, timeout=30)
        try:
            c.request("POST", at.path, json.dumps(asked).replace('"exact": 0.1,', '"exact":  0.1000000000000000055,'),
                      {"Content-Type": "application/json", "Connection": "close"})
            self.engine.calls.append(c.getresponse().status)
        finally:
            c.close()

    def lists(self, request, prompt):
        if request.get("kv_transfer_params"):
            self.engine.ledger.complain("a list of prompts with kv_transfer_params")
            self.engine.health = 503
            return self.error(500, "EngineCore encountered an issue.")
        choices, used = [], [0, 0]
        for i, p in enumerate(prompt):
            ids = encode(p) if isinstance(p, str) else list(p)
            out, reason = generate(ids, request.get("max_tokens", 16))
            choices.append(self.choice(request, False, i, ids, out, reason))
            used[0] += len(ids)
            used[1] += len(out)
        self.answer(200, self.whole(request, False, choices, used))

    def prefill(self, request, ids, chat):
        e = self.engine
        params = request.get("kv_transfer_params") or {}
        whole = "bootstrap_room" in request  # an engine that takes the client's request as it is
        for key, want in (("max_tokens", 1), ("stream", False), ("min_tokens", 1)):
            if not whole and request.get(key) != want:
                e.ledger.complain(f"prefill leg has {key} {request.get(key)!r}")
        for key in ("stream_options", "logprobs", "echo", "stop", "best_of"):
            if not whole and key in request:
                e.ledger.complain(f"prefill leg has {key}")
        if request.get("n", 1) != 1 or not whole and request.get("max_completion_tokens", 1) != 1:
            e.ledger.complain("prefill leg makes more than one token")
        if "aborted_request" in params:
            e.ledger.complain("prefill leg has a list that no engine reads")
        pushes = "request_id" in params
        together = request.get("bootstrap_room") or params.get("transfer_id")
        if pushes:
            transfer = e.ledger.begin_push(params, self.body, self.request_id, ids)
            if not transfer:
                return self.error(500, "the decoder has gone")
        try:
            self.wait(e.prefill_time)
            if pushes and not e.ledger.end_push(transfer):
                return self.error(500, "the decoder has gone")
        finally:
            if pushes:
                e.ledger.fail_push(transfer)
        out, _ = generate(ids, 1, ignore_eos=True)
        body = self.whole(request, chat, [self.choice(request, chat, 0, ids, out, "length")], [len(ids), 1])
        body["usage"]["prompt_tokens_details"] = None if self.fault.get("no_details") else {"cached_tokens": 3}
        if together:
            e.ledger.meet(e, together, self.request_id, ids)
        elif not self.fault.get("no_params") and not pushes:
            params = e.ledger.commit(e, self.request_id, ids)
            if "params" in self.fault:
                params = self.fault["params"](params)
            body["kv_transfer_params"] = params
        data = json.dumps(body).replace('"exact": 0.1,', '"exact":  0.1000000000000000055,').encode()
        self.answer(200, data)

    # ---- shapes -----------------------------------------------------------------------------------------------------

    def name(self, chat):
        return ("chatcmpl-" if chat else "cmpl-") + self.request_id

    def logprobs(self, request, chat, out, offset):
        if chat:
            if not request.get("logprobs"):
                return None
            return {"content": [{"token": decode([t]), "logprob": -(t % 7) / 4, "bytes": list(piece(t)),
                                 "top_logprobs": []} for t in out]}
        if request.get("logprobs") is None:
            return None
        offsets = []
        for t in out:
            offsets.append(offset)
            offset += len(decode([t]))
        return {"text_offset": offsets, "token_logprobs": [-(t % 7) / 4 for t in out],
                "tokens": [decode([t]) for t in out], "top_logprobs": [{decode([t]): -(t % 7) / 4} for t in out]}

    def choice(self, request, chat, index, ids, out, reason, stop_reason=None):
        text = decode(out)
        c = {"index": index}
        if chat:
            c["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            c["text"] = (decode(ids) if request.get("echo") else "") + text
        c.update(logprobs=self.logprobs(request, chat, out, 0), finish_reason=reason, stop_reason=stop_reason,
                 token_ids=out if request.get("return_token_ids") else None)
        if not chat:
            c["prompt_token_ids"] = ids if request.get("return_token_ids") else None
        return c

    def whole(self, request, chat, choices, used):
        body = {"id": self.name(chat) if hasattr(self, "request_id") else "cmpl-x",
                "object": "chat.completion" if chat else "text_completion", "created": int(time.time()),
                "model": request.get("model", self.engine.model), "choices": choices,
                "usage": {"prompt_tokens": used[0], "total_tokens": sum(used), "completion_tokens": used[1],
                          "prompt_tokens_details": {"cached_tokens": used[0]}}}
        if chat:
            body["prompt_token_ids"] = None
        return body

    def limit(self, request, ids, chat):
        room = self.engine.max_model_len - len(ids)
        asked = request.get("max_completion_tokens") or request.get("max_tokens")
        if asked is None:
            return room if chat else min(16, room)
        return min(asked, room)

    def cut_at_stop(self, request, text):
        """The text before the first stop string, and the string."""
        stops = request.get("stop") or []
        best = None
        for s in [stops] if isinstance(stops, str) else stops:
            at = text.find(s)
            if at >= 0 and (best is None or at < best[0]):
                best = (at, s)
        return best

    def decode(self, request, ids, chat):
        e, f = self.engine, self.fault
        count = self.limit(request, ids, chat)
        out, reason = generate(ids, count, request.get("ignore_eos", False), request.get("min_tokens", 0))
        recomputed = f.get("recomputed")
        if recomputed is not None and recomputed < len(out):
            out = out[:recomputed]
        n = request.get("n", 1)
        if not request.get("stream"):
            self.wait(e.token_time if isinstance(e.token_time, threading.Event) else e.token_time * len(out))
            if "error" in f:
                return self.error(500, "Internal server error")
            stop = self.cut_at_stop(request, decode(out))
            if recomputed is not None:
                reason, stop_reason = "stop", "recomputed"
            elif stop:
                k = next(k for k in range(len(out) + 1) if stop[1] in decode(out[:k]))
                out, reason, stop_reason = out[:k], "stop", stop[1]
            else:
                stop_reason = None
            choices = [self.choice(request, chat, i, ids, out, reason, stop_reason) for i in range(n)]
            if stop and recomputed is None:
                for c in choices:
                    if chat:
                        c["message"]["content"] = decode(out)[:stop[0]]
                    else:
                        c["text"] = decode(out)[:stop[0]]
            return self.answer(200, self.whole(request, chat, choices, [len(ids), len(out) * n]),
                               headers=[("x-worker", e.url)])
        self.stream(request, ids, chat, out, reason, recomputed)

    def chunk(self, request, chat, choices, usage=None):
        c = {"id": self.name(chat), "object": "chat.completion.chunk" if chat else "text_completion",
             "created": int(time.time()), "model": request.get("model", self.engine.model), "choices": choices}
        if usage is not None:
            c["usage"] = usage
        if "pad" in self.fault:
            c["pad"] = "x" * self.fault["pad"]
        return c

    def usage(self, ids, done):
        return {"prompt_tokens": len(ids), "total_tokens": len(ids) + done, "completion_tokens": done}

    def stream(self, request, ids, chat, out, reason, recomputed):
        e, f = self.engine, self.fault
        options = request.get("stream_options") or {}
        continuous = options.get("continuous_usage_stats")
        want_ids = request.get("return_token_ids")
        stops = request.get("stop") or []
        lag = max([len(s) for s in ([stops] if isinstance(stops, str) else stops)] or [1]) - 1
        self.begin_stream()
        sent_text, done, first = "", 0, True
        while done < len(out) or reason == "stop" or recomputed is not None:
            if done == 0 and chat and first:
                c = self.chunk(request, chat, [{"index": 0, "delta": {"role": "assistant", "content": ""},
                                                "logprobs": None, "finish_reason": None}],
                               self.usage(ids, 0) if continuous else None)
                c["prompt_token_ids"] = ids if want_ids else None
                self.event(c)
            if f.get("error") == done:
                self.event({"error": {"message": "Internal server error", "type": "InternalServerError",
                                      "param": None, "code": 500}})
                return self.end_stream()
            self.wait(e.token_time)
            new = out[done:done + e.tokens_per_event]
            if recomputed is not None and done >= recomputed:
                new = []
            done += len(new)
            text = decode(out[:done])
            last = done >= len(out) and (reason == "length" and recomputed is None or not new)
            stop_reason, finish = None, None
            hit = self.cut_at_stop(request, text)
            if recomputed is not None and done >= recomputed and not new:
                last, finish, stop_reason = True, "stop", "recomputed"
            elif hit:
                last, finish, stop_reason = True, "stop", hit[1]
                text = text[:hit[0]]
            elif last:
                finish = reason
            if not last:
                text = text.rstrip("�")
                text = text[:len(text) - lag] if lag else text
            delta, sent_text = text[len(sent_text):], max(text, sent_text, key=len)
            c = {"index": 0}
            if chat:
                c["delta"] = {"content": delta}
            else:
                # As vLLM: asked for ids, it echoes those in the place of the text.
                echoed = request.get("echo") and first
                c["text"] = (decode(ids) if echoed and not want_ids else "") + delta
            c.update(logprobs=self.logprobs(request, chat, new, len(decode(out[:done - len(new)]))),
                     finish_reason=finish)
            if not chat or last:
                c["stop_reason"] = stop_reason
            if not chat:
                c["prompt_token_ids"] = ids if first and (want_ids or request.get("echo")) else None
            c["token_ids"] = ((ids if request.get("echo") and first else []) + new) if want_ids else None
            first = False
            self.event(self.chunk(request, chat, [c], self.usage(ids, done) if continuous else None))
            if last:
                break
        if options.get("include_usage"):
            self.event(self.chunk(request, chat, [], {**self.usage(ids, done),
                                                      "prompt_tokens_details": {"cached_tokens": len(ids)}}))
        self.end_stream()


def expected_text(request, chat, stop=None):
    """What the client of an undisturbed engine reads (one choice)."""
    ids = encode_chat(request["messages"]) if chat else (
        encode(request["prompt"]) if isinstance(request["prompt"], str) else request["prompt"])
    count = request.get("max_completion_tokens") or request.get("max_tokens") or 16
    out, reason = generate(ids, count, request.get("ignore_eos", False), request.get("min_tokens", 0))
    text = decode(out)
    if stop and stop in text:
        text, reason = text[:text.index(stop)], "stop"
    return text, out, reason


if __name__ == "__main__":
    # By hand: fault_engine.py prefill:PORT decode:PORT …
    import sys
    shared = Ledger()
    engines = [Engine(a.split(":")[0], shared, int(a.split(":")[1]), token_time=0.02) for a in sys.argv[1:]]
    print("listening: " + ", ".join(f"{e.role} {e.url}" for e in engines), flush=True)
    threading.Event().wait()
