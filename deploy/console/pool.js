// One pool of target replicas: what its reports add up to.

import { definitions, html } from "./dom.js";
import { Sparkline } from "./sparkline.js";

const sum = (reports, name) => reports.reduce((total, one) => total + (one[name] ?? 0), 0);
const busyOnes = (reports) => reports.filter((one) => one.step_ms > 0);
const mean = (reports, name) => {
  const known = busyOnes(reports).filter((one) => one[name] > 0);
  return known.length ? sum(known, name) / known.length : null;
};
const fixed = (value, digits = 1, unit = "") => (value === null ? "–" : `${value.toFixed(digits)}${unit}`);

// What a step of plain decoding would take at each replica's batch, by its cost table.
function plainMs(reports) {
  const known = busyOnes(reports).filter((one) => one.plain_steps.length && one.batch > 0);
  if (!known.length) return null;
  return known.reduce((total, one) => total + interpolated(one.plain_steps, one.batch), 0) / known.length;
}

function interpolated(points, x) {
  const next = points.findIndex(([at]) => at >= x);
  if (next <= 0) return points.at(next)[1];
  const [[x0, y0], [x1, y1]] = [points[next - 1], points[next]];
  return y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
}

export class Pool {
  constructor(name) {
    this.rate = new Sparkline(["measured"]);
    this.cost = new Sparkline(["measured", "predicted"]);
    this.step = new Sparkline(["measured", "predicted"]);
    this.kind = html("span", { class: "chip" });
    this.figures = html("dl");
    this.used = html("i");
    this.usedText = html("span");
    this.rateText = html("span");
    this.costText = html("span");
    this.stepText = html("span");
    this.element = html(
      "article", { class: "pool", "aria-label": `Pool ${name}` },
      html("div", { class: "row spread" }, html("h3", {}, name), this.kind),
      this.figures,
      html(
        "div", { class: "stack" },
        html("div", {}, caption("Tokens per second", this.rateText), this.rate.element),
        html("div", {}, caption("KV cache", this.usedText), html("div", { class: "meter" }, this.used)),
      ),
      html(
        "div", { class: "stack" },
        html("div", {}, caption("A token (dashed: plain decoding, predicted)", this.costText), this.cost.element),
        html("div", {}, caption("A step (dashed: predicted)", this.stepText), this.step.element),
      ),
    );
  }

  show(reports) {
    const rate = sum(reports, "tokens_per_s");
    const token = mean(reports, "token_ms");
    const plain = plainMs(reports);
    const step = mean(reports, "decode_step_ms");
    const predicted = mean(reports, "predicted_step_ms");
    const used = 1 - sum(reports, "free_blocks") / Math.max(1, sum(reports, "total_blocks"));
    const count = reports.length === 1 ? "1 replica" : `${reports.length} replicas`;
    this.kind.textContent = `${reports[0].device_type} · ${count}`;
    this.figures.replaceChildren(
      ...definitions([
        ["Running", `${sum(reports, "running")}`, `${sum(reports, "waiting")} waiting`],
        ["Nodes a step", fixed(mean(reports, "nodes_per_step")), "drafted"],
        ["Accepted", fixed(mean(reports, "accepted_per_step")), "a step"],
        ["Speedup", fixed(token && plain && plain / token, 2, "×"), "over plain"],
        ["Drafting", fixed(mean(reports, "draft_ms"), 1, " ms")],
        ["Verifying", fixed(mean(reports, "verify_ms"), 1, " ms")],
      ]),
    );
    this.rate.add([rate]);
    this.rateText.textContent = rate.toFixed(0);
    this.cost.add([token, plain]);
    this.costText.textContent = `${fixed(token, 1, " ms")}, ${fixed(plain, 1, " ms")}`;
    this.step.add([step, predicted]);
    this.stepText.textContent = `${fixed(step, 1, " ms")}, ${fixed(predicted, 1, " ms")}`;
    this.used.style.width = `${100 * used}%`;
    this.usedText.textContent = `${(100 * used).toFixed(0)} % used`;
  }
}

const caption = (text, value) => html("div", { class: "caption" }, html("span", {}, text), value);
