"""OpenAI's own clients, for Python and for Node, from their registries, against `baton serve` and through `baton gateway` in
front of a prefiller and decoders: chat, streams, log-probabilities, stop, tools, reasoning, errors, and leaving in the middle. They are installed
under build/ once; node/sdk.mjs has the Node client's cases."""
import contextlib
import fcntl
import filecmp
import functools
import os
import shutil
import subprocess
import sys

from gateway_case import GAUGES, Gateway
from harness import DEADLINE, ROOT, Serve, TestCase, free_port, metric, wait_until
from test_pd import transfer

KEY = "sesame"
ENGINE = ["--served-model-name", "tiny", "--threads", "1", "--api-key", KEY, "--enable-auto-tool-choice", "--tool-call-parser",
          "deepseek_v31", "--reasoning-parser", "deepseek_v3"]
WEATHER = [{"type": "function", "function": {
    "name": "get_weather", "description": "Get the weather for a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]

INSTALL_SECONDS = 300  # a slow registry, tried again by the installers themselves


def install(what, argv, cwd=ROOT):
    done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=INSTALL_SECONDS)
    if done.returncode:
        raise AssertionError(f"could not install {what}; is its registry within reach?\n{done.stdout}")


@contextlib.contextmanager
def alone():
    """Of the classes that run beside each other one installs, and the others find it done."""
    with open(os.path.join(ROOT, "build", "sdk.lock"), "w", encoding="utf-8") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


@functools.cache
def python_client():
    place = os.path.join(ROOT, "build", "sdk")
    with alone():
        if not os.path.isdir(os.path.join(place, "openai")):
            install("OpenAI's client for Python", [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check",
                                                   "--root-user-action=ignore", "--target", place, "openai>=1.50,<3"])
    sys.path.insert(0, place)
    import openai
    return openai


@functools.cache
def node_cases():
    """The program with the Node client's cases. npm checks the client against the lock's digest, from its cache when it is
    there. What is installed stays, until that digest changes: other tests may be using it."""
    source, place = os.path.join(ROOT, "tests", "e2e", "node"), os.path.join(ROOT, "build", "sdk-node")
    done = os.path.join(place, "installed-lock.json")
    with alone():
        shutil.copytree(source, place, dirs_exist_ok=True)
        if not os.path.exists(done) or not filecmp.cmp(os.path.join(source, "package-lock.json"), done, shallow=False):
            install("OpenAI's client for Node", ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline",
                                                 "--cache", os.path.join(place, "cache")], cwd=place)
            shutil.copy(os.path.join(source, "package-lock.json"), done)
    return os.path.join(place, "sdk.mjs")


class Client(TestCase):
    """A client before an engine, or before a gateway in front of a prefiller and two decoders."""
    through_gateway = False

    @classmethod
    def setUpClass(cls):
        roles = [transfer("kv_producer", free_port()), transfer("kv_consumer"), transfer("kv_consumer")]
        cls.engines = [cls.started(Serve(*ENGINE, *role)) for role in (roles if cls.through_gateway else [()])]
        cls.gateway = None
        if cls.through_gateway:
            hosts = [f"127.0.0.1:{e.port}" for e in cls.engines]
            # This model is done with its longest answer within the grace that a decoder has for its fetch.
            cls.gateway = cls.started(Gateway(hosts[:1], hosts[1:], "--api-key", KEY, "--abandon-grace", "0.01"))
        cls.url = f"http://127.0.0.1:{(cls.gateway or cls.engines[0]).port}"

    @classmethod
    def started(cls, process):
        cls.addClassCleanup(process.stop)
        return process

    def tearDown(self):
        wait_until(lambda: self.requests("running") == self.requests("waiting") == 0, "no engine works any more")
        if self.gateway:
            wait_until(lambda: all(self.gateway.count(g) == 0 for g in GAUGES), "the gateway's load is given back")

    def requests(self, state):
        return sum(metric(e.port, f"vllm:num_requests_{state}") for e in self.engines)

    def aborted(self):
        return sum(metric(e.port, "vllm:request_success_total", finished_reason="abort") for e in self.engines)


class Python(Client):
    @classmethod
    def setUpClass(cls):
        cls.openai = python_client()
        super().setUpClass()
        cls.client = cls.openai.OpenAI(base_url=cls.url + "/v1", api_key=KEY, max_retries=0)
        cls.addClassCleanup(cls.client.close)

    def chat(self, text, **more):
        return self.client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}], **more)

    def test_chat_with_log_probabilities(self):
        answer = self.chat("What is the capital of Norway?", logprobs=True, top_logprobs=2)
        self.assertEqual("The capital of Norway is Oslo.", answer.choices[0].message.content)
        self.assertEqual(2, len(answer.choices[0].logprobs.content[0].top_logprobs))
        self.assertEqual("tiny", self.client.models.list().data[0].id)

    def test_a_stream_ends_at_a_stop_string(self):
        chunks = list(self.chat("Tell me about the dolphin.", stream=True, stop=["calf"], stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertTrue(text.startswith("The dolphin is a mammal."), text)
        self.assertNotIn("calf", text)
        self.assertGreater(chunks[-1].usage.completion_tokens, 5)

    def test_tools_whole_and_streamed(self):
        answer = self.chat("What is the weather in Oslo?", tools=WEATHER)
        call = answer.choices[0].message.tool_calls[0]
        self.assertEqual(("tool_calls", "get_weather", '{"city": "Oslo"}'),
                         (answer.choices[0].finish_reason, call.function.name, call.function.arguments))
        name = arguments = ""
        for chunk in self.chat("What is the weather in Oslo?", tools=WEATHER, stream=True):
            for part in chunk.choices[0].delta.tool_calls or []:
                name += part.function.name or ""
                arguments += part.function.arguments or ""
        self.assertEqual((call.function.name, call.function.arguments), (name, arguments))

    def test_reasoning_is_told_apart(self):
        message = self.chat("What is 3 + 4?", extra_body={"chat_template_kwargs": {"thinking": True}}).choices[0].message
        self.assertTrue(message.model_extra["reasoning"])
        self.assertNotIn("think>", message.content)

    def test_errors_are_the_clients_own(self):
        with self.assertRaises(self.openai.NotFoundError) as told:
            self.client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
        self.assertEqual((404, "NotFoundError", "model"), (told.exception.status_code, told.exception.type, told.exception.param))
        with self.assertRaises(self.openai.BadRequestError) as told:
            self.chat("x", temperature=9)
        self.assertEqual((400, "BadRequestError", "temperature"),
                         (told.exception.status_code, told.exception.type, told.exception.param))
        with self.assertRaises(self.openai.AuthenticationError):
            self.client.with_options(api_key="guess").chat.completions.create(model="tiny", messages=[])

    def test_leaving_a_stream_ends_the_work(self):
        before = self.aborted()
        stream = self.client.completions.create(model="tiny", prompt="Once", max_tokens=1900, stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
        wait_until(lambda: self.aborted() == before + 1, "the engine counts an aborted request")


class PythonThroughGateway(Python):
    through_gateway = True


class Node(Client):
    @classmethod
    def setUpClass(cls):
        cls.program = node_cases()
        super().setUpClass()

    def case(self, name):
        done = subprocess.run(["node", self.program, name, self.url, *[f"http://127.0.0.1:{e.port}" for e in self.engines]],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=2 * DEADLINE)
        self.assertEqual(0, done.returncode, done.stdout)

    def test_chat_with_log_probabilities(self):
        self.case("chat_with_log_probabilities")

    def test_a_stream_is_the_whole_answer_in_pieces(self):
        self.case("a_stream_is_the_whole_answer_in_pieces")

    def test_a_stream_ends_at_a_stop_string(self):
        self.case("a_stream_ends_at_a_stop_string")

    def test_tools_whole_and_streamed(self):
        self.case("tools_whole_and_streamed")

    def test_reasoning_is_told_apart(self):
        self.case("reasoning_is_told_apart")

    def test_errors_are_the_clients_own(self):
        self.case("errors_are_the_clients_own")

    def test_leaving_ends_the_work(self):
        self.case("leaving_ends_the_work")


class NodeThroughGateway(Node):
    through_gateway = True
