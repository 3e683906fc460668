"use strict";
const OPEN = 24, WORST = 6, NAMED = 12;  // cells up to which all groups are open; alerts not folded; arms of a legend
const $ = (id) => document.getElementById(id);
const table = document.querySelector("table.cells"), grid = document.querySelector(".grid"), bodies = {};
let state = null;
const named = (cell) => `${state.arms[cell.arm].name}/seed=${cell.seed}`;
const anchor = (cell) => `${cell.arm}/${cell.seed}`;
const fixed = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−"));

function head() {
  say($("question"), state.question || state.name);
  say($("place"), state.question ? state.name : state.place);
  say($("done"), `${percent(state.share)} of ${state.total.toLocaleString("en")} ${state.total === 1 ? "cell" : "cells"}: ${counted(state.counts)}`);
  say($("left"), state.left === null ? (state.is_live ? "not known yet" : "nothing runs any more") : `about ${duration(state.left)}`);
  progress($("progress"), state.counts, state.share);
  const arms = state.arms.length > NAMED ? [] : state.arms;
  keep($("arms"), arms.length ? arms : [{ name: `${state.arms.length} of them, named below` }], (arm) => arm.name, (arm) => {
    const node = made("span", "arm");
    node.append(...(arm.colour ? [swatch(arm)] : []), arm.name);
    return node;
  });
  for (const id of ["comparing", "comparison"]) $(id).hidden = !state.comparison;
  say($("comparison"), state.comparison);
  document.title = `${state.is_live ? `${percent(state.share)} ` : ""}${state.name}`;
}

function alert(one) {
  const [first, ...log] = one.text.split("\n  "), node = made("li"), text = made("div", one.severity === "note" ? "note" : "", first);
  if (log.length) text.append(made("pre", "", log.join("\n")));
  node.append(made("span", `severity ${one.severity}`, one.severity), made("span", "of", one.cell), text);
  return node;
}
function showAlerts() {
  const section = $("alerts"), [worst, rest] = section.querySelectorAll("ul"), folded = section.querySelector("details");
  const first = state.alerts.filter((one) => one.severity !== "note").slice(0, WORST), others = state.alerts.filter((one) => !first.includes(one));
  const key = (one) => `${one.severity} ${one.cell} ${one.text}`, n = others.length + state.more_alerts;
  section.hidden = !state.alerts.length;
  keep(worst, first, key, alert);
  keep(rest, others, key, alert);
  folded.hidden = !n;
  say(folded.querySelector("summary"), `${n} more${others.every((one) => one.severity === "note") ? ", which only note something" : ""}${state.more_alerts ? `, of which ${others.length} are listed` : ""}`);
}

// The grid: a square per cell, filled as far as it has come.
function square(cell, node = made("button")) {
  const words = [named(cell), cell.state, percent(cell.share)];
  if (cell.loss !== null) words.push(`loss ${fixed(cell.loss)}`);
  node.className = `square ${KINDS[cell.state]}`;
  node.style.setProperty("--share", cell.state === "done" ? "100%" : `${100 * cell.share}%`);
  node.title = node.ariaLabel = words.join(" · ");
  node.tabIndex = -1;  // the rows below say the same to a keyboard
  node.onclick = () => choose(anchor(cell));
  return node;
}
function showGrid() {
  grid.classList.toggle("many", state.arms.length > 6);
  grid.classList.toggle("few", state.total <= OPEN);
  const blocks = state.arms.map((arm, index) => ({ arm, of: state.cells.filter((cell) => cell.arm === index) }));
  keep(grid, blocks.map(({ arm }) => arm), (arm) => arm.name, (arm) => {
    const block = made("div", "arm-block"), name = made("div", "arm-name");
    name.title = arm.name;
    name.append(swatch(arm), made("span", "cut", arm.name), made("span", "eyebrow"));
    block.append(name, made("div", "squares"));
    return block;
  });
  blocks.forEach(({ of }, index) => {
    const block = grid.children[index];
    say(block.querySelector(".eyebrow"), ` ${of.filter((cell) => cell.state === "done").length} of ${of.length} done`);
    keep(block.querySelector(".squares"), of, anchor, square);
  });
  keep($("states"), state.counts.map(([one]) => one), (one) => one, (one) => {
    const node = made("span"), key = made("i", `square ${KINDS[one]}`);
    key.style.setProperty("--share", one === "done" ? "100%" : one === "running" ? "55%" : "0%");
    node.append(key, one);
    return node;
  });
}

// The table: a group of rows per kind of state; the rows of a folded group are not made.
function row(cell, node = made("tr")) {
  const kind = KINDS[cell.state], name = made("th", "cell-name"), bar = made("span", `bar ${kind}`);
  const td = (content, className = "number") => { const one = made("td", className); one.append(content); return one; };
  name.scope = "row";
  name.title = named(cell);
  name.append(made("span"));
  name.firstChild.append(swatch(state.arms[cell.arm], 14), made("span", "cut", state.arms[cell.arm].name), `/seed=${cell.seed}`);
  bar.style.setProperty("--share", `${100 * cell.share}%`);
  const age = td("");
  if (cell.written) age.dataset.written = cell.written;
  node.replaceChildren(
    name, td(made("span", `state ${kind}`, cell.state), ""), td(bar, ""), td(cell.steps ? `${cell.step}/${cell.steps}` : `${cell.step}`),
    td(fixed(cell.loss)), td(spark(cell.lately), ""), td(fixed(cell.heldout)), td(cell.left ? duration(cell.left) : ""), age,
    td(cell.read === undefined ? "–" : `${cell.read}`), td(strip(cell.roles ?? []), ""), td(cell.changed ?? "–"));
  node.dataset.cell = anchor(cell);
  return node;
}
function spark(values) {
  if (values.length < 2) return "";
  const low = Math.min(...values), span = Math.max(...values) - low || 1, node = drawn("svg", { class: "spark", width: 52, height: 16, "aria-hidden": "true" });
  node.append(drawn("path", { d: values.map((v, i) => `${i ? "L" : "M"}${2 + (48 * i) / (values.length - 1)} ${14 - (12 * (v - low)) / span}`).join("") }));
  return node;
}
function strip(roles) {
  const node = made("span", "strip");
  for (const role of roles) {
    const [letter, background] = state.roles[role], one = made("span", "", letter);
    one.style.background = background;
    one.title = role;
    node.append(one);
  }
  return roles.length ? node : "–";
}
function group(title, of) {
  if (bodies[title]) return bodies[title];
  const headed = made("tbody", "of-group"), rows = made("tbody"), button = made("button"), line = made("tr", "group"), cell = made("th");
  const open = state.total <= OPEN || title === "Need you" || title === "Running";
  rows.hidden = !open;
  button.ariaExpanded = String(open);
  button.onclick = () => unfold(title, rows.hidden);
  cell.colSpan = table.tHead.rows[0].cells.length;
  cell.append(button);
  line.append(cell);
  headed.append(line);
  table.append(headed, rows);
  return (bodies[title] = { headed, rows, button });
}
function unfold(title, open) {
  bodies[title].rows.hidden = !open;
  bodies[title].button.ariaExpanded = String(open);
  showTable();
}
function showTable() {
  for (const [title, states] of Object.entries(state.groups)) {
    const of = state.cells.filter((cell) => states.includes(cell.state)), { headed, rows, button } = group(title, of);
    headed.hidden = !of.length;
    say(button, `${title} · ${of.length.toLocaleString("en")}`);
    keep(rows, rows.hidden ? [] : of, anchor, row);
  }
  keep($("roles"), state.legend, ([role]) => role, ([role, letter, background]) => {
    const node = made("span"), one = made("span", "role", letter);
    one.style.background = background;
    node.append(one, role);
    return node;
  });
  $("roles").hidden = !state.cells.some((cell) => cell.roles);
}
function choose(key) {
  const cell = state.cells.find((one) => anchor(one) === key);
  unfold(Object.keys(state.groups).find((title) => state.groups[title].includes(cell.state)), true);
  table.querySelectorAll("tr.chosen").forEach((one) => one.classList.remove("chosen"));
  const found = [...table.querySelectorAll("tr[data-cell]")].find((one) => one.dataset.cell === key);
  found.classList.add("chosen");
  found.scrollIntoView({ block: "center", behavior: "smooth" });
}
function ages() {
  for (const node of table.querySelectorAll("[data-written]")) {
    say(node, `${duration(Math.max(0, (Date.now() + ahead) / 1000 - node.dataset.written))} ago`);
  }
}

let charted = "";
function showLosses(again = false) {
  const text = JSON.stringify([state.losses, state.arms]);
  if (text === charted && !again) return;
  charted = text;
  $("losses").hidden = !state.losses.train.length && !state.losses.heldout.length;
  for (const node of document.querySelectorAll(".chart")) chart(node, state.losses[node.dataset.kind], state.losses.steps, state.arms);
  $("lines").hidden = state.arms.length > NAMED;  // the grid names them
  keep($("lines"), state.arms, (arm) => arm.name, (arm) => {
    const node = made("span");
    node.append(swatch(arm), arm.name);
    return node;
  });
}

let compared = null;
function showResults() {
  const section = $("so-far"), links = [], place = section.querySelector(".results");
  const { html, problem } = state.so_far, done = state.counts.find(([one]) => one === "done")?.[1];
  const over = !state.is_live && state.counts.every(([one]) => one === "done");
  say(section.querySelector("h2 span"), over ? "The report" : "The report so far");
  if (html) links.push({ href: "so-far.html", text: over ? "the whole report" : "the whole report so far" });
  if (state.report) links.push({ href: "report.html", text: `report.html, written ${new Date(1000 * state.report).toLocaleString()}` });
  keep(section.querySelector(".links"), links, (link) => link.href, (link) => Object.assign(made("a", "", link.text), { href: link.href }));
  const waits = done ? `${done.toLocaleString("en")} ${done === 1 ? "cell is" : "cells are"} done, and being compared.` : "No cell is done yet: results follow as soon as one is.";
  say($("compared"), problem ?? (html ? "" : waits));
  if (html && html !== compared) {
    place.innerHTML = html;  // from a template that escapes every value
    place.querySelectorAll("table.sorts th button").forEach((button) => button.addEventListener("click", () => sort(button.closest("th"))));
  }
  compared = html ?? compared;
}

follow((now) => {
  $("problem").hidden = !now.problem;
  say($("problem"), now.problem ?? "");
  if (now.problem) { say($("question"), now.question || $("question").textContent); return; }  // the page keeps what it had
  state = now;
  head();
  showAlerts();
  showGrid();
  showTable();
  showLosses();
  showResults();
  ages();
}, (now) => Boolean(now.is_live));
setInterval(() => state && ages(), 1000);
addEventListener("resize", () => state && showLosses(true));
