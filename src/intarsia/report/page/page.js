"use strict";
(() => {
  const { figures, colors } = JSON.parse(document.getElementById("data").textContent);
  const all = (query) => [...document.querySelectorAll(query)];
  const one = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const phone = matchMedia("(max-width: 40rem)");
  const touch = matchMedia("(pointer: coarse)");

  // what the controls say now
  const groups = () => new Set(all("[data-group]").filter((box) => box.checked).map((box) => +box.dataset.group));
  const splits = () => new Set(all("[data-split]").filter((box) => box.checked).map((box) => box.dataset.split));
  const method = () => +(one("method")?.value ?? 0);
  const mode = () => document.querySelector("[name=mode]:checked")?.value;
  const inAll = (group) => !one("plots") || groups().has(group);
  const wanted = {
    parameters: ({ group }) => inAll(group),
    time: ({ group }) => inAll(group),
    curves: ({ group, metric, split, seed }) =>
      inAll(group) && metric === one("metric").value && splits().has(split) && (seed === null || one("seeds").checked),
    confusion: (about) => about.group === method() && about.mode === mode(),
  };

  const config = {
    displaylogo: false,
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };

  // traces come without colours: light or dark is known here only
  function painted(trace) {
    const color = css(`--c${colors[trace.meta.group]}`);
    if (trace.type === "heatmap") {
      const top = trace.meta.mode === "shares" ? 100 : undefined;
      return { ...trace, zmax: top, colorscale: [[0, css("--tint")], [1, css("--heat")]], hoverongaps: false };
    }
    return {
      ...trace,
      line: { ...trace.line, color },
      marker: { ...trace.marker, color },
      error_y: { ...trace.error_y, color },
    };
  }

  function layoutOf(name, figure, traces, place) {
    const axis = { gridcolor: css("--line"), linecolor: css("--soft"), zeroline: false, color: css("--soft"), fixedrange: touch.matches };
    const layout = structuredClone(figure.layout);
    layout.autosize = true;
    layout.font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("--soft") };
    layout.hoverlabel = { bgcolor: css("--paper"), bordercolor: css("--line"), font: { color: css("--ink"), size: 13 }, namelength: -1, align: "left" };
    layout.xaxis = { ...layout.xaxis, ...axis };
    layout.yaxis = { ...layout.yaxis, ...axis };
    layout.modebar = { bgcolor: "transparent", color: css("--soft"), activecolor: css("--ink") };
    layout.dragmode = touch.matches ? false : "zoom";
    if (name === "curves") {
      const metric = one("metric");
      const share = metric.value.endsWith("accuracy");
      layout.yaxis.title = { text: metric.selectedOptions[0].text };
      layout.yaxis.ticksuffix = share ? " %" : "";
      layout.xaxis.showgrid = false;
    }
    if (name === "confusion" && traces.length) square(layout, traces[0].meta.ticks, place.clientWidth);
    return layout;
  }

  // a square of cells, and as much room as the longest class name needs
  function square(layout, ticks, width) {
    const size = ticks.length > 14 || phone.matches ? 11 : 13;
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = `${size}px ${layout.font.family}`;
    const longest = Math.max(...ticks.map((tick) => pen.measureText(plain(tick)).width));
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

  const plain = (text) => new DOMParser().parseFromString(text, "text/html").body.textContent;

  function draw(names = Object.keys(figures)) {
    for (const name of names) {
      const place = one(`plot-${name}`);
      if (!place || !figures[name]) continue;
      if (!place.clientWidth) continue;
      const traces = figures[name].data.filter((trace) => wanted[name](trace.meta)).map(painted);
      Plotly.react(place, traces, layoutOf(name, figures[name], traces, place), config);
    }
  }

  function showErrors() {
    for (const block of all("[data-errors]")) block.hidden = +block.dataset.errors !== method();
    const has = figures.confusion?.data.some((trace) => trace.meta.group === method());
    if (one("confusion")) one("confusion").hidden = !has;
    if (has) draw(["confusion"]);
  }

  for (const box of all("[data-group]")) box.addEventListener("change", () => draw(["parameters", "time", "curves"]));
  for (const control of all("#metric, #seeds, [data-split]")) control.addEventListener("change", () => draw(["curves"]));
  for (const control of all("#method, [name=mode]")) control.addEventListener("change", showErrors);
  for (const query of [matchMedia("(prefers-color-scheme: dark)"), phone]) query.addEventListener("change", () => draw());
  draw();
  showErrors();
  // a plot follows the width of its place, whatever changed that
  const widths = new Map();
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const width = target.clientWidth;
      if (width && widths.get(target) !== width) {
        if (widths.has(target)) draw([target.id.replace("plot-", "")]);
        widths.set(target, width);
      }
    }
  });
  for (const place of all(".plot")) observer.observe(place);
  document.documentElement.dataset.drawn = "yes";
})();
