// Charts are Vega-Lite specifications in the page; this draws them in the page's colours and wires theme, selection and resize.
"use strict";
const specs = JSON.parse(document.getElementById("specs").textContent);
const views = {};
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function theme() {
  const ink = css("--ink"), soft = css("--soft"), line = css("--line");
  return { background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
    axis: { labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, gridOpacity: .6, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 },
    legend: { labelColor: soft, titleColor: soft, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 }, title: { color: ink, fontSize: 14, anchor: "start" }, text: { color: ink }, rule: { color: soft } };
}
async function draw() {
  for (const [id, spec] of Object.entries(specs)) {
    const place = document.getElementById(id);
    if (!place) continue;
    if (views[id]) views[id].finalize();
    const result = await vegaEmbed(place, spec, { actions: false, renderer: "svg", config: theme(), tooltip: { theme: document.documentElement.dataset.theme === "dark" ? "dark" : "light" } });
    views[id] = result;
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
  draw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (!document.documentElement.dataset.theme) draw(); });
addEventListener("beforeprint", () => { for (const d of document.querySelectorAll("details")) d.open = true; });
if (select) pick(Number(select.value));
draw();
