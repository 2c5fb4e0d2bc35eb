"use strict";
// what the pages' scripts share: finding, colours, the look of a plot, drawing again when needed
const kit = (() => {
  const all = (query) => [...document.querySelectorAll(query)];
  const one = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const phone = matchMedia("(max-width: 40rem)");
  const touch = matchMedia("(pointer: coarse)");
  const plain = (text) => new DOMParser().parseFromString(text, "text/html").body.textContent;

  const config = {
    displaylogo: false,
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };

  // traces come without colours: light or dark is known here only
  function colored(trace, number) {
    const color = css(`--c${number}`);
    return {
      ...trace,
      line: { ...trace.line, color },
      marker: { ...trace.marker, color },
      error_y: { ...trace.error_y, color },
    };
  }

  function dressed(figure) {
    const axis = { gridcolor: css("--line"), linecolor: css("--soft"), zeroline: false, color: css("--soft"), fixedrange: touch.matches };
    const layout = structuredClone(figure.layout);
    layout.autosize = true;
    layout.font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("--soft") };
    layout.hoverlabel = { bgcolor: css("--paper"), bordercolor: css("--line"), font: { color: css("--ink"), size: 13 }, namelength: -1, align: "left" };
    layout.xaxis = { ...layout.xaxis, ...axis };
    layout.yaxis = { ...layout.yaxis, ...axis };
    layout.modebar = { bgcolor: "transparent", color: css("--soft"), activecolor: css("--ink") };
    layout.dragmode = touch.matches ? false : "zoom";
    return layout;
  }

  // width of the longest of some names, as a plot of this layout writes them
  function longest(names, layout, size) {
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = `${size}px ${layout.font.family}`;
    return Math.max(...names.map((name) => pen.measureText(plain(name)).width));
  }

  // a plot follows the reader's colours and the width of its place, whatever changed that
  function follow(draw) {
    for (const query of [matchMedia("(prefers-color-scheme: dark)"), phone]) query.addEventListener("change", () => draw());
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
  }

  return { all, one, css, phone, config, colored, dressed, longest, follow };
})();
