// Light, dark, or as the system has it. The choice is kept; it says nothing about anybody.

import { byId } from "./dom.js";

const STORED = "smart-serve-theme";

export function startTheme() {
  const choice = byId("theme");
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    choice.value = theme;
  };
  show(localStorage.getItem(STORED) ?? "");
  choice.addEventListener("change", () => {
    localStorage.setItem(STORED, choice.value);
    show(choice.value);
  });
}
