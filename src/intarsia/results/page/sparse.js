"use strict";
(() => {
  const { figures, colors } = JSON.parse(document.getElementById("data").textContent);
  const { all, one, css, phone } = kit;
  const maps = ["density", "before", "after"];
  const boxes = all("[data-group]");
  const shown = () => new Set(boxes.filter((box) => box.checked).map((box) => +box.dataset.group));
  const folder = () => +(one("folder")?.value ?? 0);

  function wanted(name) {
    const groups = shown();
    if (maps.includes(name)) return (about) => about.folder === folder();
    return (about) => name === "bytes" || !boxes.length || groups.has(about.group);
  }

  // one scale for both errors, so that before and after compare
  function top(name) {
    if (name === "density") return 1;
    const values = ["before", "after"].flatMap((each) => (figures[each]?.data ?? []).filter(({ meta }) => meta.folder === folder()));
    return Math.max(...values.flatMap(({ z }) => z.flat()).filter((v) => v !== null));
  }

  function painted(trace, name) {
    if (trace.type === "heatmap") {
      return { ...trace, zmax: top(name), colorscale: [[0, css("--tint")], [1, css("--heat")]], hoverongaps: false, showscale: !phone.matches,
        colorbar: { thickness: 10, outlinewidth: 0, tickfont: { color: css("--soft") } } };
    }
    if (trace.type === "bar") {
      const color = css(trace.meta.left ? "--line" : `--c${trace.meta.part + 1}`);
      return { ...trace, marker: { ...trace.marker, color } };
    }
    return kit.colored(trace, colors[trace.meta.group]);
  }

  function map(layout, { ticks, rows }, width) {
    const size = 11;
    const long = kit.longest(ticks, layout, size);
    const margin = { l: kit.longest(rows, layout, size) + 20, r: phone.matches ? 8 : 56, t: long + 20, b: 8 };
    const side = Math.max(96, Math.min(width - margin.l - margin.r, ticks.length * 40));
    // at least 96 px: the numbers beside the colours would overprint
    Object.assign(layout, { autosize: false, margin, width: side + margin.l + margin.r, height: Math.max(96, rows.length * 14) + margin.t + margin.b, dragmode: false });
    layout.font.size = size;
    const plain = { showgrid: false, showline: false, ticks: "outside", ticklen: 5, tickcolor: "transparent", fixedrange: true };
    Object.assign(layout.xaxis, plain, { tickvals: ticks.map((_, i) => i), ticktext: ticks, tickangle: -90 });
    Object.assign(layout.yaxis, plain, { tickvals: rows.map((_, i) => i), ticktext: rows });
  }

  function bars(layout) {
    const names = all("#results tbody th span").map((cell) => cell.textContent);
    const tags = all("#results tbody tr").map((row, i) => `${names[i]} ${row.cells[1].textContent}`);
    Object.assign(layout.yaxis, { ticktext: tags, showgrid: false });
    layout.legend = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { color: css("--soft") }, traceorder: "normal" };
    layout.margin = { l: 8, r: 12, t: 112, b: 48 };
    layout.yaxis.automargin = true;
    layout.height = tags.length * 26 + 176;
  }

  function draw(names = Object.keys(figures)) {
    for (const name of names) {
      const place = one(`plot-${name}`);
      if (!place || !figures[name]) continue;
      const traces = figures[name].data.filter(({ meta }) => wanted(name)(meta)).map((trace) => painted(trace, name));
      place.closest("figure").hidden = !traces.length;
      if (!traces.length || !place.clientWidth) continue;
      const layout = kit.dressed(figures[name]);
      if (maps.includes(name)) map(layout, traces[0].meta, place.clientWidth);
      if (name === "bytes") bars(layout);
      Plotly.react(place, traces, layout, kit.config);
    }
    for (const name of maps) if (!figures[name]) one(`map-${name}`).hidden = true;
    one("no-errors").hidden = (figures.after?.data ?? []).some(({ meta }) => meta.folder === folder());
  }

  for (const box of boxes) box.addEventListener("change", () => draw(["perplexity"]));
  one("folder")?.addEventListener("change", () => draw(maps));
  draw();
  kit.follow(draw);
  document.documentElement.dataset.drawn = "yes";
})();
