// The dialog that asks for the API key.

import { key } from "./api.js";
import { byId } from "./dom.js";

export function startKey(changed) {
  const dialog = byId("key-dialog");
  byId("key-open").addEventListener("click", askForKey);
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "save") {
      key.set(byId("key").value.trim());
      changed();
    }
    byId("key").value = "";
  });
}

export function askForKey() {
  const dialog = byId("key-dialog");
  if (!dialog.open) dialog.showModal();
}
