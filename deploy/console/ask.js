// The form: one question, its answer streamed into the page.

import { Answer } from "./answer.js";
import { ApiError, streamChat } from "./api.js";
import { byId } from "./dom.js";
import { askForKey } from "./key.js";
import { picture } from "./picture.js";
import { model } from "./state.js";
import { Steps } from "./steps.js";

let running = null;

export function startAsk() {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) ask();
  });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
  });
  byId("stop").addEventListener("click", () => running?.abort());
}

function body(name) {
  const parts = [{ type: "text", text: byId("question").value }];
  if (picture()) parts.unshift({ type: "image_url", image_url: { url: picture() } });
  const asked = {
    model: name,
    messages: [{ role: "user", content: parts }],
    temperature: Number(byId("temperature").value),
    max_tokens: Number(byId("max-tokens").value),
    speculation: { trace: true },
  };
  if (byId("seed").value) asked.seed = Number(byId("seed").value);
  if (byId("policy").value) asked.speculation.policy = byId("policy").value;
  return asked;
}

async function ask() {
  begin();
  const answer = new Answer();
  const steps = new Steps();
  let usage = null;
  try {
    for await (const event of streamChat(body(await model()), running.signal)) {
      usage = event.usage ?? usage;
      for (const { speculation } of event.choices) {
        if (!speculation) continue;
        answer.add(speculation.tokens);
        steps.add(speculation);
      }
    }
  } catch (failure) {
    explain(failure);
  } finally {
    answer.end(usage);
    steps.end();
    finish();
  }
}

function begin() {
  running = new AbortController();
  byId("problem").textContent = "";
  byId("send").disabled = true;
  byId("stop").disabled = false;
}

function finish() {
  const stopped = document.activeElement === byId("stop");
  running = null;
  byId("send").disabled = false;
  byId("stop").disabled = true;
  if (stopped) byId("send").focus();
}

function explain(failure) {
  if (failure.name === "AbortError") byId("problem").textContent = "Stopped.";
  else if (failure instanceof ApiError) {
    byId("problem").textContent = failure.message;
    if (failure.status === 401) askForKey();
  } else throw failure;
}
