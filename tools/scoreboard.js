// Hides and sorts the scoreboard's rows. The choice stands in the address, so that it can be sent to somebody.
const form = document.querySelector(".gated-filter"), body = document.querySelector(".gated-claims tbody");
const rows = [...body.rows], status = form.querySelector("[role=status]"), heads = [...document.querySelectorAll("th[data-sort]")];
const kinds = [...form.querySelectorAll("[type=checkbox]")], { words, chapter } = form.elements;
const text = rows.map((row) => row.textContent.toLowerCase());
let sorted = "place", down = false;

const keys = {
  place: (i) => i,
  claim: (i) => rows[i].cells[1].textContent,
  measured: (i) => number(rows[i].cells[2].dataset.order),
  seeds: (i) => number(rows[i].cells[3].dataset.order),
  verdict: (i) => kinds.findIndex((kind) => kind.value === rows[i].dataset.verdict),
};

function number(order) { return order === "" ? Infinity : +order; }

function filter() {
  const asked = words.value.toLowerCase().split(/\s+/).filter(Boolean), open = new Set(kinds.filter((kind) => kind.checked).map((kind) => kind.value));
  let shown = 0;
  rows.forEach((row, i) => {
    row.hidden = !open.has(row.dataset.verdict) || (chapter.value && row.dataset.chapter !== chapter.value) || !asked.every((word) => text[i].includes(word));
    shown += !row.hidden;
  });
  status.textContent = `${shown} of ${rows.length} claims`;
}

// Stable, and what has no number stays at the end in both directions.
function sort() {
  const key = rows.map((_, i) => keys[sorted](i)), last = (x) => x === Infinity;
  const order = rows.map((_, i) => i).sort((a, b) => {
    if (last(key[a]) || last(key[b])) return last(key[a]) - last(key[b]) || a - b;
    const less = typeof key[a] === "string" ? key[a].localeCompare(key[b], "en") : key[a] - key[b];
    return (down ? -less : less) || a - b;
  });
  body.append(...order.map((i) => rows[i]));
  for (const head of heads) {
    if (head.dataset.sort === sorted) head.setAttribute("aria-sort", down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
}

function write() {
  const said = new URLSearchParams();
  if (words.value) said.set("words", words.value);
  if (chapter.value) said.set("chapter", chapter.value);
  const open = kinds.filter((kind) => kind.checked).map((kind) => kind.value);
  if (open.length < kinds.length) said.set("verdict", open.join());
  if (sorted !== "place" || down) said.set("sort", (down ? "-" : "") + sorted);
  history.replaceState(null, "", said.size ? `#?${said}` : location.pathname);
}

function read() {
  if (!location.hash.startsWith("#?")) return;
  const said = new URLSearchParams(location.hash.slice(2)), by = said.get("sort") ?? "place";
  words.value = said.get("words") ?? "";
  chapter.value = said.get("chapter") ?? "";
  if (chapter.selectedIndex < 0) chapter.value = "";
  const open = said.get("verdict")?.split(",");
  for (const kind of kinds) kind.checked = !open || open.includes(kind.value);
  down = by.startsWith("-");
  sorted = by.replace("-", "") in keys ? by.replace("-", "") : "place";
}

for (const head of heads) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    down = sorted === head.dataset.sort && !down;
    sorted = head.dataset.sort;
    sort();
    write();
  });
}
form.addEventListener("input", () => { filter(); write(); });
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => { read(); filter(); sort(); });
form.hidden = false;
read();
filter();
sort();
