"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);
const options = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };
// A finger that scrolls the page is not to zoom a chart.
const dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";

function draw(within) {
  for (const element of within.querySelectorAll(".chart:not(.drawn)")) {
    if (element.closest("details:not([open])")) continue; // which has no width yet
    const chart = charts[element.id];
    element.classList.add("drawn");
    thin(chart.layout.xaxis, element.clientWidth);
    if (element.clientWidth < 650) relabel(chart.data);
    const displayModeBar = element.clientWidth < 600 ? false : "hover";
    Plotly.newPlot(element, chart.data, { ...chart.layout, dragmode }, { ...options, displayModeBar });
  }
}

// Leave out ticks, at equal distances still, until their texts stand side by side.
function thin(axis, width) {
  if (!axis?.tickvals) return;
  const step = Math.ceil((axis.tickvals.length * 64) / width);
  // Counted from the end, where the reference is.
  const kept = (_, i, all) => (all.length - 1 - i) % step === 0;
  axis.ticktext = axis.ticktext.filter(kept);
  axis.tickvals = axis.tickvals.filter(kept);
}

// Fewer numbers of trials, and in other places, so that none is over another one.
function relabel(traces) {
  for (const trace of traces) Object.assign(trace, trace.meta?.narrow);
}

draw(document);
for (const folded of document.querySelectorAll("details")) {
  folded.addEventListener("toggle", () => draw(folded));
}
function unfold() {
  const point = location.hash && document.getElementById(location.hash.slice(1));
  if (!point) return;
  point.open = true;
  point.scrollIntoView();
}

addEventListener("hashchange", unfold);
unfold();
// Paper cannot be unfolded.
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details.point:not([open])")];
  for (const folded of unfolded) folded.open = true;
  draw(document);
});
addEventListener("afterprint", () => {
  for (const folded of unfolded) folded.open = false;
});
