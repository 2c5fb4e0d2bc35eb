(() => {
  const { figures, colors } = JSON.parse(document.getElementById("data").textContent);
  const { all, one, css, phone } = kit;

  // what the controls say now
  const boxes = all("[data-group]");
  const groups = () => new Set(boxes.filter((box) => box.checked).map((box) => +box.dataset.group));
  const number = (id) => (one(id)?.value ? +one(id).value : null);
  const layered = new Set(["load_cv", "gate_entropy", "by_place", "by_position"]);

  function wanted(name) {
    const sheet = number("sheet") ?? 0;
    if (name === "experts") return (about) => about.sheet === sheet && about.group === number("contender") && about.layer === number("depth");
    const shown = groups();
    const layer = layered.has(name) ? number("layer") : null;
    const seeds = one("seeds")?.checked;
    return (about) =>
      about.sheet === sheet && (!boxes.length || shown.has(about.group)) && about.layer === layer && (about.seed === null || seeds);
  }

  function painted(trace) {
    if (trace.type !== "heatmap") return kit.colored(trace, colors[trace.meta.group]);
    return { ...trace, colorscale: [[0, css("--tint")], [1, css("--heat")]] };
  }

  // what falls fast at first would press all else together: three quarters of the course decide
  function late(traces) {
    const seen = traces.flatMap(({ y }) => y.slice(Math.floor(y.length / 4)));
    const [low, high] = [Math.min(...seen), Math.max(...seen)];
    const margin = 0.05 * (high - low) || 0.1;
    return [low - margin, high + margin];
  }

  function map(layout, { ticks, rows }, width) {
    const size = phone.matches || ticks.length > 14 ? 11 : 13;
    const lean = Math.PI * 40 / 180;
    const long = kit.longest(ticks, layout, size);
    const margin = { l: kit.longest(rows, layout, size) + 64, r: long * Math.cos(lean) + 8, t: long * Math.sin(lean) + 32, b: 8 };
    const side = Math.max(120, Math.min(width - margin.l - margin.r, ticks.length * 72));
    Object.assign(layout, { autosize: false, margin, width: side + margin.l + margin.r, height: rows.length * 30 + margin.t + margin.b, dragmode: false });
    layout.font.size = size;
    const plain = { showgrid: false, showline: false, ticks: "", fixedrange: true };
    Object.assign(layout.xaxis, plain, { tickvals: ticks.map((_, i) => i), ticktext: ticks, tickangle: -40 });
    Object.assign(layout.yaxis, plain, { tickvals: rows.map((_, i) => i), ticktext: rows, title: { text: "Expert" } });
  }

  function draw(names = Object.keys(figures)) {
    for (const name of names) {
      const place = one(`plot-${name}`);
      if (!place || !figures[name]) continue;
      const traces = figures[name].data.filter((trace) => wanted(name)(trace.meta)).map(painted);
      place.closest("figure").classList.toggle("none", !traces.length);
      if (!traces.length || !place.clientWidth) continue;
      const layout = kit.dressed(figures[name]);
      if (name === "by_steps" || name === "by_operations") layout.yaxis.range = late(traces);
      if (name === "experts") map(layout, traces[0].meta, place.clientWidth);
      Plotly.react(place, traces, layout, kit.config);
    }
  }

  const check = (value) => () => {
    for (const box of boxes) box.checked = value;
    draw();
  };
  one("every")?.addEventListener("click", check(true));
  one("nobody")?.addEventListener("click", check(false));
  for (const control of [...boxes, ...all("#sheet, #seeds, #layer")]) control.addEventListener("change", () => draw());
  for (const control of all("#contender, #depth")) control.addEventListener("change", () => draw(["experts"]));
  draw();
  kit.follow(draw);
  document.documentElement.dataset.drawn = "yes";
})();
