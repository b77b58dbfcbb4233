// The answer as it arrives: each token by whom it came from, and what the whole cost.

import { byId, definitions, html } from "./dom.js";

export class Answer {
  constructor() {
    this.place = byId("answer");
    this.live = byId("live");
    this.place.replaceChildren();
    this.place.classList.add("busy");
    this.live.replaceChildren();
    byId("figures").replaceChildren();
    this.decoder = new TextDecoder();
    this.unread = "";
    this.begun = performance.now();
    this.first = null;
  }

  // A token may be a part of a character: it shows with the token that completes it.
  add(tokens) {
    for (const token of tokens) {
      this.first ??= performance.now();
      let text = this.decoder.decode(new Uint8Array(token.bytes), { stream: true });
      if (!this.place.hasChildNodes()) text = text.trimStart();
      if (!text) continue;
      const kind = token.accepted ? "token accepted" : "token";
      this.place.append(html("span", { class: kind }, text));
      this.unread += text;
    }
    // Read aloud by the sentence, not by the token.
    if (/[.!?]\s*$/.test(this.unread)) this.readAloud();
  }

  readAloud() {
    if (this.unread.trim()) this.live.append(html("p", {}, this.unread.trim()));
    this.unread = "";
  }

  end(usage) {
    this.place.classList.remove("busy");
    this.readAloud();
    if (!usage) return;
    const told = usage.speculation;
    const details = usage.completion_tokens_details;
    const rows = [
      ["Tokens", `${usage.completion_tokens}`, `after ${usage.prompt_tokens}`],
      ["Tokens per step", told.tokens_per_step.toFixed(2), `${told.target_steps} steps`],
      ["Accepted", `${details.accepted_prediction_tokens}`, `of ${told.drafted_tokens} drafted`],
      ["First token", `${Math.round(this.first - this.begun)} ms`],
      ["Speedup", times(told.measured_speedup), "measured"],
      ["Speedup", times(told.predicted_speedup), "predicted"],
    ];
    byId("figures").replaceChildren(...definitions(rows));
    const summary = `Answer complete: ${usage.completion_tokens} tokens in ${told.target_steps} steps.`;
    this.live.append(html("p", {}, summary));
  }
}

const times = (ratio) => (ratio === null ? "–" : `${ratio.toFixed(2)}×`);
