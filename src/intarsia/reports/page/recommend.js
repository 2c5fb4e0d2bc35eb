(() => {
  const { at, made, tell, ask, number, bars } = page;
  const FIRST = 4; // taken items that are shown unasked
  const FLAGS = ["session", "seen", "new"];
  let asked = 0;
  let looked = 0;
  let can = { histories: true };
  let found = { users: [], items: [] }; // of what is typed
  let who = null; // {user} or {items}, ids of items with the oldest first

  const named = (item) => item.title || item.item;
  const told = (item) => Object.values(item.fields).join(" · ");
  const button = (text, act, label) => {
    const made_ = made("button", "", text);
    made_.type = "button";
    if (label) made_.setAttribute("aria-label", label);
    made_.addEventListener("click", act);
    return made_;
  };

  // the address says who, so that a page can be marked and Back works
  const go = (next) => {
    const place = new URLSearchParams();
    if (next && next.user !== undefined) place.set("user", next.user);
    for (const item of (next && next.items) || []) place.append("item", item);
    for (const flag of FLAGS) if (at(flag).checked) place.set(flag, "1");
    location.hash = place.toString();
  };
  const from_address = () => {
    const place = new URLSearchParams(location.hash.slice(1));
    for (const flag of FLAGS) at(flag).checked = place.has(flag);
    who = null;
    if (place.has("user")) who = { user: place.get("user") };
    else if (place.has("item")) who = { items: place.getAll("item") };
    at("query").value = "";
    begin();
    recommend();
  };

  const choose = (choice) => {
    if (choice.user !== undefined) go({ user: choice.user });
    else go({ items: [...((who && who.items) || []), choice.item] });
    at("query").value = "";
  };
  const choices = (users, items) => {
    const list = users.map((user) => ({ text: `user ${user}`, user }));
    if (can.histories) list.push(...items.map((item) => ({ text: named(item), item: item.item, note: item.new ? "new" : told(item) })));
    at("choices").replaceChildren(
      ...list.map((choice) => {
        const row = made("li");
        const act = button(choice.text, () => choose(choice));
        if (choice.note) act.append(made("small", "", choice.note));
        row.append(act);
        return row;
      }),
    );
    return list;
  };
  const begin = () => choices(who ? [] : can.users || [], who ? [] : can.items || []);

  const look = async () => {
    const text = at("query").value.trim();
    const mine = ++looked;
    if (!text) {
      begin();
      return [];
    }
    try {
      const answer = await ask("/find", { text });
      if (mine !== looked) return [];
      found = answer;
      const list = choices(found.users, found.items);
      tell(list.length ? "" : `No user${can.histories ? " and no title" : ""} like “${text.slice(0, 80)}”.`);
      return list;
    } catch (error) {
      if (mine === looked) tell(error.message, true);
      return [];
    }
  };

  const taken = (item, place) => {
    const row = made("li");
    const name = made("span", "name", named(item));
    const note = [told(item), item.rating ? `rated ${item.rating}` : "", (item.day || "").replaceAll("-", "\u2011")].filter(Boolean).join(" · ");
    row.append(name, made("small", "", note));
    if (who.items)
      row.append(
        button("×", () => go({ items: who.items.filter((_, i) => i !== place) }), `Take ${named(item)} out`),
      );
    return row;
  };
  const past = (answer) => {
    const known = answer.taken.length;
    // the latest is first; places of a built history count from the oldest
    const rows = answer.taken.map((item, i) => taken(item, who.items ? who.items.lastIndexOf(item.item) : i));
    at("taken").replaceChildren(...rows.slice(0, FIRST));
    at("earlier").replaceChildren(...rows.slice(FIRST));
    at("more").hidden = known <= FIRST;
    at("more").firstElementChild.textContent = `${known - FIRST} before`;
    at("who").textContent = who.items ? "A history of your own" : `User ${who.user}`;
    const all = answer.total.toLocaleString("en");
    const read = answer.reads && answer.total > answer.reads ? ` The model reads the last ${answer.reads}.` : "";
    const listed = answer.total > known ? ` The last ${known} are listed.` : "";
    const kept = answer.reads === known && listed ? ` The model reads the last ${known}, which are listed.` : read + listed;
    at("read").textContent = answer.total ? `${all} item${answer.total > 1 ? "s" : ""}, the latest first.${kept}` : "Nothing was taken yet.";
    at("edit").hidden = Boolean(who.items) || !can.histories || !answer.total;
    at("clear").hidden = !who.items;
    at("edit").onclick = () => go({ items: answer.taken.map((item) => item.item).reverse() });
    at("clear").onclick = () => go(null);
  };

  const reasons = (item, most) => {
    const terms = Object.entries(item.why).map(([name, score]) => {
      const value = item.fields[name];
      return { word: value ? `${name.replaceAll("_", " ")}: ${value}` : name.replaceAll("_", " "), score, other: score < 0 };
    });
    return bars(terms, most, "What each field adds to the score");
  };
  const future = (answer) => {
    const session = at("session").checked;
    const each = answer.items.flatMap((item) => Object.values(item.why));
    const most = Math.max(...each.map(Math.abs), 1e-9);
    at("found").replaceChildren(
      ...answer.items.map((item) => {
        const row = made("li");
        const top = made("div", "top");
        const name = made("h3", "", named(item));
        if (item.new) name.append(made("span", "tag", "nobody has taken it yet"));
        top.append(name, made("span", "score", `${session ? "log-probability" : "score"} ${number(item.score)}`));
        row.append(top);
        const note = [told(item), item.code ? `semantic id ${item.code.join("-")}` : ""].filter(Boolean).join(" · ");
        if (note) row.append(made("p", "remark", note));
        if (each.length) row.append(reasons(item, most));
        if (who.items) row.append(button("Take it", () => go({ items: [...who.items, item.item] }), `Take ${named(item)}`));
        return row;
      }),
    );
    at("key").hidden = !each.length;
    const many = answer.items.length;
    const what = session ? `A session of ${many}, each item given those before` : `The best ${many}${at("new").checked ? " that nobody has taken" : ""}`;
    const words = [...answer.told, many ? `${what}, in ${answer.milliseconds.toFixed(0)} ms.` : "No such item is left."];
    tell(words.join(" "));
  };

  const recommend = async () => {
    const mine = ++asked;
    at("results").hidden = !who;
    if (!who) {
      tell("");
      return;
    }
    const flags = Object.fromEntries(FLAGS.map((flag) => [flag, at(flag).checked]));
    try {
      const answer = await ask("/recommend", { ...who, k: 10, ...flags });
      if (mine !== asked) return;
      past(answer);
      future(answer);
    } catch (error) {
      if (mine !== asked) return;
      at("results").hidden = true;
      tell(error.message, true);
    }
  };

  let wait;
  at("query").addEventListener("input", () => {
    clearTimeout(wait);
    wait = setTimeout(look, 150);
  });
  at("ask").addEventListener("submit", async (event) => {
    event.preventDefault();
    clearTimeout(wait);
    const list = await look();
    if (list.length) choose(list[0]);
  });
  for (const flag of FLAGS) at(flag).addEventListener("change", () => go(who));
  window.addEventListener("hashchange", from_address);
  ask("/about", {}).then(
    (answer) => {
      can = answer;
      at("has-session").hidden = !can.session;
      at("has-new").hidden = !can.new;
      if (!can.histories) {
        at("query").placeholder = "A user's id";
        tell("This model ranks for the users that it was trained with.");
      }
      from_address();
    },
    (error) => tell(error.message, true),
  );
})();
