"use strict";
document.documentElement.classList.add("scripted");
const { tops, tokens, first } = JSON.parse(document.getElementById("tops").textContent);
const table = document.querySelector("table.lens"), details = [...document.querySelectorAll("details.one")];
const rows = [...table.tBodies[0].rows];

// A layer is chosen by a click on its row, by its button, or by a bar of a figure.
function choose(layer, scroll) {
  if (!details[layer]) return;
  details.forEach((node, i) => (node.open = i === layer));
  rows.forEach((row) => row.classList.toggle("chosen", row.dataset.layer === String(layer)));
  if (scroll) details[layer].scrollIntoView({ behavior: "smooth", block: "start" });
}
for (const row of rows) {
  if (row.dataset.layer) row.addEventListener("click", () => choose(Number(row.dataset.layer), true));
}
addEventListener("hashchange", () => choose(Number(location.hash.replace("#layer-", "")), true));
for (const node of document.querySelectorAll(".plot")) {
  const wait = setInterval(() => {
    if (!node.dataset.drawn) return;
    clearInterval(wait);
    node.on?.("plotly_click", (event) => choose(event.points[0].x, true));
  }, 200);
}
const asked = /^#layer-(\d+)$/.exec(location.hash);
choose(asked ? Number(asked[1]) : first, false);

// The end of the text is what the answer follows.
const pane = document.querySelector(".scroll.lens");
const begins = document.getElementById("begins");
const toEnd = () => {
  pane.scrollLeft = pane.scrollWidth;
  begins.hidden = pane.scrollWidth <= pane.clientWidth;
};
toEnd();
window.addEventListener("load", toEnd);  // once all is laid out
pane.tabIndex = 0;

// Over a cell: the most probable tokens.
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
tip.role = "tooltip";
document.body.append(tip);
const text = (name, words, className = "") => Object.assign(document.createElement(name), { textContent: words, className });
function show(cell) {
  const depth = rows.indexOf(cell.parentNode), place = cell.cellIndex - 2;
  const [found, divergence, rank] = tops[depth][place];
  const head = text("p", `${depth ? `after layer ${depth - 1}` : "the embedding"}, after “${tokens[place]}”`);
  const list = document.createElement("table"), body = list.createTBody();
  list.className = "bars tops";
  for (const [token, probability] of found) {
    const row = body.insertRow(), track = text("span", "", "filled"), fill = document.createElement("i");
    fill.style.width = `${100 * probability}%`;
    track.append(fill);
    row.append(text("th", token));
    row.insertCell().append(track);
    row.append(text("td", probability.toFixed(3), "number"));
  }
  const foot = text("p", `divergence ${divergence.toFixed(2)} nats · the model's own choice is number ${rank}`, "eyebrow");
  tip.replaceChildren(head, list, foot);
  tip.hidden = false;
  const at = cell.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, innerWidth - tip.offsetWidth - 8));
  const above = at.bottom + tip.offsetHeight + 8 > innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${above ? Math.max(8, at.top - tip.offsetHeight - 6) : at.bottom + 6}px`;
}
table.addEventListener("mouseover", (event) => {
  const cell = event.target.closest(".cell");
  if (cell) show(cell); else tip.hidden = true;
});
table.addEventListener("mouseleave", () => (tip.hidden = true));
pane.addEventListener("scroll", () => (tip.hidden = true));
