"use strict";
for (const card of document.querySelectorAll(".card")) {
  const slider = card.querySelector(".slider");
  const range = slider.querySelector("input");
  const move = () => {
    slider.style.setProperty("--at", range.value + "%");
    range.setAttribute("aria-valuetext", range.value + " % from the left");
  };
  range.addEventListener("input", move);
  move();
  for (const select of card.querySelectorAll("select")) {
    const left = select.dataset.side === "left";
    const image = slider.querySelector(left ? ".over" : ".under");
    const tag = slider.querySelector(left ? ".tag.left" : ".tag.right");
    select.addEventListener("change", () => {
      for (const source of card.querySelectorAll("img[data-key]")) {
        if (source.dataset.key !== select.value) continue;
        image.src = source.src;
        image.alt = (left ? "Left" : "Right") + " of the divider: " + source.alt;
        tag.textContent = source.parentElement.querySelector("b").textContent;
      }
    });
  }
}
