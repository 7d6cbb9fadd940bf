"use strict";
(() => {
  const shown = JSON.parse(document.getElementById("shown").textContent);
  const length = shown.grid * shown.grid;
  const slider = document.getElementById("keep");
  const count = document.getElementById("count");
  const how = document.getElementById("how");
  const outlines = document.getElementById("outlines");
  const menu = document.getElementById("source");
  const sources = menu ? [...menu.options] : [...document.querySelectorAll("[name=source]")];
  const buttons = [...document.querySelectorAll("[data-stored]")];
  const cards = [...document.querySelectorAll("[data-card]")];
  const tiles = cards.map((card) => [...card.querySelectorAll("[data-tile]")]);
  const chosen = () => (menu ? menu.selectedIndex : sources.findIndex((input) => input.checked));
  const choose = (source) => (menu ? (menu.selectedIndex = source) : (sources[source].checked = true));
  const nameOf = (source) => (menu ? sources[source] : sources[source].parentElement).textContent.trim();
  const squares = (patches) =>
    patches.map((i) => `M${i % shown.grid} ${Math.floor(i / shown.grid)}h1v1h-1z`).join("");
  // Frames stay inside their patch, so that those of neighbors do not cover each other.
  const frames = (patches) =>
    patches
      .map((i) => `M${(i % shown.grid) + 0.07} ${Math.floor(i / shown.grid) + 0.07}h.86v.86h-.86z`)
      .join("");

  function draw(card, kept, best, homogeneous) {
    const isKept = new Set(kept);
    const others = Array.from({ length }, (_, i) => i).filter((i) => !isKept.has(i));
    card.querySelector(".veil").setAttribute("d", squares(others));
    card.querySelector(".casing.frame").setAttribute("d", frames([...best, ...homogeneous]));
    card.querySelector(".best.frame").setAttribute("d", frames(best));
    card.querySelector(".homogeneous.frame").setAttribute("d", frames(homogeneous));
    card.dataset.shown = length - others.length;
  }

  // One path of whole runs of hidden patches a row: there are many tiles.
  function cover(tile, kept, how) {
    const isKept = new Uint8Array(length);
    for (const patch of kept) isKept[patch] = 1;
    let path = "";
    for (let start = 0; start < length; start += 1) {
      if (isKept[start]) continue;
      const row = Math.floor(start / shown.grid);
      let end = start + 1;
      while (end < (row + 1) * shown.grid && !isKept[end]) end += 1;
      path += `M${start % shown.grid} ${row}h${end - start}v1h${start - end}z`;
      start = end - 1;
    }
    tile.querySelector(".cover").setAttribute("d", path);
    tile.querySelector(".how").textContent = how;
    tile.classList.toggle("no-map", how === "");
    tile.dataset.shown = kept.length;
  }

  function coverAll(k) {
    const numbers = shown.stored.map((own) => own.findIndex((choice) => choice[0] === k));
    tiles.forEach((of, i) =>
      of.forEach((tile, source) => {
        const { orders, stored } = shown.cards[i];
        const number = numbers[source];
        if (number >= 0) cover(tile, stored[source][number], "as selected");
        else if (orders[source]) cover(tile, orders[source].slice(0, k), "k best");
        else cover(tile, [], "");
      }),
    );
  }

  // What is kept is never computed here: a beginning of an order, or a selection as it was stored.
  function show() {
    const k = Number(slider.value);
    const source = chosen();
    const number = shown.stored[source].findIndex((choice) => choice[0] === k);
    cards.forEach((card, i) => {
      const { orders, stored } = shown.cards[i];
      const kept = number >= 0 ? stored[source][number] : (orders[source] || []).slice(0, k);
      const best = number >= 0 ? shown.stored[source][number][1] : 0;
      card.classList.toggle("no-map", number < 0 && orders[source] === null);
      draw(card, kept, kept.slice(0, best), number >= 0 ? kept.slice(best) : []);
    });
    coverAll(k);
    describe(k, source, number, nameOf(source));
  }

  function describe(k, source, number, label) {
    const share = `${k} of ${length} patches, ${Math.round((100 * k) / length)} %`;
    const best = number >= 0 ? shown.stored[source][number][1] : k;
    const exact = number >= 0 ? `As selected: ${best} best, ${k - best} homogeneous.` : "";
    count.textContent = share;
    const hasOrder = shown.cards.some((card) => card.orders[source] !== null);
    const otherwise = hasOrder ? `The ${k} best by: ${label.toLowerCase()}.` : `${label} has no scores: it keeps patches at the marked ratios only.`;
    how.textContent = exact || otherwise;
    slider.setAttribute("aria-valuetext", exact ? `${share}. ${exact}` : share);
    buttons.forEach((button) =>
      button.setAttribute("aria-pressed", String(number >= 0 && Number(button.dataset.stored) === k)),
    );
    document.body.classList.toggle("as-stored", number >= 0);
  }

  slider.addEventListener("input", show);
  (menu ? [menu] : sources).forEach((input) => input.addEventListener("change", show));
  // A button shows a stored selection: of the chosen source if it has one, else of the first.
  buttons.forEach((button) =>
    button.addEventListener("click", () => {
      const k = Number(button.dataset.stored);
      const has = (source) => shown.stored[source].some((choice) => choice[0] === k);
      slider.value = k;
      if (!has(chosen())) choose(shown.stored.findIndex((_, source) => has(source)));
      show();
    }),
  );
  if (outlines) {
    const toggle = () => document.body.classList.toggle("outlined", outlines.checked);
    outlines.addEventListener("change", toggle);
    toggle();
  }
  show();
})();
