"use strict";
(() => {
  const shown = JSON.parse(document.getElementById("shown").textContent);
  const length = shown.grid * shown.grid;
  const slider = document.getElementById("keep");
  const count = document.getElementById("count");
  const outlines = document.getElementById("outlines");
  const buttons = [...document.querySelectorAll("[data-stored]")];
  const cards = [...document.querySelectorAll("[data-card]")];

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

  function describe(k, homogeneous) {
    const share = `${k} of ${length} patches, ${Math.round((100 * k) / length)} %`;
    count.textContent = share;
    const text = homogeneous ? `${share}, ${homogeneous} of them homogeneous` : share;
    slider.setAttribute("aria-valuetext", text);
  }

  function press(number) {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === number)));
    document.body.classList.toggle("as-stored", number >= 0);
  }

  function showBest(k) {
    cards.forEach((card, i) => draw(card, shown.cards[i].order.slice(0, k), [], []));
    describe(k, 0);
    press(-1);
  }

  function showStored(number) {
    const { k, best } = shown.stored[number];
    cards.forEach((card, i) => {
      const kept = shown.cards[i].stored[number];
      draw(card, kept, kept.slice(0, best), kept.slice(best));
    });
    slider.value = k;
    describe(k, k - best);
    press(number);
  }

  slider.addEventListener("input", () => showBest(Number(slider.value)));
  buttons.forEach((button, number) =>
    button.addEventListener("click", () => {
      const isOn = button.getAttribute("aria-pressed") === "true";
      return isOn ? showBest(Number(slider.value)) : showStored(number);
    }),
  );
  if (outlines) {
    const toggle = () => document.body.classList.toggle("outlined", outlines.checked);
    outlines.addEventListener("change", toggle);
    toggle();
  }
  showBest(Number(slider.value));
})();
