"use strict";
// The page holds figures and tables compressed and unpacks each when it is needed.
const parts = {};
async function unpack(id) {
  const text = document.getElementById(id).textContent;
  const packed = Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}
const once = (id) => (parts[id] ??= unpack(id));

// Figures take their colours from the page, light or dark.
function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(["ink", "grid", "line", "ground"].map((k) => [k, style.getPropertyValue(`--${k}`).trim()]));
}
function themed(layout) {
  const { ink, grid, line, ground } = colours();
  const axis = { gridcolor: grid, linecolor: line, zerolinecolor: line };
  const axes = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
  return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { ...layout.font, color: ink },
    hoverlabel: { ...layout.hoverlabel, bgcolor: ground, bordercolor: line, font: { color: ink } },
    ...Object.fromEntries(axes.map((key) => [key, { ...layout[key], ...axis }])) };
}
let plotly;
function load() {
  return (plotly ??= once("plotly").then((code) => {
    const script = document.createElement("script");
    script.textContent = code;
    document.head.append(script);
  }));
}
load();
const drawn = new Map();
function draw(node) {
  if (!drawn.has(node)) drawn.set(node, drawOnce(node));
  return drawn.get(node);
}
async function drawOnce(node) {
  try {
    const [, text] = await Promise.all([load(), once(`figure-${node.dataset.figure}`)]);
    const { data, layout } = JSON.parse(text);
    const menus = layout.updatemenus ?? [];
    delete layout.updatemenus;
    const config = { responsive: true, displayModeBar: false, showSendToCloud: false };
    await Plotly.newPlot(node, data, { ...layout, ...themed(layout) }, config);
    control(node, menus);
  } catch (error) {
    node.textContent = `This figure cannot be drawn here (${error.message}); figures/${node.dataset.figure}.html may.`;
    node.style.height = "auto";
  }
  node.dataset.drawn = "true";
}

// Form controls for what Plotly offers to the mouse only: menus, arms hidden in the legend, and the picture.
function control(node, menus) {
  const place = document.querySelector(`.controls[data-for='${node.dataset.figure}']`);
  for (const menu of menus) {
    const select = document.createElement("select");
    select.ariaLabel = "Show";
    select.append(...menu.buttons.map((button) => new Option(button.label)));
    select.addEventListener("change", () => Plotly.restyle(node, ...menu.buttons[select.selectedIndex].args));
    place.append(select);
  }
  const waiting = node.data.map((trace, i) => [trace, i]).filter(([trace]) => trace.visible === "legendonly");
  for (const name of new Set(waiting.map(([trace]) => trace.name))) {
    const label = document.createElement("label"), check = document.createElement("input");
    check.type = "checkbox";
    label.append(check, ` ${name}`);
    const own = waiting.filter(([trace]) => trace.name === name).map(([, i]) => i);
    check.addEventListener("change", () => Plotly.restyle(node, { visible: check.checked || "legendonly" }, own));
    place.append(label);
  }
  const save = document.createElement("button");
  save.textContent = "Save as PNG";
  save.addEventListener("click", () => Plotly.downloadImage(node, { format: "png", filename: node.dataset.figure, scale: 2 }));
  place.append(save);
}
const plots = [...document.querySelectorAll(".plot")];
// Figures near the window are drawn at once, the others one by one after them, so that all can be printed.
const near = new IntersectionObserver(
  (entries) => entries.filter((e) => e.isIntersecting).forEach((e) => { near.unobserve(e.target); draw(e.target); }),
  { rootMargin: "300px" });
plots.forEach((node) => near.observe(node));
const pause = () => new Promise((done) => setTimeout(done));
async function drawAll() {
  for (const node of plots) {
    await pause();
    await draw(node);
  }
}
drawAll();
const print = matchMedia("print");
const PAPER = 840;  // width of an A4 page, pixels
function repaint() {
  const width = print.matches ? { width: PAPER } : { width: null, autosize: true };
  plots.filter((n) => n.dataset.drawn).forEach((n) => Plotly.relayout(n, { ...themed(n.layout), ...width }));
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
print.addEventListener("change", repaint);
addEventListener("beforeprint", () => plots.forEach(draw));

for (const button of document.querySelectorAll("[data-table]")) {
  button.addEventListener("click", async () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([await once(`table-${button.dataset.table}`)], { type: "text/csv" }));
    link.download = `${button.dataset.table}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}
