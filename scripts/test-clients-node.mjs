// Checks a served demo model from the side of the `openai` client for Node.js (made with 7.59).
// `scripts/test-clients --more` installs the package, starts the server and runs this:
//
//     node test-clients-node.mjs BASE_URL API_KEY GENERATED.json
//
// `GENERATED.json` is what `retie generate --json` says of the prompt below.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const [baseURL, apiKey, path] = process.argv.slice(2);
const generated = JSON.parse(readFileSync(path, "utf8"));
const prompt = "The colony";
assert.equal(generated.prompt, prompt);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const greedy = { model: "demo", prompt, max_tokens: 12, temperature: 0 };
const chat = { model: "demo", messages: [{ role: "user", content: "Who founded the colony?" }], max_completion_tokens: 10, temperature: 0 };

const check = (name) => console.log(`ok: ${name}`);

const models = await client.models.list();
assert.deepEqual(models.data.map((model) => model.id), ["demo"]);
check("models");

const answer = await client.completions.create(greedy);
assert.equal(answer.choices[0].text, generated.text);
assert.equal(answer.usage.completion_tokens, 12);
check("the text of a completion is that of `retie generate`");

let text = "";
let usage = null;
for await (const chunk of await client.completions.create({ ...greedy, stream: true, stream_options: { include_usage: true } })) {
    assert.equal(usage, null, "usage comes last");
    text += chunk.choices[0]?.text ?? "";
    usage = chunk.usage ?? null;
}
assert.equal(text, generated.text);
assert.deepEqual(usage, answer.usage);
check("the pieces of a stream are the completion, and its usage comes last");

const whole = await client.chat.completions.create(chat);
let said = "";
for await (const chunk of await client.chat.completions.create({ ...chat, stream: true })) {
    said += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(said, whole.choices[0].message.content);
assert.ok(said.length > 0);
check("a chat, whole and in pieces");

const stopped = await client.completions.create({ ...greedy, max_tokens: 240, stream: true });
for await (const chunk of stopped) {
    assert.equal(chunk.choices.length, 1);
    stopped.controller.abort();
    break;
}
assert.equal((await client.completions.create(greedy)).choices[0].text, generated.text);
check("a cancelled stream, and the same text after it");

const refusal = (status, kind) => (error) => error instanceof kind && error.status === status;
await assert.rejects(client.completions.create({ ...greedy, max_tokens: "many" }), (error) => {
    return refusal(400, OpenAI.BadRequestError)(error) && error.param === "max_tokens";
});
await assert.rejects(new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list(), refusal(401, OpenAI.AuthenticationError));
check("refusals are the client's own errors");
