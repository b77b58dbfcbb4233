// Elements: found by id, and made without ever parsing text as HTML.

export const byId = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const html = (name, attributes = {}, ...children) =>
  filled(document.createElement(name), attributes, children);

export const svg = (name, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, name), attributes, children);

// A <dl>'s content from [term, value, remark] triples.
export function definitions(rows) {
  return rows.map(([term, value, remark]) => {
    const told = html("dd", {}, value);
    if (remark) told.append(" ", html("small", {}, remark));
    return html("div", {}, html("dt", {}, term), told);
  });
}
