"use strict";
const NUMBER = /^(?:[a-z ]+: )?([<>]?)\s*([-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)(?!\w)/i;

// What a cell sorts by: numbers, then what was not reached (more seeds first), then texts; null is always last.
function key(text) {
  text = text.trim();
  const [, sign, digits] = text.match(NUMBER) || [];
  if (digits) return [Number(digits.replaceAll(",", "")), sign === "<" ? -1 : sign === ">" ? 1 : 0];
  if (text.startsWith("not reached")) return [Infinity, -(parseInt(text.split("(")[1]) || 0)];
  return text === "" || text === "-" || text === "missing" ? null : text;
}

function compare(a, b) {
  if (Array.isArray(a) && Array.isArray(b)) return a[0] === b[0] ? a[1] - b[1] : a[0] < b[0] ? -1 : 1;
  if (Array.isArray(a) || Array.isArray(b)) return Array.isArray(a) ? -1 : 1;
  return a.localeCompare(b, "en", { numeric: true });
}

// Ascending, descending, as written.
function sort(th) {
  const table = th.closest("table"), tbody = table.tBodies[0], place = th.cellIndex;
  const next = { ascending: "descending", descending: null }, now = th.getAttribute("aria-sort");
  const order = now in next ? next[now] : "ascending";
  for (const other of th.parentNode.cells) other.removeAttribute("aria-sort");
  if (order) th.setAttribute("aria-sort", order);
  const rows = [...tbody.rows].map((row, at) => {
    row.dataset.at ??= at;
    return { row, at: Number(row.dataset.at), key: key(row.cells[place].textContent) };
  });
  rows.sort((a, b) => {
    if (!order) return a.at - b.at;
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.at - b.at;
    return (order === "ascending" ? 1 : -1) * compare(a.key, b.key) || a.at - b.at;
  });
  tbody.append(...rows.map(({ row }) => row));
}

for (const th of document.querySelectorAll(".sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...th.childNodes);
  button.addEventListener("click", () => sort(th));
  th.append(button);
}

if (innerWidth < 1100) for (const part of document.querySelectorAll("nav details")) part.open = false;

// A row of a csv that a link leads to is unfolded, and its values are written out, those that were clicked marked.
const cells = (line) => [...line.matchAll(/(?:^|,)(?:"((?:[^"]|"")*)"|([^,]*))/g)].map(
  ([, quoted, plain]) => quoted?.replaceAll('""', '"') ?? plain);
let clicked = [];

function prints(shown, value) {
  const [digits, exponent = "0"] = shown.toLowerCase().split("e");
  const unit = 10 ** (Number(exponent) - (digits.split(".")[1] || "").length);
  return value !== "" && Math.abs(Number(value) - Number(shown)) <= 0.5 * unit * (1 + 1e-9) + 5e-6 * Math.abs(value);
}

function arrive() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  document.querySelector(".record")?.remove();
  if (target.parentNode.tagName === "PRE") {
    const record = document.createElement("div"), values = cells(target.textContent);
    record.className = "record";
    cells(target.parentNode.querySelector("b").textContent).forEach((name, at) => {
      const line = document.createElement("p"), label = document.createElement("i");
      const value = document.createElement(clicked.some((shown) => prints(shown, values[at])) ? "mark" : "span");
      label.textContent = name;
      value.textContent = values[at];
      line.append(label, value);
      record.append(line);
    });
    target.parentNode.before(record);
    target.scrollIntoView({ block: "nearest" });
    record.parentNode.scrollIntoView();
  } else target.scrollIntoView();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link) return;
  const text = link.textContent.replaceAll(/(\d),(?=\d{3})/g, "$1");
  clicked = [...text.matchAll(/(?:(?<!\d)[-+])?\d+(?:\.\d+)?(?:e[-+]?\d+)?/gi)].map(String);
  if (link.hash === location.hash) arrive();
});
addEventListener("hashchange", arrive);
arrive();
