"use strict";
// Controls choose what is shown; tables are sorted; drawings are enlarged and saved; cells open panels.
(() => {
  const all = (query, of = document) => [...of.querySelectorAll(query)];
  const controls = all("[data-key]");

  // key of a control -> the values that are chosen now
  function chosen() {
    const found = new Map();
    for (const control of controls) {
      const { key } = control.dataset;
      if (!found.has(key)) found.set(key, new Set());
      if (control.tagName === "SELECT" || control.checked) found.get(key).add(control.value);
    }
    return found;
  }

  function show() {
    const now = chosen();
    const wanted = (pair) => {
      const [key, value] = pair.split("=");
      return !now.has(key) || now.get(key).has(value);
    };
    for (const element of all("[data-when]")) element.toggleAttribute("hidden", !element.dataset.when.split(" ").every(wanted));
  }

  for (const control of controls) control.addEventListener("change", show);
  for (const button of all("[data-all], [data-none]")) {
    button.addEventListener("click", () => {
      const key = button.dataset.all ?? button.dataset.none;
      for (const control of controls) if (control.dataset.key === key) control.checked = "all" in button.dataset;
      show();
    });
  }

  // 4.8 k < 1.23 M; a text without a number keeps its alphabetical place
  const sizes = { n: 1e-9, µ: 1e-6, m: 1e-3, k: 1e3, M: 1e6, G: 1e9, T: 1e12 };
  function number(text) {
    const [, digits, size] = text.replaceAll(",", "").replace("−", "-").match(/^[+]?(-?[\d.]+(?:e[+-]?\d+)?)\s?([nµmkMGT](?![a-z]{2}))?/) ?? [];
    return digits === undefined ? NaN : +digits * (sizes[size] ?? 1);
  }

  function sort(table, column, down) {
    const body = table.tBodies[0];
    const text = (row) => row.cells[column].querySelector("span").textContent.trim();
    const rows = [...body.rows].sort((a, b) => {
      const [left, right] = [text(a), text(b)];
      const apart = number(left) - number(right);
      if (!left || !right) return !left - !right; // empty cells stay below
      return (Number.isNaN(apart) ? left.localeCompare(right) : apart) * (down ? -1 : 1);
    });
    body.append(...rows);
  }

  for (const table of all("table")) {
    if (table.tBodies[0].rows.length < 3) continue;
    for (const [column, head] of all("thead th", table).entries()) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of all("thead th", table)) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sort(table, column, down);
      });
    }
  }

  // drag over a drawing enlarges that part, a double click shows all of it again
  function enlarge(svg) {
    const whole = svg.getAttribute("viewBox");
    const at = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let start = null;
    svg.addEventListener("pointerdown", (event) => { if (event.pointerType === "mouse") start = at(event); });
    svg.addEventListener("pointerup", (event) => {
      if (!start) return;
      const end = at(event);
      const [wide, high] = [Math.abs(end.x - start.x), Math.abs(end.y - start.y)];
      if (wide > 12 && high > 12) svg.setAttribute("viewBox", `${Math.min(start.x, end.x)} ${Math.min(start.y, end.y)} ${wide} ${high}`);
      start = null;
    });
    svg.addEventListener("dblclick", () => svg.setAttribute("viewBox", whole));
  }

  const drawn = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font", "width", "height", "text-anchor"];
  function save(svg, name) {
    const copy = svg.cloneNode(true);
    const originals = all("*", svg);
    for (const [i, element] of all("*", copy).entries()) {
      const style = getComputedStyle(originals[i]);
      element.setAttribute("style", drawn.map((key) => `${key}:${style.getPropertyValue(key)}`).join(";"));
    }
    for (const element of all("[hidden]", copy)) element.remove();
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([copy.outerHTML], { type: "image/svg+xml" }));
    link.download = `${name}.svg`;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  for (const svg of all("svg.chart")) {
    if (!svg.querySelector("[data-panel]")) enlarge(svg);
    const figure = svg.closest("figure");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "save";
    button.textContent = "save";
    button.title = "Save this drawing as SVG";
    button.addEventListener("click", () => save(svg, figure.id.replace("plot-", "")));
    figure.append(button);
  }

  // text is always text: nothing of a run becomes an element
  function made(tag, ...inside) {
    const element = document.createElement(tag);
    element.append(...inside);
    return element;
  }

  function run({ text, facts, commands, links }, open) {
    const details = made("details", made("summary", text), made("dl", ...facts.map(([name, value]) => made("div", made("dt", name), made("dd", value)))));
    for (const [label, command] of commands) details.append(made("p", label), made("pre", command));
    const anchors = links.map(([name, address]) => Object.assign(made("a", name), { href: address, target: "_blank", rel: "noopener" }));
    if (anchors.length) details.append(made("p", "Files: ", ...anchors.flatMap((anchor, i) => (i ? [", ", anchor] : [anchor]))));
    details.open = open;
    return details;
  }

  for (const source of all("[data-panels]")) {
    const panels = JSON.parse(source.textContent);
    const name = source.dataset.panels;
    for (const cell of all(`[id^="plot-${name}-"] [data-panel]`)) {
      cell.addEventListener("click", () => {
        const [heading, runs] = panels[cell.dataset.panel];
        document.getElementById(`panel-${name}`).replaceChildren(made("b", heading), ...(runs.length ? runs.map((one) => run(one, runs.length === 1)) : [": a mean, or no run"]));
      });
    }
  }

  show();
  document.documentElement.dataset.drawn = "yes";
})();
