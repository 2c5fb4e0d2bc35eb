"use strict";
(() => {
  const { figures } = JSON.parse(document.getElementById("data").textContent);
  const { one, css, phone } = kit;

  function draw() {
    const place = one("plot-spans");
    if (!place || !place.clientWidth) return;
    const layout = kit.dressed(figures.spans);
    const [trace] = figures.spans.data;
    const { ticks, rows } = trace.meta;
    const margin = { l: 40, r: phone.matches ? 8 : 56, t: 32, b: 8 };
    const side = Math.max(96, Math.min(place.clientWidth - margin.l - margin.r, ticks.length * 40));
    Object.assign(layout, { autosize: false, margin, width: side + margin.l + margin.r, height: Math.max(96, rows.length * 14) + margin.t + margin.b, dragmode: false });
    const plain = { showgrid: false, showline: false, fixedrange: true };
    Object.assign(layout.xaxis, plain, { tickvals: ticks.map((_, i) => i), ticktext: ticks });
    Object.assign(layout.yaxis, plain, { tickvals: rows.map((_, i) => i), ticktext: rows });
    const painted = { ...trace, colorscale: [[0, css("--tint")], [1, css("--heat")]], showscale: !phone.matches,
      colorbar: { thickness: 10, outlinewidth: 0, tickfont: { color: css("--soft") } } };
    Plotly.react(place, [painted], layout, kit.config);
  }

  draw();
  kit.follow(draw);
  document.documentElement.dataset.drawn = "yes";
})();
