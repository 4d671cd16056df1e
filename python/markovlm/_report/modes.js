// The gallery of modes, one card at a time, and the text coloured by the chosen one. `reader` is the text above.
(() => {
  const { largest, scale, values } = reader.data.modes;
  const functions = values.map((text) => Int8Array.from(atob(text), (character) => character.charCodeAt(0)));
  const tabs = [...document.querySelectorAll("#mode-index [role=tab]")];
  const cards = [...document.querySelectorAll(".mode-card")];
  let colouring = 0; // the mode of the text's colours

  const valueOf = (mode, i) => {
    const byte = functions[mode][i];
    return byte === -128 ? NaN : Math.sign(byte) * largest[mode] * (byte / 127) ** 2;
  };
  if (functions.length) {
    reader.metrics.mode = {
      value: (i) => valueOf(colouring, i),
      share: (x) => x / scale[colouring],
      ticks: [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1],
      label: (share) => (share % 0.5 ? "" : (share > 0 ? "+" : "") + written(share * scale[colouring], 1)),
      get name() {
        return `mode ${colouring + 1}`;
      },
      get meaning() {
        return (
          `Mode ${colouring + 1} at the prediction of each token; the mean square over the text is 1. Orange: the ` +
          "positive side; blue: the negative side; no colour: the mode is not active there."
        );
      },
    };
  }

  const choose = (mode, focused = false) => {
    tabs.forEach((tab, index) => {
      tab.setAttribute("aria-selected", index === mode);
      tab.tabIndex = index === mode ? 0 : -1;
      cards[index].classList.toggle("closed", index !== mode);
    });
    if (focused) tabs[mode].focus();
    if (mode < functions.length) {
      colouring = mode;
      find("#mode-number").textContent = mode + 1;
      if (reader.metric() === "mode") reader.colourBy("mode");
    }
  };
  find("#mode-index").addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) choose(Number(tab.dataset.mode), true);
  });
  find("#mode-index").addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const at = tabs.findIndex((tab) => tab.tabIndex === 0);
    const last = tabs.length - 1;
    const target = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    choose((target + tabs.length) % tabs.length, true);
  });
  document.querySelectorAll("[data-colour]").forEach((button) => {
    button.hidden = false;
    button.addEventListener("click", () => {
      choose(Number(button.dataset.colour));
      find("#metric input[value=mode]").checked = true;
      reader.colourBy("mode");
      find("#text-section").scrollIntoView();
    });
  });
  cards.forEach((card, index) => {
    card.setAttribute("role", "tabpanel");
    card.setAttribute("aria-labelledby", `mode-tab-${index}`);
  });
  find("#mode-index").hidden = false;
  choose(0);
})();
