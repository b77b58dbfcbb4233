// The decode steps of an answer: a bar each, and the tree of the chosen one.

import { byId, svg } from "./dom.js";
import { clearTree, drawTree } from "./tree.js";

const BAR_HEIGHT = 56;

export class Steps {
  constructor() {
    this.all = [];
    this.follows = true;
    this.last = "";
    byId("steps").hidden = true;
    clearTree();
    byId("step-text").textContent = "Waiting for the first decode step.";
    // A slider that is moved stays where it is; one left alone goes with the answer.
    byId("step").oninput = (event) => this.choose(Number(event.target.value) - 1, false);
  }

  // News of one step: its tokens, and the step (null for the prompt's own).
  add({ tokens, step }) {
    if (step) {
      this.all.push({ ...step, root: this.last, emitted: tokens.length });
      byId("steps").hidden = false;
      byId("step").max = this.all.length;
      this.choose(this.follows ? this.all.length - 1 : this.chosen, this.follows);
    }
    this.last = tokens.at(-1)?.text ?? this.last;
  }

  end() {
    if (!this.all.length) byId("step-text").textContent = "The answer took no decode step.";
    else if (this.follows) this.choose(this.mostAccepted(), true);
  }

  mostAccepted() {
    const accepted = this.all.map((step) => count(step, "accepted"));
    return accepted.indexOf(Math.max(...accepted));
  }

  choose(index, follows) {
    this.chosen = index;
    this.follows = follows;
    const step = this.all[index];
    const input = byId("step");
    input.value = index + 1;
    input.setAttribute("aria-valuetext", `${index + 1} of ${this.all.length}, ${step.emitted} tokens`);
    this.drawBars();
    byId("step-text").textContent = described(step, index, this.all.length);
    drawTree(step.root, step.tree);
  }

  drawBars() {
    const bars = byId("bars");
    const width = 100 / Math.max(this.all.length, 24);
    const most = Math.max(4, ...this.all.map(verified));
    const unit = (BAR_HEIGHT - 6) / most;
    bars.setAttribute("viewBox", `0 0 100 ${BAR_HEIGHT}`);
    bars.setAttribute("preserveAspectRatio", "none");
    bars.replaceChildren(
      ...this.all.flatMap((step, i) => {
        const bar = (size, kind, base = 4) => {
          const height = size * unit;
          return svg("rect", { x: i * width, width: width * 0.78, y: BAR_HEIGHT - base - height, height, class: kind });
        };
        const group = [bar(verified(step), "node"), bar(count(step, "accepted"), "hit")];
        if (i === this.chosen) group.push(bar(3 / unit, "here", 0));
        for (const one of group) one.onclick = () => this.choose(i, false);
        return group;
      }),
    );
  }
}

const count = (step, fate) => step.tree.filter((node) => node.fate === fate).length;
const verified = (step) => step.tree.length - count(step, "pruned");
const ms = (value) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;

function described(step, index, total) {
  const tree = verified(step)
    ? `${verified(step)} nodes verified, ${count(step, "accepted")} accepted`
    : "nothing drafted";
  const others = step.batch > 1 ? ` · batch of ${step.batch} with ${step.batch_nodes} nodes` : "";
  return `Step ${index + 1} of ${total} · ${tree} · ${step.emitted} tokens in ${ms(step.step_ms)}, ` +
    `predicted ${ms(step.predicted_ms)}; a plain step ${ms(step.plain_ms)}${others}`;
}
