"""OpenAI's Node SDK against a whole tree: installed into a folder of this test when node and npm are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.live import Live
from tests.support.node_sdk import install_node_sdk, run_node

pytestmark = pytest.mark.integration
SCRIPT = """
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ maxRetries: 0 });
const messages = [{ role: "user", content: "Three days in Rome" }];
const Trip = z.object({ city: z.string(), days: z.number() });
const tools = [{ type: "function", function: {
  name: "get_weather", description: "The weather of a city.",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] } } }];
const found = {};

const chat = await client.chat.completions.create({ model: "fast", messages });
found.chat = chat.choices[0].message.content.length > 0;
let pieces = 0;
for await (const chunk of await client.chat.completions.create({ model: "fast", messages, stream: true })) pieces += chunk.choices.length;
found.stream = pieces > 1;
const runner = client.chat.completions.stream({ model: "fast", messages });
found.helper = (await runner.finalContent()).length > 0;
const parsed = await client.chat.completions.parse({ model: "fast", messages, response_format: zodResponseFormat(Trip, "trip") });
found.parse = typeof parsed.choices[0].message.parsed.days === "number";
const called = await client.chat.completions.create({
  model: "fast", messages: [{ role: "user", content: "Weather in Paris?" }], tools, tool_choice: "required" });
found.tools = JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).city === "Paris";
const response = await client.responses.create({ model: "fast", input: "Hello" });
found.response = response.output_text.length > 0;
const next = client.responses.stream({ model: "fast", input: "And now?", previous_response_id: response.id });
const kinds = [];
for await (const event of next) kinds.push(event.type);
found.response_stream = kinds[0] === "response.created" && kinds.at(-1) === "response.completed";
const shaped = await client.responses.parse({ model: "fast", input: "To Rome", text: { format: zodTextFormat(Trip, "trip") } });
found.response_parse = typeof shaped.output_parsed.days === "number";
const vectors = await client.embeddings.create({ model: "embed", input: ["a", "b"], dimensions: 8 });
found.embeddings = vectors.data.map((item) => item.embedding.length).join() === "8,8";
found.error = await client.chat.completions.create({ model: "nope", messages }).catch((error) => error.code);
const hasty = new OpenAI({ maxRetries: 0, timeout: 200 });
found.timeout = await hasty.chat.completions
  .create({ model: "fast", messages, metadata: { sim: JSON.stringify({ latency_ms: 20000 }) } })
  .catch((error) => error.constructor.name);
console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the SDK in it."""
    return install_node_sdk(tmp_path_factory.mktemp("node"))


def test_the_node_sdk(project: Path, live: Live) -> None:
    found = run_node(project, SCRIPT, key=live.key, base_url=f"{live.base}/v1")
    assert found.pop("error") == "model_not_found"
    assert found.pop("timeout") == "APIConnectionTimeoutError"
    assert all(value is True for value in found.values()), found
