(() => {
  const { at, tell, ask, bars } = page;
  let asked = 0;

  const classify = async () => {
    const text = at("query").value.trim();
    const mine = ++asked;
    if (!text) return;
    try {
      const found = await ask("/predict", { texts: [text] });
      if (mine !== asked) return;
      const answer = found.answers[0];
      const shares = Object.entries(answer.classes).map(([word, score]) => ({ word, score }));
      at("results").replaceChildren(bars(shares, 1, "Probability of each class"));
      tell(answer.class);
    } catch (error) {
      if (mine !== asked) return;
      at("results").replaceChildren();
      tell(error.message, true);
    }
  };

  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    classify();
  });
})();
