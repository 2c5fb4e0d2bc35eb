"use strict";
(() => {
  const { figures } = JSON.parse(document.getElementById("data").textContent);
  const { one, css, phone } = kit;

  function painted(trace) {
    if (trace.type !== "heatmap") return kit.colored(trace, trace.meta.color);
    return { ...trace, colorscale: [[0, css("--tint")], [1, css("--heat")]], showscale: !phone.matches,
      colorbar: { thickness: 10, outlinewidth: 0, tickfont: { color: css("--soft") } } };
  }

  function draw(names = Object.keys(figures)) {
    for (const name of names) {
      const place = one(`plot-${name}`);
      if (!place || !figures[name] || !place.clientWidth) continue;
      const layout = kit.dressed(figures[name]);
      const traces = figures[name].data.map(painted);
      if (traces[0]?.type === "heatmap") {
        const [rows, columns] = [traces[0].z.length, traces[0].z[0].length];
        const side = Math.max(8, Math.min(48, (place.clientWidth - 128) / columns));
        Object.assign(layout, { height: Math.max(120, rows * Math.min(side, 28)) + 64, dragmode: false });
        for (const axis of [layout.xaxis, layout.yaxis]) Object.assign(axis, { showgrid: false, fixedrange: true, dtick: Math.ceil(Math.max(rows, columns) / 16) });
      }
      if (name === "timeline") {
        const rows = new Set(traces.flatMap(({ y }) => y)).size;
        layout.height = rows * 22 + 120;
        layout.legend = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { color: css("--soft") } };
        layout.margin = { ...layout.margin, t: 48 };
      }
      if (layout.height) Object.assign(place.style, { minHeight: "0", height: `${layout.height}px` });
      Plotly.react(place, traces, layout, kit.config);
    }
  }

  draw();
  kit.follow(draw);
  document.documentElement.dataset.drawn = "yes";
})();
