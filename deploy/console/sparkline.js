// Lines over the last minute, one sample a poll; null where nothing was known.

import { svg } from "./dom.js";

const SAMPLES = 60;

export class Sparkline {
  constructor(kinds) {
    this.lines = kinds.map((kind) => ({ values: [], path: svg("path", { class: kind }) }));
    const box = { class: "spark", viewBox: "0 0 59 40", preserveAspectRatio: "none", "aria-hidden": "true" };
    this.element = svg("svg", box, ...this.lines.map((line) => line.path));
  }

  add(values) {
    const most = Math.max(1e-9, ...this.lines.flatMap((line, i) => {
      line.values = [...line.values, values[i]].slice(-SAMPLES);
      return line.values.map(Number);
    }));
    for (const { values: kept, path } of this.lines) {
      const points = kept.map((value, i) => [SAMPLES - kept.length + i, 39 - (37 * value) / most]);
      const known = points.filter((_, i) => kept[i] !== null);
      path.setAttribute("d", known.length ? `M${known.join("L")}` : "");
    }
  }
}
