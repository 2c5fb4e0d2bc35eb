"use strict";
(() => {
  const { figures } = JSON.parse(document.getElementById("data").textContent);
  const { one, css, phone } = kit;

  function draw() {
    const place = one("plot-loads");
    if (!place || !figures.loads) return;
    const layout = kit.dressed(figures.loads);
    const rows = figures.loads.data[0].y.length;
    Object.assign(layout, { margin: { l: 56, r: phone.matches ? 8 : 56, t: 96, b: 8 }, height: Math.max(160, rows * 16) + 104, dragmode: false });
    Object.assign(layout.xaxis, { side: "top", tickangle: -60, showgrid: false, fixedrange: true, ticks: "" });
    Object.assign(layout.yaxis, { type: "category", showgrid: false, fixedrange: true, ticks: "" });
    const heat = figures.loads.data.map((trace) => ({ ...trace, colorscale: [[0, css("--tint")], [1, css("--heat")]], showscale: !phone.matches, hoverongaps: false,
      colorbar: { thickness: 10, outlinewidth: 0, tickfont: { color: css("--soft") } } }));
    Plotly.react(place, heat, layout, kit.config);
  }

  draw();
  kit.follow(draw);
  document.documentElement.dataset.drawn = "yes";
})();
