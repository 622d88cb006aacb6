"use strict";
const all = (query, from = document) => [...from.querySelectorAll(query)];

// --- sorting: a click on a heading, numbers by their value, what has none last -------------------------------------------
function keyOf(row, column, numeric) {
  const cell = row.cells[column];
  if (!numeric) return cell.textContent;
  return Number.parseFloat(cell.dataset.sort ?? cell.textContent);
}
function sort(button) {
  const head = button.closest("th"), table = button.closest("table"), body = table.tBodies[0];
  const numeric = button.dataset.kind === "number";
  const down = head.getAttribute("aria-sort") === "ascending";
  const rows = [...body.rows].map((row) => [keyOf(row, head.cellIndex, numeric), row]);
  const order = new Intl.Collator(undefined, { numeric: true }).compare;
  rows.sort(([a], [b]) => {
    if (numeric && (Number.isNaN(a) || Number.isNaN(b))) return Number.isNaN(a) - Number.isNaN(b);
    return (numeric ? a - b : order(a, b)) * (down ? -1 : 1);
  });
  all("th", table.tHead).forEach((th) => th.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...rows.map(([, row]) => row));
  reveal(table);
}

// --- of very many rows that match, the first ones stand open until all are asked for ------------------------------------
function reveal(table) {
  const form = document.querySelector(`form[data-table="${table.id}"]`);
  let room = form ? Number(form.dataset.rows) : Infinity;
  for (const row of table.tBodies[0].rows) row.hidden = row.dataset.out === "1" || room-- <= 0;
}
function showAll(button) {
  const form = button.closest("form");
  form.dataset.rows = "Infinity";
  reveal(document.getElementById(form.dataset.table));
  button.hidden = true;
}

// --- filtering: what is filtered out pales in the charts too -------------------------------------------------------------
function filter(form) {
  const table = document.getElementById(form.dataset.table);
  const words = form.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = all("select", form).filter((s) => s.value).map((s) => [Number(s.dataset.column), s.value]);
  const hidden = new Set();
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    const shown = words.every((word) => text.includes(word)) &&
      chosen.every(([column, value]) => row.cells[column].textContent === value);
    row.dataset.out = shown ? "0" : "1";
    if (!shown) hidden.add(row.dataset.case ?? row);
  }
  reveal(table);
  const count = table.tBodies[0].rows.length;
  form.querySelector("output").textContent = `${count - hidden.size} of ${count} ${form.dataset.what}`;
  const source = table.id.replace("cases-", "");
  for (const mark of all(`#source-${source} svg [data-case]`)) {
    mark.classList.toggle("off", hidden.has(`${source}-${mark.dataset.case}`));
  }
}

// --- tips ----------------------------------------------------------------------------------------------------------------
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
function point(event) {
  const mark = event.target.closest?.("[data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - box.width - 4))}px`;
  tip.style.top = `${event.clientY + 16 + box.height < innerHeight ? event.clientY + 16 : event.clientY - box.height - 8}px`;
}

// --- downloads -----------------------------------------------------------------------------------------------------------
const LOOKS = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linecap",
  "paint-order", "opacity", "font-size", "font-family", "font-weight"];
function standalone(svg) {
  const copy = svg.cloneNode(true), box = svg.viewBox.baseVal;
  const from = [svg, ...all("*", svg)], to = [copy, ...all("*", copy)];
  from.forEach((element, i) => {
    const look = getComputedStyle(element);
    for (const name of LOOKS) to[i].style.setProperty(name, look.getPropertyValue(name));
    to[i].removeAttribute("class");
  });
  copy.setAttribute("width", box.width);
  copy.setAttribute("height", box.height);
  copy.style.background = getComputedStyle(document.body).backgroundColor;
  return new XMLSerializer().serializeToString(copy);
}
function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/[^\w.+-]+/g, "-");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
async function png(text, box) {
  const picture = new Image();
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await picture.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * box.width, 2 * box.height];
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}
async function download(button) {
  const figure = button.closest("figure"), svg = figure.querySelector("svg"), name = figure.querySelector("h3").textContent;
  const text = standalone(svg);
  if (button.dataset.download === "svg") save(new Blob([text], { type: "image/svg+xml" }), `${name}.svg`);
  else save(await png(text, svg.viewBox.baseVal), `${name}.png`);
}
async function data(button) {
  const held = document.getElementById(button.dataset.save);
  let blob = new Blob([held.textContent], { type: "application/json" });
  if (held.type === "application/gzip") {
    const bytes = Uint8Array.from(atob(held.textContent), (c) => c.charCodeAt(0));
    const text = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    blob = await new Response(text).blob();
  }
  save(blob, held.dataset.name);
}

for (const form of all("form.filters")) {
  form.addEventListener("input", () => filter(form));
  form.addEventListener("submit", (event) => event.preventDefault());
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.kind) sort(button);
  else if (button?.dataset.more !== undefined) showAll(button);
  else if (button?.dataset.download) download(button);
  else if (button?.dataset.save) data(button);
});
document.addEventListener("pointermove", point);
document.addEventListener("pointerdown", point);
addEventListener("beforeprint", () => all("details").forEach((d) => { d.open = true; }));
