// Colours the text by another model where there are several, and answers pointer, finger and keyboard; every paragraph is
// one stop of the Tab key.
(() => {
  const tokens = find("#tokens");
  const tip = find("#tip");
  if (!tokens) return;
  const data = JSON.parse(find("#data").textContent);
  const models = data.models.map((model) => ({ ...model, nll: model.nll.map(toNumber), entropy: model.entropy.map(toNumber) }));
  const first = models[data.baseline];
  let chosen = data.model;
  const difference = (i) => models[chosen].nll[i] - first.nll[i];

  const fill = (i) => {
    const node = tokens.querySelector(`[data-i="${i}"]`);
    const title = make("p", "token");
    title.append(make("bdi", "", node.textContent.replace("↵\n", "↵").trim() || "space"));
    const list = make("dl");
    const row = (name, value) => list.append(make("dt", "", name), make("dd", "", value));
    const pair = [[first, data.labels[data.baseline]], [models[chosen], data.labels[chosen]]];
    const x = difference(i);
    if (!Number.isNaN(x)) row(`NLL, ${pair[1][1]} − ${pair[0][1]}`, `${x >= 0.005 ? "+" : ""}${written(x)} nats`);
    for (const [model, name] of pair) {
      if (!Number.isNaN(model.nll[i])) row(`NLL of ${name}`, `${written(model.nll[i])} nats  (p = ${percent(Math.exp(-model.nll[i]))})`);
    }
    for (const [model, name] of pair) row(`entropy of ${name}`, `${written(model.entropy[i])} nats`);
    tip.replaceChildren(title, list);
    for (const [model, name] of pair) {
      if (!model.k) continue;
      const choices = make("ol");
      for (let place = 0; place < model.k; place += 1) {
        const id = model.topIds[i * model.k + place];
        const p = model.topProbabilities[i * model.k + place];
        const item = make("li", model.rank[i] === place ? "actual" : "");
        const word = data.vocabulary[id] ?? `token ${id}`;
        const bar = make("i");
        bar.style.width = `${Math.max(1, 100 * p)}%`;
        item.append(make("bdi", "", word.trim() ? word : word.replaceAll(" ", "␣") || "(empty)"), bar, make("span", "", percent(p)));
        choices.append(item);
      }
      tip.append(make("p", "small", `First choices of ${name}`), choices);
    }
  };
  walkable(tokens, tooltip(tip, fill, tokens));

  const choice = find("#other");
  if (!choice) return;
  choice.hidden = false;
  choice.addEventListener("change", (event) => {
    chosen = Number(event.target.value);
    for (const node of tokens.querySelectorAll("[data-i]")) {
      const x = difference(Number(node.dataset.i));
      node.classList.toggle("unknown", Number.isNaN(x));
      node.classList.toggle("warm", x > 0);
      node.classList.toggle("cool", x < 0);
      node.style.setProperty("--a", Number.isNaN(x) ? 0 : Math.min(1, Math.abs(x) / data.scale).toFixed(2));
    }
  });
})();
