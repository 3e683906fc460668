"use strict";
const EVERY = 2000, HIDDEN = 20000;  // ms between two questions; of a page that nobody sees
const KINDS = { failed: "bad", lost: "bad", zombie: "bad", missing: "bad", running: "go", suspended: "care-state",
  preempted: "care-state", stopped: "care-state", queued: "wait", next: "wait next", done: "good" };
const made = (name, className = "", text = "") => Object.assign(document.createElement(name), { className, textContent: text });
const percent = (share) => `${Math.floor(100 * share)} %`;  // 100 % is all of it
function duration(seconds) {
  for (const [unit, one] of [["days", 86400], ["hours", 3600], ["minutes", 60]]) {
    if (seconds >= 2 * one) return `${Number((seconds / one).toPrecision(2))} ${unit}`;
  }
  return `${Math.round(seconds)} seconds`;
}

// Text is only set where it differs, so that a selection stays.
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// The children of a node become those that `make` returns for the items; one whose item is as before is kept.
function keep(node, items, key, make) {
  const known = (node.known ??= new Map()), wanted = new Set(items.map(key));
  for (const [name, entry] of known) if (!wanted.has(name)) { entry.node.remove(); known.delete(name); }
  let before = null;
  for (const item of items) {
    const name = key(item), text = JSON.stringify(item), entry = known.get(name);
    let child = entry?.node;
    if (entry?.text !== text) {
      child = make(item, child);
      if (entry && entry.node !== child) entry.node.replaceWith(child);
      known.set(name, { text, node: child });
    }
    const place = before ? before.nextSibling : node.firstChild;
    if (place !== child) node.insertBefore(child, place);
    before = child;
  }
}

// A bar with a part for each state, as long as the number of its cells; those that wait are the empty end.
const ALONG = ["good", "go", "care-state", "bad", "wait", "wait next"];
function progress(node, counts, share) {
  const rank = ([state]) => ALONG.indexOf(KINDS[state]);
  keep(node, [...counts].sort((a, b) => rank(a) - rank(b)), ([state]) => state, ([state, n]) => {
    const part = made("i", KINDS[state].includes("wait") ? "" : KINDS[state]);
    part.style.flexGrow = n;
    return part;
  });
  node.ariaLabel = `${percent(share)} of all steps`;
}
const counted = (counts) => counts.map(([state, n]) => `${n.toLocaleString("en")} ${state}`).join(" · ");

// Ask for the state again and again, and show one that has changed. `ahead`: by how much the server's clock is, in ms.
let ahead = 0;
function follow(show, isLive) {
  const pulse = document.getElementById("pulse");
  let tag = null, heard = null, timer = null;
  async function ask() {
    clearTimeout(timer);
    try {
      const answer = await fetch("state.json", { cache: "no-cache" });
      if (!answer.ok) throw new Error(answer.status);
      const state = await answer.json();
      ahead = Date.parse(answer.headers.get("Date")) - Date.now();
      heard = new Date();
      if (answer.headers.get("ETag") !== tag) show(state);
      tag = answer.headers.get("ETag");
      pulse.className = `pulse ${isLive(state) ? "live" : "over"}`;
      say(pulse, isLive(state) ? "live" : "nothing runs");
    } catch (error) {
      pulse.className = "pulse gone";
      say(pulse, heard ? `no answer since ${heard.toLocaleTimeString()}: was the server ended?` : "no answer");
    }
    document.documentElement.classList.toggle("stale", pulse.classList.contains("gone"));
    timer = setTimeout(ask, document.hidden ? HIDDEN : EVERY);
  }
  document.addEventListener("visibilitychange", () => document.hidden || ask());
  ask();
}
