// Draws each plot when it comes into view, in the colors of the reader's scheme, and again when the scheme changes.
"use strict";
(() => {
  const plots = JSON.parse(document.getElementById("plots-data").textContent);
  const templates = JSON.parse(document.getElementById("plots-templates").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false,  // a report stays where it is
    plotlyServerURL: "",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };
  const drawn = new Set();

  const draw = (place) => {
    const { data, layout } = plots[place.id.slice("plot-".length)];
    drawn.add(place);
    Plotly.react(place, data, { ...layout, template: templates[dark.matches ? "dark" : "light"] }, config);
  };

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
    }
  }, { rootMargin: "800px" });
  for (const place of document.querySelectorAll(".plot")) watcher.observe(place);

  dark.addEventListener("change", () => drawn.forEach(draw));
  window.addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach(draw));
})();
