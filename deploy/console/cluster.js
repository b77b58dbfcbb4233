// The live cluster: asks for every replica's last report while somebody looks.

import { ApiError, getJson } from "./api.js";
import { byId, html } from "./dom.js";
import { askForKey } from "./key.js";
import { Pool } from "./pool.js";

const POLL_MS = 1000;
const pools = new Map();
let timer = 0;

export function startCluster() {
  document.addEventListener("visibilitychange", poll);
  poll();
}

// Also called when the key has changed: what was refused is asked again at once.
export async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    show((await getJson("status")).replicas);
    timer = setTimeout(poll, POLL_MS);
  } catch (failure) {
    if (!(failure instanceof ApiError)) throw failure;
    refuse(failure);
  }
}

function refuse({ status, message }) {
  const note = byId("cluster-note");
  if (status === 401) {
    const button = html("button", { type: "button" }, "Enter an API key");
    button.addEventListener("click", askForKey);
    note.replaceChildren(button);
  } else if (status === 403) {
    note.textContent = "Only an operator’s key shows the cluster.";
  } else {
    note.textContent = message;
    timer = setTimeout(poll, 5 * POLL_MS);
  }
}

function show(replicas) {
  const byPool = Map.groupBy(replicas.map((one) => one.report), (report) => report.pool);
  const nodes = replicas.length === 1 ? "1 target replica" : `${replicas.length} target replicas`;
  const note = byId("cluster-note");
  if (note.textContent !== nodes) note.textContent = nodes;
  for (const [name, pool] of pools) {
    if (!byPool.has(name)) {
      pool.element.remove();
      pools.delete(name);
    }
  }
  for (const [name, reports] of byPool) {
    if (!pools.has(name)) {
      pools.set(name, new Pool(name));
      byId("pools").append(pools.get(name).element);
    }
    pools.get(name).show(reports);
  }
}
