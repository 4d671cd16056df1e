// Answers pointer, finger and keyboard on the text; every paragraph is one stop of the Tab key.
(() => {
  const find = (selector) => document.querySelector(selector);
  const tokens = find("#tokens");
  const tip = find("#tip");
  if (!tokens) return;
  const data = JSON.parse(find("#data").textContent);
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
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
  const { show, hide, tokenAt } = tooltip(tip, fill, tokens);

  tokens.addEventListener("focusin", (event) => {
    const node = tokenAt(event);
    if (!node) return;
    node.parentNode.querySelector("[tabindex='0']").tabIndex = -1;
    node.tabIndex = 0;
    show(node);
  });
  tokens.addEventListener("focusout", hide);
  tokens.addEventListener("keydown", (event) => {
    const node = tokenAt(event);
    if (!node || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape") return hide();
    const all = [...node.parentNode.querySelectorAll("[data-i]")];
    const at = all.indexOf(node);
    const target = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    if (!all[target]) return;
    all[target].focus({ preventScroll: true });
    all[target].scrollIntoView({ block: "nearest" });
  });
  tokens.querySelectorAll("p").forEach((paragraph) => {
    const all = paragraph.querySelectorAll("[data-i]");
    all.forEach((node, index) => (node.tabIndex = index ? -1 : 0));
  });
  // a bar of the overview may lead to a sequence that is folded away
  find("#sequence-index").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link) return;
    const folded = find(link.hash).closest("details");
    if (folded) folded.open = true;
  });
})();
