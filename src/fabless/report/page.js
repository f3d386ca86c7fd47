// Charts are Vega-Lite specifications in the page; this draws them in the page's colours and wires theme and selection.
"use strict";
const specs = JSON.parse(document.getElementById("specs").textContent);
// Colours are the page's own properties, so that theme and paper change them without drawing again.
const config = { background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
  axis: { labelColor: "var(--soft)", titleColor: "var(--soft)", gridColor: "var(--line)", domainColor: "var(--line)", tickColor: "var(--line)", gridOpacity: .6, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 },
  legend: { layout: { bottom: { direction: innerWidth < 600 ? "vertical" : "horizontal", anchor: "start" } }, labelColor: "var(--soft)", titleColor: "var(--soft)", symbolFillColor: "var(--soft)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 },
  text: { color: "var(--ink)" }, rule: { color: "var(--soft)" } };
async function draw() {
  for (const [id, spec] of Object.entries(specs)) {
    const place = document.getElementById(id);
    if (!place) continue;
    const result = await vegaEmbed(place, spec, { actions: false, renderer: "svg", config });
    if (id === "frontier") result.view.addEventListener("click", (event, item) => { if (item && item.datum && item.datum.point !== undefined) pick(item.datum.point); });
  }
  document.documentElement.dataset.drawn = "yes";
}
function pick(point) {
  const sheets = JSON.parse(document.getElementById("sheets").textContent);
  const sheet = sheets[point];
  const box = document.getElementById("picked");
  if (!sheet || !box) return;
  box.replaceChildren();
  const title = document.createElement("h3"); title.textContent = sheet.title; box.append(title);
  const list = document.createElement("dl"); list.className = "sheet";
  for (const [term, value] of sheet.rows) { const dt = document.createElement("dt"), dd = document.createElement("dd"); dt.textContent = term; dd.textContent = value; list.append(dt, dd); }
  box.append(list);
  const select = document.getElementById("pick"); if (select) select.value = String(point);
}
const select = document.getElementById("pick");
if (select) select.addEventListener("change", () => pick(Number(select.value)));
const button = document.getElementById("theme");
if (button) button.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
addEventListener("beforeprint", () => { for (const d of document.querySelectorAll("details")) d.open = true; });
if (select) pick(Number(select.value));
draw();
