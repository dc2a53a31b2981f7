"use strict";
// Draws the figures of a page, or takes newer ones of the same page.
function showFigures(page) {
  shared.runs = page.runs;
  for (const section of page.sections) {
    const place = document.querySelector(`#${section.id} .plots`);
    if (!place) continue;
    place.closest("section").hidden = false;
    for (const figure of section.figures) {
      const known = shared.charts.find((chart) => chart.figure.id === figure.id);
      if (known) known.update(figure);
      else if (figure.kind === "heatmap") new HeatMap(figure, place);
      else new LinePlot(figure, place);
    }
  }
}

// Colours and widths that depend on data: the policy of the page allows no style in its markup.
function dress(root) {
  for (const mark of root.querySelectorAll("[data-colour]")) mark.style.background = colour(Number(mark.dataset.colour));
  for (const bar of root.querySelectorAll("[data-share]")) bar.style.flexGrow = bar.dataset.share;
}

addEventListener("DOMContentLoaded", () => {
  showFigures(JSON.parse(document.getElementById("page-data").textContent));
  dress(document);
  document.getElementById("smoothing").addEventListener("input", (event) => {
    shared.smoothing = Number(event.target.value);
    redrawAll();
  });
  for (const button of document.querySelectorAll(".reset-zoom")) button.addEventListener("click", () => setZoom(null));
  for (const place of document.querySelectorAll(".run[data-run]")) {
    const run = Number(place.dataset.run);
    place.replaceChildren(toggle(true, (shown) => {
      if (shown) shared.hiddenRuns.delete(run); else shared.hiddenRuns.add(run);
      redrawAll();
    }, ...place.childNodes));
  }
});
