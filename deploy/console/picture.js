// The picture that a question is about: dropped, pasted, chosen, or the example.

import { byId } from "./dom.js";

const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const MOST_BYTES = 10 * 2 ** 20; // The server's own default limit of one picture.

let dataUrl = null;

export const picture = () => dataUrl;

export function startPicture() {
  const drop = byId("drop");
  const file = byId("file");
  file.addEventListener("change", () => take(file.files[0]));
  byId("remove").addEventListener("click", () => {
    show(null, "PNG, JPEG, WebP or GIF");
    file.focus();
  });
  byId("example").addEventListener("click", async () => {
    const answer = await fetch(new URL("example.png", import.meta.url));
    await take(new File([await answer.blob()], "example.png", { type: "image/png" }));
  });
  document.addEventListener("paste", (event) => take(event.clipboardData?.files[0]));
  for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
  document.addEventListener("dragover", () => drop.classList.add("over"));
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    drop.classList.remove("over");
    take(event.dataTransfer?.files[0]);
  });
}

async function take(file) {
  if (!file) return;
  if (!TYPES.includes(file.type)) return show(null, `${file.name} is not a PNG, JPEG, WebP or GIF.`);
  if (file.size > MOST_BYTES) return show(null, `${file.name} is larger than 10 MB.`);
  const reader = new FileReader();
  await new Promise((resolve) => {
    reader.onloadend = resolve;
    reader.readAsDataURL(file);
  });
  if (reader.error) return show(null, `${file.name} cannot be read.`);
  show(reader.result, `${file.name}, ${Math.ceil(file.size / 1024)} KB`);
}

function show(url, note) {
  dataUrl = url;
  const preview = byId("preview");
  preview.hidden = byId("remove").hidden = !url;
  if (url) preview.src = url;
  else preview.removeAttribute("src");
  preview.alt = url ? `The picture: ${note}` : "";
  byId("drop").classList.toggle("filled", Boolean(url));
  byId("picture-note").textContent = note;
  byId("file").value = "";
}
