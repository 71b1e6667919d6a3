// OpenAI's own Node client against a server of ours, one case per run:
//
//   node sdk.mjs CASE URL ENGINE...     URL answers the client's requests, each ENGINE serves /metrics
//
// Ends with status 0 when the case holds. test_sdk.py starts the servers and runs the cases.
import assert from "node:assert/strict";
import OpenAI from "openai";

const KEY = "sesame";
const WEATHER = [{
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather for a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
}];
const [name, url, ...engines] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: KEY, maxRetries: 0 });

const ask = (text, more = {}) => ({ model: "tiny", messages: [{ role: "user", content: text }], ...more });

async function gather(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

function leave() {
  const controller = new AbortController();
  return { signal: controller.signal, abort: () => controller.abort() };
}

const textOf = (chunks) => chunks.map((c) => c.choices[0]?.delta.content ?? "").join("");

// The sum over the engines of a metric's samples that have the label.
async function total(metric, label = "") {
  let sum = 0;
  for (const engine of engines) {
    const page = await (await fetch(`${engine}/metrics`)).text();
    for (const line of page.split("\n"))
      if (line.startsWith(metric) && line.includes(label)) sum += Number(line.split(" ").pop());
  }
  return sum;
}

async function until(condition, what) {
  const end = Date.now() + 60_000; // for what takes milliseconds; machines are shared
  while (!(await condition())) {
    assert.ok(Date.now() < end, `not within a minute: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const cases = {
  async chat_with_log_probabilities() {
    const answer = await client.chat.completions.create(
      ask("What is the capital of Norway?", { logprobs: true, top_logprobs: 2 }));
    const [choice] = answer.choices;
    assert.equal(choice.message.content, "The capital of Norway is Oslo.");
    assert.equal(choice.finish_reason, "stop");
    const tokens = choice.logprobs.content.map((t) => t.token); // the end token is among them
    assert.ok(tokens.join("").startsWith(choice.message.content), tokens);
    for (const token of choice.logprobs.content) {
      assert.equal(token.top_logprobs.length, 2);
      assert.equal(token.top_logprobs[0].logprob, token.logprob); // greedy
    }
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    const models = await gather(client.models.list());
    assert.deepEqual(models.map((m) => m.id), ["tiny"]);
  },

  async a_stream_is_the_whole_answer_in_pieces() {
    const request = ask("Tell me about the dolphin.");
    const whole = (await client.chat.completions.create(request)).choices[0].message.content;
    const chunks = await gather(await client.chat.completions.create(
      { ...request, stream: true, stream_options: { include_usage: true } }));
    assert.equal(textOf(chunks), whole);
    assert.ok(chunks.length > 5);
    assert.equal(new Set(chunks.map((c) => c.id)).size, 1);
    assert.ok(chunks.at(-1).usage.completion_tokens > 5);
    // The client's own gatherer is strict about what a stream must hold.
    assert.equal(await client.chat.completions.stream(request).finalContent(), whole);
  },

  async a_stream_ends_at_a_stop_string() {
    const chunks = await gather(await client.chat.completions.create(
      ask("Tell me about the dolphin.", { stream: true, stop: ["calf"] })));
    assert.match(textOf(chunks), /^The dolphin is a mammal\./);
    assert.doesNotMatch(textOf(chunks), /calf/);
    assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
  },

  async tools_whole_and_streamed() {
    const request = ask("What is the weather in Oslo?", { tools: WEATHER });
    const answer = await client.chat.completions.create(request);
    const [call] = answer.choices[0].message.tool_calls;
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
    assert.deepEqual(call.function, { name: "get_weather", arguments: '{"city": "Oslo"}' });
    const gathered = await client.chat.completions.stream(request).finalChatCompletion();
    assert.equal(gathered.choices[0].finish_reason, "tool_calls");
    const { name, arguments: given } = gathered.choices[0].message.tool_calls[0].function;
    assert.deepEqual({ name, arguments: given }, call.function);
  },

  async reasoning_is_told_apart() {
    const answer = await client.chat.completions.create(
      ask("What is 3 + 4?", { chat_template_kwargs: { thinking: true } }));
    assert.ok(answer.choices[0].message.reasoning);
    assert.doesNotMatch(answer.choices[0].message.content, /think>/);
  },

  async errors_are_the_clients_own() {
    const refused = async (promise, kind, status, fields) => {
      const error = await promise.then(() => assert.fail("was answered"), (e) => e);
      assert.ok(error instanceof kind, `${error}`);
      const { message, ...told } = error.error; // the body's `error`
      assert.equal(error.status, status);
      assert.equal(error.message, `${status} ${message}`);
      assert.deepEqual(told, fields);
    };
    const create = (body, as = client) => as.chat.completions.create(body);
    await refused(create({ ...ask("x"), model: "nope" }), OpenAI.NotFoundError, 404,
      { type: "NotFoundError", param: "model", code: 404 });
    await refused(create(ask("x", { temperature: 9 })), OpenAI.BadRequestError, 400,
      { type: "BadRequestError", param: "temperature", code: 400 });
    await refused(create(ask("x", { temperature: 9, stream: true })), OpenAI.BadRequestError, 400,
      { type: "BadRequestError", param: "temperature", code: 400 });
    await refused(create(ask("many words ".repeat(3000))), OpenAI.BadRequestError, 400,
      { type: "BadRequestError", param: "input_tokens", code: 400 });
    const stranger = client.withOptions({ apiKey: "guess" });
    const error = await create(ask("x"), stranger).catch((e) => e);
    assert.ok(error instanceof OpenAI.AuthenticationError, `${error}`);
    assert.equal(error.status, 401);
  },

  // This process lives on, so what the server sees is the client's abort and no end of a process.
  async leaving_ends_the_work() {
    const aborted = () => total("vllm:request_success_total", 'finished_reason="abort"');
    const running = () => total("vllm:num_requests_running");
    const generated = () => total("vllm:generation_tokens_total");
    const endless = { model: "tiny", prompt: "Once", max_tokens: 1900, ignore_eos: true };
    const leavings = {
      async by_breaking_off_a_stream() {
        for await (const _ of await client.completions.create({ ...endless, stream: true })) break;
      },
      async by_a_signal_in_a_stream() {
        const { signal, abort } = leave();
        for await (const _ of await client.completions.create({ ...endless, stream: true }, { signal })) abort();
      },
      async by_a_signal_before_the_answer() {
        const { signal, abort } = leave();
        const before = await generated();
        const answer = client.completions.create(endless, { signal });
        await Promise.all([
          assert.rejects(answer, OpenAI.APIUserAbortError),
          // More than one token: a prefiller, which ends by itself after one, has done its part.
          until(async () => (await generated()) > before + 2, "the engine works").then(abort),
        ]);
      },
    };
    for (const [how, go] of Object.entries(leavings)) {
      const before = await aborted();
      await go();
      await until(async () => (await aborted()) === before + 1, `an aborted request is counted ${how}`);
      await until(async () => (await running()) === 0, `nothing runs any more ${how}`);
    }
  },
};

await cases[name]();
