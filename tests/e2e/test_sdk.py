"""OpenAI's own Python client, from its registry, against `baton serve`: chat, streams, log-probabilities, stop, tools,
reasoning, errors, and leaving in the middle. It is installed under build/sdk once."""
import os
import subprocess
import sys

from harness import ROOT, Serve, TestCase, metric, wait_until

PLACE = os.path.join(ROOT, "build", "sdk")
WEATHER = [{"type": "function", "function": {
    "name": "get_weather", "description": "Get the weather for a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]


def install():
    if not os.path.isdir(os.path.join(PLACE, "openai")):
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--root-user-action=ignore",
                        "--target", PLACE, "openai>=1.50,<3"], check=True, timeout=300)
    sys.path.insert(0, PLACE)


class Python(TestCase):
    @classmethod
    def setUpClass(cls):
        install()
        import openai
        cls.openai = openai
        cls.engine = Serve("--served-model-name", "tiny", "--threads", "1", "--enable-auto-tool-choice", "--tool-call-parser",
                           "deepseek_v31", "--reasoning-parser", "deepseek_v3")
        cls.client = openai.OpenAI(base_url=f"http://127.0.0.1:{cls.engine.port}/v1", api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.engine.stop()

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
        with self.assertRaises(self.openai.NotFoundError):
            self.client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
        with self.assertRaises(self.openai.BadRequestError):
            self.chat("x", temperature=9)

    def test_leaving_a_stream_ends_the_work(self):
        stream = self.client.completions.create(model="tiny", prompt="Once", max_tokens=1900, stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
        wait_until(lambda: metric(self.engine.port, "vllm:num_requests_running") == 0, "the request is gone")
