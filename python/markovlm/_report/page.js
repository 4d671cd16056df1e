"use strict";
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
