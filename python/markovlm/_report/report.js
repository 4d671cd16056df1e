// Draws the text one page at a time, so that the document stays light, and answers pointer, finger and keyboard.
const reader = (() => {
  const data = JSON.parse(find("#data").textContent);
  const n = data.text.length;
  const PAGE = 600;
  const nll = data.nll.map(toNumber);
  const entropy = data.entropy.map(toNumber);
  const thousands = (x) => x.toLocaleString("en");

  // each metric: its value at a token, and that value as a share of full colour in [-1, 1]
  const level = data.scale.level;
  const surpriseScale = data.scale.surprise;
  const rankScale = Math.log10(Math.max(data.vocabularySize, 10));
  const metrics = {
    surprise: {
      value: (i) => nll[i] - entropy[i],
      share: (x) => x / surpriseScale,
      ticks: [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1],
      label: (share) => (share % 0.5 ? "" : (share > 0 ? "+" : "") + written(share * surpriseScale, surpriseScale % 2 ? 1 : 0)),
      meaning: "NLL − entropy, in nats. Orange: the token was worse than the model expected; blue: better. No colour: as expected.",
    },
    nll: {
      value: (i) => nll[i],
      share: (x) => x / level,
      ticks: [0, 0.25, 0.5, 0.75, 1],
      label: (share) => written(share * level, level % 4 ? 1 : 0) + (share === 1 ? "+" : ""),
      meaning: "−log of the probability that the model gave to this token, in nats. Pale: predicted; deep: unexpected.",
    },
    entropy: {
      value: (i) => entropy[i],
      share: (x) => x / level,
      ticks: [0, 0.25, 0.5, 0.75, 1],
      label: (share) => written(share * level, level % 4 ? 1 : 0) + (share === 1 ? "+" : ""),
      meaning: "How unsure the model was before it saw this token, in nats, on the same scale as NLL. Pale: sure; deep: open.",
    },
    rank: {
      value: (i) => (data.rank[i] < 0 ? NaN : Math.log10(data.rank[i] + 1)),
      share: (x) => x / rankScale,
      ticks: [0, 1, 2, 3, 4, 5].filter((e) => e <= rankScale + 0.2).map((e) => e / rankScale),
      label: (share) => ["1st", "10th", "100th", "1,000th", "10⁴", "10⁵"][Math.round(share * rankScale)],
      meaning: "Place of this token in the model's list of candidates, on a logarithmic scale. Pale: first choice.",
    },
  };
  let metric = find("#metric input:checked").value;

  const colour = (node, x) => {
    const share = Math.max(-1, Math.min(1, metrics[metric].share(x)));
    node.classList.toggle("unknown", Number.isNaN(share));
    node.classList.toggle("warm", share > 0);
    node.classList.toggle("cool", share < 0);
    node.style.setProperty("--a", Number.isNaN(share) ? 0 : Math.abs(share).toFixed(2));
  };

  // ---- pages: whole sequences where they are short, equal parts of a sequence where it is long
  const starts = data.starts;
  const isStart = new Map(starts.map((at, index) => [at, index]));
  const isGap = new Set(data.gaps);
  const pages = [];
  starts.forEach((start, index) => {
    const end = index + 1 < starts.length ? starts[index + 1] : n;
    const last = pages[pages.length - 1];
    if (last && end - last[0] <= PAGE) {
      last[1] = end;
      return;
    }
    const parts = Math.ceil((end - start) / PAGE);
    for (let part = 0; part < parts; part += 1) {
      pages.push([start + Math.round(((end - start) * part) / parts), start + Math.round(((end - start) * (part + 1)) / parts)]);
    }
  });
  const pageOf = (i) => pages.findIndex(([from, to]) => from <= i && i < to);

  const tokens = find("#tokens");
  const tip = find("#tip");
  let page = 0;
  let current = 0; // the one token in the tab order

  const nodeOf = (i) => tokens.querySelector(`[data-i="${i}"]`);
  const heading = (i) => {
    let index = starts.length - 1;
    while (starts[index] > i) index -= 1;
    const from = i - starts[index] + 1;
    const name = data.names[index] && ` · ${data.names[index]}`;
    return `Sequence ${thousands(index + 1)} of ${thousands(starts.length)}${name}` + (from > 1 ? `, from its token ${thousands(from)}` : "");
  };
  const render = () => {
    const [from, to] = pages[page];
    const all = document.createDocumentFragment();
    let paragraph = null;
    for (let i = from; i < to; i += 1) {
      if (!paragraph || isStart.has(i)) {
        all.append(make("h3", "", heading(i)));
        paragraph = all.appendChild(make("p"));
        if (isStart.has(i)) paragraph.append(make("span", "before", data.before[isStart.get(i)]));
      }
      if (isGap.has(i)) paragraph.append(make("i", "gap", " … "));
      const node = make("span", "heat", data.text[i] || "·");
      node.dataset.i = i;
      node.tabIndex = -1;
      colour(node, metrics[metric].value(i));
      paragraph.append(node);
    }
    tokens.replaceChildren(all);
    current = from;
    nodeOf(current).tabIndex = 0;
    hide();
    document.querySelectorAll(".page").forEach((select) => (select.value = page));
    document.querySelectorAll("[data-step]").forEach((button) => {
      const next = page + Number(button.dataset.step);
      button.disabled = next < 0 || next >= pages.length;
    });
    const frame = find("#overview .window");
    frame.style.left = `${(100 * from) / n}%`;
    frame.style.width = `${(100 * (to - from)) / n}%`;
  };
  const open = (index) => {
    page = Math.max(0, Math.min(pages.length - 1, index));
    render();
  };
  const focus = (i) => {
    if (i < 0 || i >= n) return;
    if (pageOf(i) !== page) open(pageOf(i));
    nodeOf(current).tabIndex = -1;
    current = i;
    const node = nodeOf(i);
    node.tabIndex = 0;
    node.focus({ preventScroll: true });
    node.scrollIntoView({ block: "nearest" });
  };

  // ---- what the model said at a token
  const fill = (i) => {
    tip.replaceChildren();
    const shown = data.text[i].replace("↵\n", "↵").trim();
    const title = make("p", "token");
    title.append(make("bdi", "", shown || (data.text[i] ? "space" : "rest of the character before")));
    tip.append(title);
    const list = make("dl");
    const row = (name, value) => list.append(make("dt", "", name), make("dd", "", value));
    const known = !Number.isNaN(nll[i]);
    if (known) row("NLL", `${written(nll[i])} nats  (p = ${percent(Math.exp(-nll[i]))})`);
    row("entropy", `${written(entropy[i])} nats`);
    if (known) {
      const surprise = nll[i] - entropy[i];
      row("surprise", `${surprise > 0 ? "+" : ""}${written(surprise)} nats`);
    }
    if (data.rank[i] >= 0) row("rank", `${thousands(data.rank[i] + 1)} of ${thousands(data.vocabularySize)}`);
    if (!known) row("next token", "not known");
    const { name } = metrics[metric]; // of what has no row of its own above
    if (name) row(name, written(metrics[metric].value(i)));
    tip.append(list);
    if (!data.k) return;
    tip.append(make("p", "small", "The model's first choices"));
    const choices = make("ol");
    for (let place = 0; place < data.k; place += 1) {
      const id = data.topIds[i * data.k + place];
      const p = data.topProbabilities[i * data.k + place];
      const item = make("li", known && data.rank[i] === place ? "actual" : "");
      const name = data.vocabulary[id] ?? `token ${id}`;
      const bar = make("i");
      bar.style.width = `${Math.max(1, 100 * p)}%`;
      item.append(make("bdi", "", name.trim() ? name : name.replaceAll(" ", "␣") || "(empty)"), bar, make("span", "", percent(p)));
      choices.append(item);
    }
    tip.append(choices);
  };
  const { show, hide, tokenAt } = tooltip(tip, fill, tokens);
  tokens.addEventListener("focusin", (event) => {
    const node = tokenAt(event);
    if (!node) return;
    nodeOf(current).tabIndex = -1;
    current = Number(node.dataset.i);
    node.tabIndex = 0;
    show(node);
  });
  tokens.addEventListener("focusout", hide);
  tokens.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const [from, to] = pages[page];
    const target = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: from, End: to - 1 }[event.key];
    if (event.key === "Escape") hide();
    else if (target !== undefined) {
      event.preventDefault();
      focus(target);
    }
  });

  // ---- legend, overview, controls
  const legend = () => {
    const { ticks, label, meaning } = metrics[metric];
    find("#scale").className = `scale ${metric}`;
    find("#scale").replaceChildren(
      ...ticks.map((share) => {
        const item = make("span");
        const swatch = make("i", `heat ${share < 0 ? "cool" : "warm"}`);
        swatch.style.setProperty("--a", Math.min(1, Math.abs(share)));
        item.append(swatch, label(share));
        return item;
      }),
    );
    find("#metric-meaning").textContent = meaning;
  };
  const overview = () => {
    const slices = Math.min(n, 140);
    const means = Array.from({ length: slices }, (_, slice) => {
      let sum = 0;
      let known = 0;
      for (let i = Math.floor((slice * n) / slices); i < Math.floor(((slice + 1) * n) / slices); i += 1) {
        const x = metrics[metric].value(i);
        if (Number.isFinite(x)) {
          sum += x;
          known += 1;
        }
      }
      return known ? sum / known : 0;
    });
    const largest = Math.max(1e-9, ...means.map(Math.abs));
    find("#overview").className = `overview ${metric}`;
    find("#overview .bars").replaceChildren(
      ...means.map((mean) => {
        const bar = make("i", mean < 0 ? "cool" : "warm");
        bar.style.setProperty("--v", (Math.abs(mean) / largest).toFixed(3));
        return bar;
      }),
    );
  };
  const recolour = () => {
    tokens.className = metric;
    for (const node of tokens.querySelectorAll("[data-i]")) colour(node, metrics[metric].value(Number(node.dataset.i)));
    legend();
    overview();
  };
  const colourBy = (name) => {
    metric = name;
    recolour();
  };
  find("#metric").addEventListener("change", (event) => colourBy(event.target.value));
  const shared = { data, metrics, colourBy, metric: () => metric };
  if (!n) return shared;
  document.querySelectorAll(".page").forEach((select) => {
    select.append(...pages.map((_, index) => new Option(thousands(index + 1), index)));
    select.addEventListener("change", () => open(Number(select.value)));
  });
  document.querySelectorAll(".pages").forEach((node) => (node.textContent = thousands(pages.length)));
  document.querySelectorAll(".pager").forEach((pager) => (pager.hidden = pages.length < 2));
  document.querySelectorAll("[data-step]").forEach((button) =>
    button.addEventListener("click", () => {
      open(page + Number(button.dataset.step));
      if (button.closest(".pager") !== find(".pager")) find("#reader").scrollIntoView();
    }),
  );
  find("#overview").addEventListener("click", (event) => {
    const box = find("#overview").getBoundingClientRect();
    open(pageOf(Math.max(0, Math.min(n - 1, Math.floor(((event.clientX - box.left) / box.width) * n)))));
  });
  document.querySelectorAll("[data-token]").forEach((button) => {
    button.hidden = false;
    button.addEventListener("click", () => {
      const i = Number(button.dataset.token);
      open(pageOf(i));
      nodeOf(i).scrollIntoView({ block: "center" });
      focus(i);
    });
  });
  find("#reader").hidden = false;
  find("#overview").hidden = find(".overview-hint").hidden = pages.length < 2; // nothing to survey on a single page
  open(0);
  recolour();
  return shared;
})();
