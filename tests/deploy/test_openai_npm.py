"""The official JavaScript client, installed from the npm registry into a temporary folder."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_app import ARGS, LocalSource, local_app, served
from served_app import wait_for

PACKAGE = "openai@7"
SCRIPT = """
import OpenAI, { NotFoundError } from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Describe the picture." }];
const asked = { model, messages, temperature: 0, max_tokens: 12 };
const whole = await client.chat.completions.create(asked);
const stream = await client.chat.completions.create({
  ...asked, stream: true, stream_options: { include_usage: true },
});
let text = "", usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const models = [];
for await (const card of client.models.list()) models.push(card.id);
const refused = await client.chat.completions
  .create({ ...asked, model: "other" })
  .then(() => null, (error) => [error instanceof NotFoundError, error.code, error.param]);
console.log(JSON.stringify({
  whole: whole.choices[0].message.content, wholeUsage: whole.usage, text, usage, models, refused,
}));
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("there is no npm on this machine")
    folder = tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text('{"type": "module", "private": true}')
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
    run = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    (folder / "ask.js").write_text(SCRIPT)
    return folder


@pytest.fixture(scope="module")
def url(source: LocalSource) -> Iterator[str]:
    with served(local_app(source)) as one:
        yield one
    wait_for(source.is_idle)


@pytest.mark.slow
def test_the_javascript_client(folder: Path, url: str) -> None:
    asked = ["node", "ask.js", f"{url}/v1", ARGS.served_name]
    run = subprocess.run(asked, cwd=folder, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert seen["text"] == seen["whole"] != ""
    assert seen["models"] == [ARGS.served_name]
    assert seen["refused"] == [True, "model_not_found", "model"]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert seen["usage"][name] == seen["wholeUsage"][name] > 0
