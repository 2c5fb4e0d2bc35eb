(() => {
  const { figures, colors } = JSON.parse(document.getElementById("data").textContent);
  const { all, one, css, phone } = kit;

  const sheetOf = (name) => +name.split("-").at(-1);
  const within = (sheet, query) => [...document.querySelectorAll(`[data-sheet="${sheet}"] ${query}`)];
  const chosen = (name) => document.querySelector(`[name="${name}"]:checked`)?.value;
  const groups = (sheet) => new Set(within(sheet, "[data-group]").filter((box) => box.checked).map((box) => +box.dataset.group));
  const wanted = (name, sheet) => {
    if (name.startsWith("heat")) return ({ mode }) => mode === (chosen(`mode-${sheet}`) ?? "shares");
    const shown = groups(sheet);
    const mean = chosen(`mean-${sheet}`);
    return (about) => shown.has(about.group) && about.mean === mean;
  };

  function painted(trace, sheet) {
    if (trace.type !== "heatmap") return kit.colored(trace, colors[sheet][trace.meta.group]);
    const values = trace.z.flat().filter((value) => value !== null);
    if (trace.meta.mode === "shares") {
      return { ...trace, zmin: Math.min(...values), zmax: Math.max(...values), colorscale: [[0, css("--tint")], [1, css("--heat")]] };
    }
    // one outlier must not bleach the others: nine cells in ten are within the scale
    const sizes = values.map(Math.abs).filter((value) => value > 0).sort((a, b) => a - b);
    const top = Math.max(0.1, sizes[Math.floor(0.9 * (sizes.length - 1))] ?? 0.1);
    return { ...trace, zmin: -top, zmax: top, colorscale: [[0, css("--fall")], [0.5, css("--tint")], [1, css("--heat")]] };
  }

  // a row for each task, a column for each method, and as much room as the longest names need
  function map(layout, { ticks, methods }, width) {
    const size = phone.matches || methods.length > 12 ? 11 : 13;
    const lean = Math.PI * 40 / 180;
    const long = kit.longest(methods, layout, size);
    const margin = { l: kit.longest(ticks, layout, size) * 1.06 + 20, r: long * Math.cos(lean) + 8, t: long * Math.sin(lean) + 32, b: 8 };
    const side = Math.max(methods.length * 34, Math.min(width - margin.l - margin.r, methods.length * 88));
    Object.assign(layout, { autosize: false, margin, width: side + margin.l + margin.r, height: ticks.length * 26 + margin.t + margin.b, dragmode: false });
    layout.font.size = size;
    const plain = { showgrid: false, showline: false, ticks: "outside", ticklen: 6, tickcolor: "transparent", fixedrange: true };
    Object.assign(layout.xaxis, plain, { tickvals: methods.map((_, i) => i), ticktext: methods });
    for (const note of layout.annotations ?? []) note.font = { size: size - 2, color: css("--soft") };
    Object.assign(layout.yaxis, plain, { tickvals: ticks.map((_, i) => i), ticktext: ticks });
  }

  const made = (tag, ...inside) => {
    const element = document.createElement(tag);
    element.append(...inside);
    return element;
  };

  // a run: its score in a line, and below it, when opened, everything else that is known of it
  function panel({ seed, text, facts, command, report, links }, open) {
    const list = made("dl", ...facts.map(([name, value]) => made("div", made("dt", name), made("dd", value))));
    const inside = [list];
    if (command) inside.push(made("p", "Repeat it:"), made("pre", command));
    if (report) inside.push(made("p", "Its curves, mistakes and confusions, from this page's folder:"), made("pre", report));
    const anchors = links.map(([name, address]) => {
      const anchor = made("a", name);
      Object.assign(anchor, { href: address, target: "_blank", rel: "noopener" });
      return anchor;
    });
    if (anchors.length) inside.push(made("p", "Files: ", ...anchors.flatMap((anchor, i) => (i ? [", ", anchor] : [anchor]))));
    const whole = made("details", made("summary", `seed ${seed}: ${text}`), ...inside);
    whole.open = open;
    return whole;
  }

  function tell(sheet, { names, labels, runs }, row, column) {
    const place = one(`runs-${sheet}`);
    const found = runs[row][column];
    const head = document.createElement("b");
    head.textContent = `${labels[column]} on ${names[row]}`;
    place.replaceChildren(head, ...(found.length ? found.map((run) => panel(run, found.length === 1)) : [": a mean, or no run"]));
  }

  const listening = new Set();

  function draw(names = Object.keys(figures)) {
    for (const name of names) {
      const place = one(`plot-${name}`);
      if (!place || !figures[name] || !place.clientWidth) continue;
      const sheet = sheetOf(name);
      const keep = wanted(name, sheet);
      const traces = figures[name].data.filter((trace) => keep(trace.meta)).map((trace) => painted(trace, sheet));
      const layout = kit.dressed(figures[name]);
      const about = figures[name].data[0].meta;
      if (name.startsWith("heat")) map(layout, about, place.clientWidth);
      Plotly.react(place, traces, layout, kit.config);
      if (name.startsWith("heat") && !listening.has(name)) {
        listening.add(name);
        place.on("plotly_click", ({ points: [{ x, y }] }) => tell(sheet, about, y, x));
      }
    }
  }

  for (const { dataset: { sheet } } of all("[data-sheet]")) {
    const costs = [`parameters-${sheet}`, `time-${sheet}`];
    for (const control of within(sheet, `[data-group], [name="mean-${sheet}"]`)) control.addEventListener("change", () => draw(costs));
    for (const control of within(sheet, `[name="mode-${sheet}"]`)) control.addEventListener("change", () => draw([`heat-${sheet}`]));
  }
  draw();
  kit.follow(draw);
  document.documentElement.dataset.drawn = "yes";
})();
