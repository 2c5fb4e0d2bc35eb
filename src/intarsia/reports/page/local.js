"use strict";
// What the pages on this machine share.
const page = (() => {
  const at = (id) => document.getElementById(id);
  const made = (name, of, text) => {
    const found = document.createElement(name);
    if (of) found.className = of;
    if (text !== undefined) found.textContent = text; // never as HTML: texts are anybody's
    return found;
  };
  const tell = (text, wrong) => {
    at("told").textContent = text;
    at("told").classList.toggle("wrong", Boolean(wrong));
  };
  const ask = async (path, question) => {
    let answer;
    try {
      answer = await fetch(path, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(question),
      });
    } catch {
      throw new Error("No answer: is the command still running?");
    }
    const found = await answer.json();
    if (found.error) throw new Error(`${found.error.what}: got ${found.error.got}, want ${found.error.want}. ${found.error.fix}`);
    return found;
  };
  const number = (value) => value.toFixed(2).replace("-", "−");
  const WIDEST = 72; // px of the heaviest term's bar
  // terms: {word, score, other, said}, drawn as bars of |score| / most; other = hatched, said = aloud
  const bars = (terms, most, label) => {
    const list = made("ul", "terms");
    list.setAttribute("aria-label", label);
    for (const term of terms) {
      const item = made("li", term.other ? "expanded" : "");
      const bar = made("span", "bar");
      bar.style.width = `${Math.max(2, (WIDEST * Math.abs(term.score)) / most)}px`;
      bar.setAttribute("aria-hidden", "true");
      item.append(bar, made("span", "", term.word), made("span", "", number(term.score)));
      if (term.said) item.append(made("span", "hidden", term.said));
      list.append(item);
    }
    return list;
  };
  return { at, made, tell, ask, number, bars };
})();
