"use strict";
const root = document.documentElement;

// Light or dark: what the system says, until the button is pressed.
const dark = () =>
  root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const theme = document.createElement("button");
theme.className = "theme";
theme.type = "button";
const name = () => {
  theme.textContent = dark() ? "Light" : "Dark";
  theme.setAttribute("aria-label", `Show the page ${dark() ? "light" : "dark"}`);
};
theme.addEventListener("click", () => {
  root.dataset.theme = dark() ? "light" : "dark";
  name();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
name();
document.querySelector("header").append(theme);

// What a cell is sorted by: its number, else its text; what has none comes last either way.
const key = (cell) => (cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v));
const missing = (value) => value === "" || value === "–" || value === "emulated" || Number.isNaN(value);
function order(a, b, sign) {
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), undefined, { numeric: true });
}
function sort(table, header, column) {
  const up = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].map((row) => [key(row.cells[column]), row]);
  rows.sort((a, b) => order(a[0], b[0], up ? 1 : -1));
  table.tBodies[0].append(...rows.map((row) => row[1]));
}
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(table, header, column));
    header.append(button);
  });
}

// Long tables show what contains every word that is typed.
for (const table of document.querySelectorAll("table.filtered")) {
  const input = document.createElement("input");
  input.className = "filter";
  input.type = "search";
  input.placeholder = "Show only rows with …";
  input.setAttribute("aria-label", "Show only rows that contain these words");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  table.closest(".wide").before(input);
}
