"use strict";
// Draws the figures of the page in the colours of the moment, and again when the reader's system turns light or dark.
(() => {
  const { figures, light, dark } = JSON.parse(document.getElementById("figures").textContent);
  const night = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 640px)");
  const touch = matchMedia("(pointer: coarse)");
  const toDark = new Map(Object.entries(light).map(([name, colour]) => [colour, dark[name]]));

  const recoloured = (value) => {
    if (typeof value === "string") return night.matches ? toDark.get(value) ?? value : value;
    if (Array.isArray(value)) return value.map(recoloured);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, recoloured(inner)]));
    return value;
  };

  const axis = (own, colours) => ({
    gridcolor: colours.rule, linecolor: colours.rule, zerolinecolor: colours.rule, automargin: false, ticklen: 4,
    tickcolor: "rgba(0,0,0,0)", hoverformat: own.type === "date" ? "%d %b %Y %H:%M" : undefined, ...own,
  });

  const draw = (name) => {
    const colours = night.matches ? dark : light;
    const { data, layout: own } = recoloured(figures[name]);
    const layout = {
      height: narrow.matches ? 320 : 400,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", size: narrow.matches ? 11 : 13, color: colours.soft },
      hoverlabel: { bgcolor: colours.panel, bordercolor: colours.rule, font: { color: colours.ink }, align: "left" },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, xanchor: "left" },
      dragmode: touch.matches ? false : "zoom",
      ...own,
    };
    layout.margin = { l: narrow.matches ? 46 : 62, r: 10, t: 30, b: 28, ...own.margin };
    for (const key of ["xaxis", "yaxis", "yaxis2"]) if (layout[key]) layout[key] = axis(layout[key], colours);
    return Plotly.react(`chart-${name}`, data, layout, { responsive: true, displayModeBar: false });
  };

  const names = Object.keys(figures);
  const all = () => names.forEach(draw);
  all();
  night.addEventListener("change", all);
  narrow.addEventListener("change", all);

  // Charts over the same time share it: a zoom in one is a zoom in all.
  const timed = names.filter((name) => figures[name].layout.xaxis.type === "date");
  let following = false;
  for (const name of timed) {
    document.getElementById(`chart-${name}`).on("plotly_relayout", (change) => {
      const zoomed = "xaxis.range[0]" in change;
      if (following || !(zoomed || change["xaxis.autorange"])) return;
      following = true;
      const span = (of) => String(figures[of].layout.xaxis.range);
      const others = timed.filter((other) => other !== name && span(other) === span(name)).map((other) => {
        const range = zoomed ? [change["xaxis.range[0]"], change["xaxis.range[1]"]] : [...figures[other].layout.xaxis.range];
        return Plotly.relayout(`chart-${other}`, { "xaxis.range": range });
      });
      Promise.all(others).finally(() => { following = false; });
    });
  }
})();
