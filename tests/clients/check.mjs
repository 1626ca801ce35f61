// Runs the npm package `openai` against a running `carat serve`.
//
//     npm install --prefix FOLDER openai@7.57.0
//     NODE_PATH=FOLDER/node_modules node tests/clients/check.mjs http://127.0.0.1:8080
//
// As check.py: form, not wit. Ends with 1 and the list of what failed.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

// Packages lie beside what is built, not beside this file.
const { default: OpenAI } = createRequire(import.meta.url)("openai");

const base = process.argv[2].replace(/\/$/, "");
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: "none", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "Name three rivers of Europe." }];
const city = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 }, unit: { enum: ["C", "F"] } },
  required: ["city", "unit"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", description: "The weather now", parameters: city } }];
const chat = (more) => client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 24, ...more });

const checks = {
  async whole_and_streamed_agree() {
    const whole = await chat({});
    let text = "", usage;
    for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text.slice(0, 8), whole.choices[0].message.content.slice(0, 8));
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  },

  async the_stream_helper_gathers_calls() {
    const stream = client.chat.completions.stream({ model, messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 80, temperature: 0 });
    const call = (await stream.finalChatCompletion()).choices[0].message.tool_calls[0];
    assert.equal(call.function.name, "weather");
    assert.ok(["C", "F"].includes(JSON.parse(call.function.arguments).unit));
  },

  async tools_run_in_a_loop() {
    let n = 0;
    const run = (argument) => ((n += 1), `sunny in ${argument.city}`);
    const tool = { type: "function", function: { name: "weather", description: "now", parameters: city, function: run, parse: JSON.parse } };
    const runner = client.chat.completions.runTools(
      { model, messages, tools: [tool], tool_choice: { type: "function", function: { name: "weather" } }, max_tokens: 200, temperature: 0 },
      { maxChatCompletions: 2 },
    );
    await runner.done();
    assert.equal(n, 1);
  },

  async a_schema_binds() {
    const schema = { name: "c", schema: city, strict: true };
    const answer = await client.chat.completions.parse({ model, messages, max_tokens: 80, response_format: { type: "json_schema", json_schema: schema } });
    assert.ok(["C", "F"].includes(answer.choices[0].message.parsed?.unit ?? JSON.parse(answer.choices[0].message.content).unit));
  },

  async responses_as_events() {
    const kinds = [];
    const stream = await client.responses.create({ model, input: "Hello.", max_output_tokens: 8, stream: true });
    for await (const event of stream) kinds.push(event.type);
    assert.equal(kinds[0], "response.created");
    assert.ok(["response.completed", "response.incomplete"].includes(kinds.at(-1)));
  },

  async embeddings_in_both_encodings() {
    const [a, b] = await Promise.all(["base64", "float"].map((encoding_format) => client.embeddings.create({ model, input: "a cat", encoding_format })));
    const numbers = a.data[0].embedding;
    const first = typeof numbers === "string" ? Buffer.from(numbers, "base64").readFloatLE(0) : numbers[0];
    assert.ok(Math.abs(first - b.data[0].embedding[0]) < 1e-5);
  },

  async errors_have_their_classes() {
    await assert.rejects(chat({ temperature: 1000 }), (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature");
    await assert.rejects(client.models.retrieve("nobody/has:this"), OpenAI.NotFoundError);
  },

  async leaving_stops_the_work() {
    const stream = await chat({ stream: true, max_tokens: 2000, logit_bias: { 1: -100, 106: -100 } });
    for await (const _ of stream) break;
    const until = Date.now() + 20_000;
    for (;;) {
      const metrics = await (await fetch(`${base}/metrics`)).text();
      const running = metrics.split("\n").filter((line) => line.startsWith("carat_sequences_running{"));
      if (running.every((line) => line.endsWith(" 0"))) return;
      assert.ok(Date.now() < until, "the sequence goes on");
      await new Promise((done) => setTimeout(done, 50));
    }
  },
};

const failed = [];
for (const [name, check] of Object.entries(checks)) {
  const started = Date.now();
  try {
    await check();
    console.log(`ok    ${name} (${((Date.now() - started) / 1000).toFixed(1)} s)`);
  } catch (error) {
    failed.push(name);
    console.log(`FAILED ${name}\n${error.stack}`);
  }
}
if (failed.length > 0) {
  console.error(`failed: ${failed.join(", ")}`);
  process.exit(1);
}
console.log(`all ${Object.keys(checks).length} checks of the npm package passed with ${model}`);
