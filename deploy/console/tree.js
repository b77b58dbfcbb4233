// One step's draft tree, drawn and told as a table.

import { byId, html, svg } from "./dom.js";

const NODE_PX = 24;
const ROW_PX = 30;
const GAP_PX = 26;
const EDGE_PX = 2;
const LEAST_SCALE = 0.8;
const TALL_PX = 560;
const CHAR_PX = 7.9;
const MOST_CHARS = 14;
const MOST_PRUNED = 10;

const FATES = { accepted: "accepted", rejected: "kept", pruned: "pruned" };
const ORDER = Object.keys(FATES);

// Nodes with their depth and the lane that they stand in. Row 0 is the root.
function laidOut(root, tree) {
  const rows = [{ text: root, fate: "root", depth: 0, children: [] }];
  let pruned = 0;
  for (const node of tree) {
    const parent = rows[node.parent];
    if (!parent || (node.fate === "pruned" && ++pruned > MOST_PRUNED)) {
      rows.push(null); // Left out; its children too, for they were pruned with it.
      continue;
    }
    const one = { ...node, depth: parent.depth + 1, children: [], above: parent };
    parent.children.push(one);
    rows.push(one);
  }
  // The best child goes on in its parent's lane, so the accepted path is a line.
  let lanes = 0;
  const place = (node, lane) => {
    node.lane = lane;
    node.children.sort((a, b) => ORDER.indexOf(a.fate) - ORDER.indexOf(b.fate) || b.path_prob - a.path_prob);
    node.children.forEach((child, i) => place(child, i ? ++lanes : lane));
  };
  place(rows[0], 0);
  return rows.filter(Boolean);
}

export function shown(text) {
  const bare = text.trim() || (text.includes("\n") ? "↵" : "␣");
  return bare.length > MOST_CHARS ? `${bare.slice(0, MOST_CHARS - 1)}…` : bare;
}

// Where each column of nodes begins, and how wide all are together.
function columns(nodes, column) {
  const widths = [];
  for (const node of nodes) {
    node.label = shown(node.text);
    node.width = Math.max(NODE_PX + 6, node.label.length * CHAR_PX + 18);
    widths[node[column]] = Math.max(widths[node[column]] ?? 0, node.width);
  }
  let x = EDGE_PX;
  const lefts = widths.map((width) => (x += width + GAP_PX) - width - GAP_PX);
  return { lefts, width: x - GAP_PX + EDGE_PX };
}

// From left to right, or from above where there is little room. Returns the drawing's size.
function put(nodes, isTall) {
  const { lefts, width } = columns(nodes, isTall ? "lane" : "depth");
  const row = isTall ? "depth" : "lane";
  const apart = isTall ? ROW_PX + GAP_PX / 2 : ROW_PX;
  for (const node of nodes) {
    node.x = lefts[node[isTall ? "lane" : "depth"]];
    node.y = node[row] * apart + NODE_PX / 2 + EDGE_PX;
  }
  const rows = Math.max(...nodes.map((node) => node[row]));
  return { width, height: rows * apart + NODE_PX + 2 * EDGE_PX };
}

function edge(node, isTall) {
  const { above } = node;
  const half = NODE_PX / 2;
  const [ax, ay] = isTall ? [above.x + half, above.y + half] : [above.x + above.width, above.y];
  const [bx, by] = isTall ? [node.x + half, node.y - half] : [node.x, node.y];
  const middle = isTall ? `${ax} ${(ay + by) / 2} ${bx} ${(ay + by) / 2}` : `${(ax + bx) / 2} ${ay} ${(ax + bx) / 2} ${by}`;
  return svg("path", { d: `M${ax} ${ay}C${middle} ${bx} ${by}`, class: node.fate, "stroke-width": 1 + 2 * node.path_prob });
}

function pill(node) {
  const box = { x: node.x, y: node.y - NODE_PX / 2, width: node.width, height: NODE_PX, rx: 7 };
  const group = svg("g", { class: node.fate }, svg("rect", box));
  group.append(svg("text", { x: node.x + node.width / 2, y: node.y }, node.label));
  if (node.above) group.prepend(svg("title", {}, `“${node.text}” · path ${percent(node.path_prob)} · ${FATES[node.fate]}`));
  return group;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

let drawn = null;
let drawnFor = 0;

// Draws it again where the page becomes wider or narrower.
const watch = new ResizeObserver(() => {
  if (drawn && byId("tree").clientWidth !== drawnFor) drawTree(...drawn);
});

export function clearTree() {
  drawn = null;
  byId("tree").replaceChildren();
  byId("tree-table").querySelector("tbody").replaceChildren();
}

export function drawTree(root, tree) {
  drawn = [root, tree];
  drawnFor = byId("tree").clientWidth;
  watch.observe(byId("tree"));
  const nodes = laidOut(root, tree);
  const room = drawnFor - 24;
  const isTall = room < TALL_PX;
  const { width, height } = put(nodes, isTall);
  const scale = Math.min(1, Math.max(LEAST_SCALE, room / width));
  const size = { width: width * scale, height: height * scale, viewBox: `0 0 ${width} ${height}` };
  const drawing = svg("svg", { ...size, role: "img" });
  const count = (fate) => tree.filter((node) => node.fate === fate).length;
  drawing.setAttribute("aria-label", `A tree of ${tree.length - count("pruned")} verified nodes, ${count("accepted")} accepted; ${count("pruned")} more were pruned.`);
  // The accepted path lies over the others.
  const drafted = nodes.slice(1).sort((a, b) => ORDER.indexOf(b.fate) - ORDER.indexOf(a.fate));
  drawing.append(...drafted.map((node) => edge(node, isTall)), ...nodes.map(pill));
  byId("tree").replaceChildren(drawing);
  byId("tree-table").querySelector("tbody").replaceChildren(...tree.map((node, i) => tableRow(node, i, tree)));
}

function tableRow(node, index, tree) {
  const after = node.parent ? `${node.parent} ${shown(tree[node.parent - 1].text)}` : "root";
  const cells = [`${index + 1}`, shown(node.text), after, percent(node.path_prob), FATES[node.fate]];
  return html("tr", {}, ...cells.map((cell) => html("td", {}, cell)));
}
