// Answers pointer, finger and keyboard on the text; every paragraph is one stop of the Tab key.
(() => {
  const tokens = find("#tokens");
  const tip = find("#tip");
  if (!tokens) return;
  const data = JSON.parse(find("#data").textContent);
  const write = (p) => (p === null ? "n/a" : p.toFixed(2));
  const nodeOf = (i) => tokens.querySelector(`[data-i="${i}"]`);
  const nameOf = (node) => node.textContent.replace("↵\n", "↵").trim() || "space";

  const fill = (i) => {
    const node = nodeOf(i);
    const title = make("p", "token");
    title.append(make("bdi", "", nameOf(node)));
    const list = make("ol");
    let place = node;
    data.acceptance[i].forEach((p, step) => {
      const item = make("li");
      const bar = make("i");
      bar.style.width = `${100 * (p ?? 0)}%`;
      const known = place && place.dataset.i !== undefined;
      item.append(make("bdi", "", `${step + 1}. ${known ? nameOf(place) : "…"}`), bar, make("span", "", write(p)));
      list.append(item);
      place = known ? place.nextElementSibling : null;
    });
    const start = make("dl");
    start.append(make("dt", "", "a round's first draft falls here"), make("dd", "", write(data.starts[i])));
    tip.replaceChildren(title, make("p", "small", "Drafted from here: step, token of the text, acceptance"), list, make("p", "small"), start);
  };
  walkable(tokens, tooltip(tip, fill, tokens));
  // a bar of the overview may lead to a sequence that is folded away
  find("#sequence-index").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link) return;
    const folded = find(link.hash).closest("details");
    if (folded) folded.open = true;
  });
})();
