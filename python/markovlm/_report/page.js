"use strict";
const find = (selector) => document.querySelector(selector);
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
// Numbers as JSON holds them, and as people read them.
const toNumber = (value) => (value === null ? NaN : value === "inf" ? Infinity : value === "-inf" ? -Infinity : value);
const written = (x, digits = 2) => {
  if (Number.isNaN(x)) return "n/a";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  return (Number(x.toFixed(digits)) || 0).toFixed(digits).replace("-", "−"); // || 0: no "−0.00"
};
const percent = (p) => (p > 0 && p < 0.001 ? "< 0.1 %" : (100 * p).toFixed(1) + " %");

// What every page does: the colour scheme, details that are open on paper, and a tooltip that stays on the screen.
(() => {
  const scheme = document.querySelector("#scheme");
  scheme.addEventListener("change", (event) => {
    document.documentElement.dataset.scheme = event.target.value;
  });
  scheme.hidden = false;
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
})();

// `fill(i)` writes into `tip` what there is to say about the token whose node in `tokens` has `data-i`. It follows a mouse, and
// goes back to the token that has the focus.
const tooltip = (tip, fill, tokens) => {
  let shownNode = null;
  const show = (node) => {
    if (shownNode) shownNode.classList.remove("shown");
    shownNode = node;
    node.classList.add("shown");
    node.setAttribute("aria-describedby", "tip");
    fill(Number(node.dataset.i));
    tip.hidden = false;
    const box = node.getClientRects()[0] ?? node.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    tip.classList.toggle("above", box.bottom > window.innerHeight - tip.offsetHeight - 16); // phones: see the style
    const left = Math.max(8, Math.min(box.left, width - tip.offsetWidth - 8));
    const below = box.bottom + 8 + tip.offsetHeight < window.innerHeight || box.top < tip.offsetHeight + 8;
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${window.scrollY + (below ? box.bottom + 8 : box.top - tip.offsetHeight - 8)}px`;
  };
  const hide = () => {
    if (shownNode) {
      shownNode.classList.remove("shown");
      shownNode.removeAttribute("aria-describedby");
    }
    shownNode = null;
    tip.hidden = true;
  };
  const tokenAt = (event) => event.target.closest?.("#tokens [data-i]");
  tokens.addEventListener("pointerover", (event) => {
    const node = tokenAt(event);
    if (node && event.pointerType === "mouse") show(node);
  });
  tokens.addEventListener("pointerleave", () => {
    const focused = document.activeElement?.closest?.("#tokens [data-i]");
    if (focused) show(focused);
    else hide();
  });
  return { show, hide, tokenAt };
};

// The keyboard on tokens that stand in paragraphs: every paragraph is one stop of the Tab key, arrows move in it.
const walkable = (tokens, { show, hide, tokenAt }) => {
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
};
