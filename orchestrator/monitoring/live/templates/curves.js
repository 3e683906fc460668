"use strict";
// A chart of losses over steps: a thin line per cell, a thick one per arm.
const SVG = "http://www.w3.org/2000/svg", MARGIN = { left: 46, right: 10, top: 8, bottom: 26 }, EARLY = 0.05;
const DASHES = { solid: "", dash: "7 4", dashdot: "7 3 2 3", longdash: "12 4", longdashdot: "12 3 2 3" };
function drawn(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}
const swatch = (arm, width = 22) => {
  const node = drawn("svg", { width, height: 10, "aria-hidden": "true" });
  node.append(drawn("line", { x1: 0, x2: width, y1: 5, y2: 5, "stroke-width": 3.5, stroke: arm.colour, "stroke-dasharray": DASHES[arm.dash] }));
  return node;
};
const short = (step) => (step >= 1e6 ? `${step / 1e6}M` : step >= 1e4 ? `${step / 1e3}k` : step.toLocaleString("en"));

function chart(node, lines, steps, arms) {
  const width = node.clientWidth, height = node.clientHeight, late = EARLY * steps;
  const values = lines.flatMap((line) => line.points).filter(([step]) => step >= late).map(([, loss]) => loss);
  const shown = values.length ? values : lines.flatMap((line) => line.points.map(([, loss]) => loss));
  if (!shown.length || !width) { node.replaceChildren(made("p", "note", "Nothing is measured twice yet.")); return; }
  let low = shown.reduce((a, b) => Math.min(a, b)), high = shown.reduce((a, b) => Math.max(a, b));
  const room = (high - low || Math.abs(high) || 1) * 0.05;
  [low, high] = [low - room, high + room];
  const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
  const x = (step) => MARGIN.left + (step / (steps || 1)) * (right - MARGIN.left);
  const y = (loss) => bottom - ((loss - low) / (high - low)) * (bottom - MARGIN.top);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${lines.length} lines of losses from step 0 to ${steps}` });
  const clip = drawn("clipPath", { id: `clip-${node.dataset.kind}` });
  clip.append(drawn("rect", { x: MARGIN.left, y: MARGIN.top, width: right - MARGIN.left, height: bottom - MARGIN.top }));
  svg.append(clip);
  for (const loss of ticks(low, high, 5)) {
    svg.append(drawn("line", { class: "tick", x1: MARGIN.left, x2: right, y1: y(loss), y2: y(loss) }));
    svg.append(drawn("text", { x: MARGIN.left - 6, y: y(loss) + 4, "text-anchor": "end" }, loss));
  }
  const apart = ticks(0, steps || 1, width / 90);
  for (const step of apart) {
    svg.append(drawn("text", { x: x(step), y: bottom + 17, "text-anchor": step === apart[0] ? "start" : x(step) > right - 20 ? "end" : "middle" }, short(step)));
  }
  const averaged = new Set(lines.filter((line) => line.mean).map((line) => line.arm));
  const inside = drawn("g", { "clip-path": `url(#clip-${node.dataset.kind})` });
  for (const line of [...lines].sort((a, b) => (a.mean ?? false) - (b.mean ?? false))) {
    const path = line.points.map(([step, loss], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join("");
    inside.append(drawn("path", { d: path, stroke: arms[line.arm].colour, "stroke-dasharray": DASHES[arms[line.arm].dash],
      "stroke-width": line.mean ? 2.6 : 1.3, opacity: line.mean ? 1 : averaged.has(line.arm) ? 0.35 : 0.85 }));
  }
  const ring = drawn("circle", { class: "ring", r: 4, visibility: "hidden" });
  svg.append(inside, ring);
  node.replaceChildren(svg);
  point(node, svg, ring, lines, arms, x, y);
}

// Over the chart: the nearest point, its line, step and loss.
function point(node, svg, ring, lines, arms, x, y) {
  const tip = document.getElementById("tip");
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), [px, py] = [event.clientX - box.left, event.clientY - box.top];
    let best = null, least = 900;  // square of the pixels
    for (const line of lines) for (const [step, loss] of line.points) {
      const far = (x(step) - px) ** 2 + (y(loss) - py) ** 2;
      if (far < least) [best, least] = [{ line, step, loss }, far];
    }
    tip.hidden = !best;
    ring.setAttribute("visibility", best ? "visible" : "hidden");
    if (!best) return;
    ring.setAttribute("cx", x(best.step));
    ring.setAttribute("cy", y(best.loss));
    ring.setAttribute("stroke", arms[best.line.arm].colour);
    tip.replaceChildren(made("b", "", best.line.name), ` · step ${best.step.toLocaleString("en")} · ${best.loss.toFixed(4)}`);
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(8, event.clientY - tip.offsetHeight - 12)}px`;
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; ring.setAttribute("visibility", "hidden"); });
}
