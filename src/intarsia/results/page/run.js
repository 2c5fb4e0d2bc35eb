"use strict";
(() => {
  const { figures, colors } = JSON.parse(document.getElementById("data").textContent);
  const { all, one, css, phone } = kit;

  // what the controls say now
  const groups = () => new Set(all("[data-group]").filter((box) => box.checked).map((box) => +box.dataset.group));
  const splits = () => new Set(all("[data-split]").filter((box) => box.checked).map((box) => box.dataset.split));
  const method = () => +(one("method")?.value ?? 0);
  const mode = () => document.querySelector("[name=mode]:checked")?.value;
  const inAll = (group) => !one("plots") || groups().has(group);
  const wanted = {
    parameters: ({ group }) => inAll(group),
    time: ({ group }) => inAll(group),
    rates: ({ group }) => inAll(group),
    curves: ({ group, metric, split, seed }) =>
      inAll(group) && metric === one("metric").value && splits().has(split) && (seed === null || one("seeds").checked),
    masks: ({ group, course }) => inAll(group) && course === one("course").value,
    densities: () => true,
    line: ({ group }) => inAll(group),
    confusion: (about) => about.group === method() && about.mode === mode(),
  };

  function painted(trace) {
    if (trace.type === "heatmap") {
      if (trace.meta.rows) return { ...trace, colorscale: [[0, css("--tint")], [1, css("--heat")]], hoverongaps: false };
      const top = trace.meta.mode === "shares" ? 100 : undefined;
      return { ...trace, zmax: top, colorscale: [[0, css("--tint")], [1, css("--heat")]], hoverongaps: false };
    }
    return kit.colored(trace, colors[trace.meta.group]);
  }

  function layoutOf(name, figure, traces, place) {
    const layout = kit.dressed(figure);
    if (name === "curves") {
      const metric = one("metric");
      const share = metric.value.endsWith("accuracy");
      layout.yaxis.title = { text: metric.selectedOptions[0].text };
      layout.yaxis.ticksuffix = share ? " %" : "";
      layout.xaxis.showgrid = false;
    }
    if (name === "masks") layout.yaxis.title = { text: one("course").selectedOptions[0].text.split(",")[0] };
    if (name === "densities") strip(layout, traces[0].meta.rows);
    if (name === "confusion" && traces.length) square(layout, traces[0].meta.ticks, place.clientWidth);
    return layout;
  }

  // a square of cells, and as much room as the longest class name needs
  function square(layout, ticks, width) {
    const size = ticks.length > 14 || phone.matches ? 11 : 13;
    const longest = kit.longest(ticks, layout, size);
    const down = layout.xaxis.tickangle === -90 ? 1 : Math.sin(Math.PI * 40 / 180);
    const margin = { l: longest + 40, r: 16, t: 8, b: longest * down + 56 };
    const cells = Math.max(200, ticks.length * (ticks.length > 14 ? 22 : 64));
    const side = Math.max(120, Math.min(width - margin.l - margin.r, cells));
    Object.assign(layout, { autosize: false, margin, width: side + margin.l + margin.r, height: side + margin.t + margin.b });
    layout.font.size = size;
    for (const axis of [layout.xaxis, layout.yaxis]) {
      Object.assign(axis, { tickvals: ticks.map((_, i) => i), ticktext: ticks, showgrid: false, showline: false, ticks: "" });
    }
    layout.xaxis.title.standoff = layout.yaxis.title.standoff = 8;
  }

  function strip(layout, rows) {
    Object.assign(layout.yaxis, { tickvals: rows.map((_, i) => i), ticktext: rows, showgrid: false, ticks: "" });
    Object.assign(layout.xaxis, { showgrid: false, ticks: "" });
    layout.height = rows.length * 28 + 56;
    layout.margin.b = 32;
  }

  function draw(names = Object.keys(figures)) {
    for (const name of names) {
      const place = one(`plot-${name}`);
      if (!place || !figures[name]) continue;
      if (!place.clientWidth) continue;
      const traces = figures[name].data.filter((trace) => wanted[name](trace.meta)).map(painted);
      Plotly.react(place, traces, layoutOf(name, figures[name], traces, place), kit.config);
    }
  }

  function showErrors() {
    for (const block of all("[data-errors]")) block.hidden = +block.dataset.errors !== method();
    const has = figures.confusion?.data.some((trace) => trace.meta.group === method());
    if (one("confusion")) one("confusion").hidden = !has;
    if (has) draw(["confusion"]);
  }

  for (const box of all("[data-group]")) box.addEventListener("change", () => draw(["parameters", "time", "rates", "curves", "masks", "line"]));
  for (const control of all("#metric, #seeds, [data-split]")) control.addEventListener("change", () => draw(["curves"]));
  one("course")?.addEventListener("change", () => draw(["masks"]));
  for (const control of all("#method, [name=mode]")) control.addEventListener("change", showErrors);
  draw();
  showErrors();
  kit.follow(draw);
  document.documentElement.dataset.drawn = "yes";
})();
