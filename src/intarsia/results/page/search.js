"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const made = (name, of, text) => {
    const found = document.createElement(name);
    if (of) found.className = of;
    if (text !== undefined) found.textContent = text; // never as HTML: documents are anybody's
    return found;
  };
  const WIDEST = 72; // px of the heaviest term's bar
  let asked = 0;

  const tell = (text, wrong) => {
    at("told").textContent = text;
    at("told").classList.toggle("wrong", Boolean(wrong));
  };

  const terms = (hit, most) => {
    const list = made("ul", "terms");
    list.setAttribute("aria-label", "What each word added to the score");
    for (const term of hit.terms) {
      const item = made("li", term.expanded ? "expanded" : "");
      const bar = made("span", "bar");
      bar.style.width = `${Math.max(2, (WIDEST * term.score) / most)}px`;
      bar.setAttribute("aria-hidden", "true");
      item.append(bar, made("span", "", term.token.replace("##", "…")), made("span", "", term.score.toFixed(2)));
      if (term.expanded) item.append(made("span", "hidden", "(not a word of the text)"));
      list.append(item);
    }
    return list;
  };

  const shown = (found) => {
    const most = Math.max(...found.hits.flatMap((hit) => hit.terms.map((term) => term.score)), 1e-9);
    at("results").replaceChildren(
      ...found.hits.map((hit) => {
        const item = made("li");
        const top = made("div", "top");
        top.append(made("h2", "", hit.id), made("span", "score", `score ${hit.score.toFixed(2)}`));
        const text = made("p", "text");
        for (const [part, marked] of hit.parts) text.append(marked ? made("mark", "", part) : part);
        item.append(top, text, terms(hit, most));
        return item;
      }),
    );
    at("key").hidden = !found.hits.length;
    const many = found.documents.toLocaleString("en");
    if (found.hits.length) tell(`The best ${found.hits.length} of ${many} documents, in ${found.milliseconds.toFixed(1)} ms. No model ran.`);
    else if (!found.tokens.length) tell("No document: none of these words is known to the index.");
    else tell(`No document of ${many} has any of these words, nor does the model read them into one.`);
  };

  const search = async () => {
    const query = at("query").value.trim();
    const mine = ++asked;
    const place = query ? `#q=${encodeURIComponent(query)}` : "#";
    if (query.length < 500 && location.hash !== place) history.replaceState(null, "", place);
    if (!query) {
      at("results").replaceChildren();
      at("key").hidden = true;
      tell("");
      return;
    }
    at("go").disabled = true;
    try {
      const answer = await fetch("/search", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ query, k: 10 }),
      });
      const found = await answer.json();
      if (mine !== asked) return;
      if (found.error) throw new Error(`${found.error.what}: got ${found.error.got}, want ${found.error.want}. ${found.error.fix}`);
      shown(found);
    } catch (error) {
      if (mine !== asked) return;
      at("results").replaceChildren();
      at("key").hidden = true;
      tell(error instanceof TypeError ? "No answer: is the command still running?" : error.message, true);
    } finally {
      if (mine === asked) at("go").disabled = false;
    }
  };

  const from_address = () => {
    const found = location.hash.match(/^#q=(.*)$/);
    if (!found) return;
    try {
      at("query").value = decodeURIComponent(found[1]);
    } catch {
      return; // not what this page wrote
    }
    search();
  };
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  window.addEventListener("hashchange", from_address);
  from_address();
})();
