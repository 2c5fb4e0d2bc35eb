(() => {
  const { at, made, tell, ask, bars } = page;
  let asked = 0;

  const terms = (hit, most) =>
    bars(
      hit.terms.map((term) => ({
        word: term.token.replace("##", "…") + (term.stem ? " (BM25)" : ""),
        score: term.score,
        other: term.expanded,
        said: term.expanded ? "(not a word of the text)" : "",
      })),
      most,
      "What each word added to the score",
    );

  const shown = (found) => {
    const most = Math.max(...found.hits.flatMap((hit) => hit.terms.map((term) => term.score)), 1e-9);
    at("results").replaceChildren(
      ...found.hits.map((hit) => {
        const item = made("li");
        const top = made("div", "top");
        top.append(made("h2", "", hit.id), made("span", "score", `score ${hit.score.toFixed(2)}`));
        const text = made("p", "text");
        for (const [part, marked] of hit.parts) text.append(marked ? made("mark", "", part) : part);
        const known = Object.entries(hit.fields).map(([name, value]) => `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`);
        item.append(top, text);
        if (known.length) item.append(made("p", "fields", known.join(" · ")));
        item.append(terms(hit, most));
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
      const found = await ask("/search", { query, k: 10 });
      if (mine !== asked) return;
      shown(found);
    } catch (error) {
      if (mine !== asked) return;
      at("results").replaceChildren();
      at("key").hidden = true;
      tell(error.message, true);
    } finally {
      if (mine === asked) at("go").disabled = false;
    }
  };

  const from_address = () => {
    const found = location.hash.match(/^#q=(.*)$/);
    const named = new URLSearchParams(location.search).get("q");
    if (!found && !named) return;
    try {
      at("query").value = found ? decodeURIComponent(found[1]) : named;
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
