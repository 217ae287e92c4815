"use strict";
// Draws the two graphs and lets a reader click and search in them. The data stands in the page as JSON.
const data = JSON.parse(document.getElementById("graphs").textContent);
const SVG = "http://www.w3.org/2000/svg";
const BOX = { width: 132, height: 28 };
const about = document.getElementById("about");
const panes = {};

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

function colour(rule) {
  let hash = 0;
  for (const letter of rule) hash = (hash * 31 + letter.charCodeAt(0)) % 360;
  return `hsl(${hash} 65% 76%)`;
}

function draw(side) {
  const { nodes, width, height } = data[side];
  const canvas = document.querySelector(`#${side} .canvas`);
  const svg = element("svg", { width, height, role: "img", "aria-label": `${nodes.length} nodes` }, canvas);
  const edges = element("g", {}, svg);
  const boxes = nodes.map((node, at) => {
    for (const read of node.reads) {
      const from = nodes[read];
      const [y1, y2] = [from.y + BOX.height / 2, node.y - BOX.height / 2];
      const bend = Math.max(12, (y2 - y1) / 2);
      element("path", { class: "edge", d: `M${from.x},${y1} C${from.x},${y1 + bend} ${node.x},${y2 - bend} ${node.x},${y2}` }, edges);
    }
    const made = node.rules.length > 0;
    const group = element("g", { class: made ? "node made" : "node", tabindex: 0, role: "button", "data-at": at }, svg);
    const box = { x: node.x - BOX.width / 2, y: node.y - BOX.height / 2, ...BOX };
    const rect = element("rect", box, group);
    if (made) rect.style.fill = colour(node.rules[node.rules.length - 1]);
    const short = node.op.replace(/^.*::/, "");
    element("text", { x: node.x, y: node.y }, group).textContent = short.length > 20 ? `${short.slice(0, 19)}…` : short;
    element("title", {}, group).textContent = `${node.op} ${node.name}`;
    group.addEventListener("click", () => choose(side, at));
    group.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(side, at); }
    });
    return group;
  });
  panes[side] = { canvas, svg, boxes, nodes };
}

function mark(side, positions, name) {
  const { svg, boxes } = panes[side];
  boxes.forEach((box, at) => box.classList.toggle(name, positions.has(at)));
  svg.classList.toggle("dimmed", svg.querySelector(".chosen, .found") !== null);
}

function reveal(side, positions) {
  const [first] = positions;
  if (first === undefined) return;
  const { canvas, nodes } = panes[side];
  canvas.scrollTo({ left: nodes[first].x - canvas.clientWidth / 2, top: nodes[first].y - canvas.clientHeight / 3 });
}

// The nodes of the other graph that stand for the same nodes of the original model.
function partners(side, at) {
  const node = panes[side].nodes[at];
  const other = side === "before" ? "after" : "before";
  const wanted = new Set(side === "before" ? [node.name] : node.sources);
  const names = (entry) => (other === "before" ? [entry.name] : entry.sources);
  const found = new Set();
  panes[other].nodes.forEach((entry, index) => {
    if (names(entry).some((name) => name !== "" && wanted.has(name))) found.add(index);
  });
  return [other, found];
}

function line(text) {
  const paragraph = document.createElement("p");
  paragraph.textContent = text;
  return paragraph;
}

function choose(side, at) {
  const node = panes[side].nodes[at];
  const [other, found] = partners(side, at);
  mark(side, new Set([at]), "chosen");
  mark(other, found, "chosen");
  reveal(other, found);
  const lines = [`${node.op} ${node.name}`, `gives ${node.outputs || "nothing"}`];
  if (side === "after") {
    lines.push(node.rules.length ? `made by ${node.rules.join(", then ")}` : "as it was");
    if (node.rules.length) lines.push(`from ${node.sources.join(", ")}`);
  } else {
    const names = [...found].map((index) => `${panes.after.nodes[index].op} ${panes.after.nodes[index].name}`);
    lines.push(names.length ? `became ${names.join(", ")}` : "gone: nothing of it is computed any more, or only once for several");
  }
  about.replaceChildren(...lines.map(line));
}

function search(text) {
  const wanted = text.trim().toLowerCase();
  let count = 0;
  for (const side of Object.keys(panes)) {
    const found = new Set();
    panes[side].nodes.forEach((node, at) => {
      const words = `${node.op} ${node.name} ${node.rules.join(" ")}`.toLowerCase();
      if (wanted !== "" && words.includes(wanted)) found.add(at);
    });
    mark(side, new Set(), "chosen");
    mark(side, found, "found");
    reveal(side, found);
    count += found.size;
  }
  document.getElementById("count").textContent = wanted === "" ? "" : `${count} found`;
}

function legend() {
  const rules = new Map();
  for (const node of data.after.nodes) {
    const rule = node.rules[node.rules.length - 1];
    if (rule !== undefined) rules.set(rule, (rules.get(rule) ?? 0) + 1);
  }
  const place = document.querySelector(".legend");
  for (const [rule, count] of [...rules].sort((a, b) => b[1] - a[1])) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${rule} ${count}`;
    button.style.background = colour(rule);
    button.addEventListener("click", () => {
      document.getElementById("search").value = rule;
      search(rule);
    });
    place.append(button);
  }
}

for (const side of ["before", "after"]) {
  draw(side);
  reveal(side, new Set(data[side].nodes.length ? [0] : []));
}
legend();
document.getElementById("search").addEventListener("input", (event) => search(event.target.value));
