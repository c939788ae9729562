"use strict";
// Shows only the photos that fit all filters.
(() => {
  const form = document.querySelector(".filters");
  if (!form) return;
  const cases = [...document.querySelectorAll(".case")];
  const show = () => {
    const { verdict, place, words } = form.elements;
    const wanted = words.value.trim().toLowerCase();
    let count = 0;
    for (const card of cases) {
      const fits =
        (!verdict.value || card.dataset.verdict === verdict.value) &&
        (!place.value || card.dataset.place === place.value) &&
        (!wanted || card.dataset.words.includes(wanted));
      card.hidden = !fits;
      count += fits;
    }
    form.querySelector("output").textContent = `${count} shown`;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
})();
