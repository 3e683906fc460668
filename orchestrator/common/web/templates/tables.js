"use strict";
// A column sorts by the first number in its cells, or as text.
const number = (text) => {
  const found = text.replaceAll("−", "-").replaceAll(",", "").match(/-?\d+(\.\d+)?(e[+-]?\d+)?/i);
  return found && /^[^a-z]*$/i.test(text.slice(0, found.index)) ? Number(found[0]) : null;
};
const value = (row, column) => row.cells[column].innerText.trim();
function sort(head) {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const direction = head.ariaSort === "ascending" ? "descending" : "ascending";
  for (const other of head.parentNode.cells) other.ariaSort = null;
  head.ariaSort = direction;
  const order = (a, b) => {
    const [x, y] = [value(a, column), value(b, column)], [m, n] = [number(x), number(y)];
    if ((m === null) !== (n === null)) return m === null ? 1 : -1;  // unknown values stay last
    const compared = m === null ? x.localeCompare(y) : m - n;
    return direction === "ascending" ? compared : -compared;
  };
  body.append(...[...body.rows].sort(order));
}
for (const button of document.querySelectorAll("table.sorts th button")) {
  button.addEventListener("click", () => sort(button.closest("th")));
}

// A definition opens beside its mark; without this script the mark links to the glossary.
const box = document.getElementById("definition");
let asked = null;  // the mark that opened the definition
box.addEventListener("toggle", (event) => event.newState === "closed" && asked?.focus({ preventScroll: true }));
for (const mark of document.querySelectorAll("a.define")) {
  mark.addEventListener("click", (event) => {
    if (!box.showPopover) return;
    event.preventDefault();
    const term = document.querySelector(mark.getAttribute("href")), list = document.createElement("dl");
    list.append(...[...term.children].map((child) => child.cloneNode(true)));
    box.replaceChildren(list);
    asked = mark;
    box.showPopover();
    const at = mark.getBoundingClientRect();
    box.style.left = `${scrollX + Math.max(8, Math.min(at.left, innerWidth - box.offsetWidth - 16))}px`;
    const below = at.bottom + 6 + box.offsetHeight < innerHeight;
    box.style.top = `${scrollY + (below ? at.bottom + 6 : Math.max(8, at.top - 6 - box.offsetHeight))}px`;
    box.focus({ preventScroll: true });
  });
}

// Wide tables can also be scrolled by keyboard.
for (const place of document.querySelectorAll(".scroll")) {
  if (place.scrollWidth > place.clientWidth) place.tabIndex = 0;
}
