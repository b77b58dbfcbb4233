// Whether the server is ready, and what it serves.

import { ApiError, getJson } from "./api.js";
import { byId } from "./dom.js";

const POLL_MS = 5000;
let served = null;

// The served model's name. Throws `ApiError`, without a key where one is needed.
export async function model() {
  served ??= (await getJson("v1/models")).data[0].id;
  byId("model").textContent = served;
  return served;
}

export async function watchState() {
  const chip = byId("state");
  const tell = (text, kind) => {
    if (chip.textContent !== text) chip.textContent = text;
    chip.className = `chip ${kind}`;
  };
  try {
    await getJson("health");
    tell("ready", "good");
  } catch (failure) {
    if (!(failure instanceof ApiError)) throw failure;
    tell(failure.status === 503 ? "starting" : "unreachable", "bad");
  }
  setTimeout(watchState, POLL_MS);
}
