"use strict";
const place = document.getElementById("experiments");
function card(one) {
  const bad = one.problem || one.severities?.critical;
  const node = made("article", `card${bad ? " trouble" : one.is_live ? " runs" : ""}`), link = made("a"), bar = made("div", "progress");
  link.href = one.href;
  link.append(made("h2", "", one.name), made("p", "note", one.place));
  if (one.question) link.append(made("p", "", one.question));
  if (one.total) {
    progress(bar, one.counts, one.share);
    const left = one.left === null ? "" : ` · about ${duration(one.left)} left`;
    link.append(bar, made("p", "", `${percent(one.share)} of ${one.total.toLocaleString("en")} cells · ${counted(one.counts)}${left}`));
  }
  if (one.problem) link.append(made("p", "problem", one.problem));
  node.append(link);
  return node;
}
follow((state) => keep(place, state.experiments, (one) => one.href, card), (state) => state.experiments.some((one) => one.is_live));
