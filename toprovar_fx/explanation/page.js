"use strict";
// Search over code lines, table rows and fallbacks; `#q=word` in the address searches on load.
const field = document.querySelector("#search");
const count = document.querySelector("#found");
const places = [...document.querySelectorAll(".l, tbody tr, .fallback")];
const words = places.map((place) => place.textContent.toLowerCase());
let hits = [];
let at = -1;

function search() {
  const wanted = field.value.trim().toLowerCase();
  for (const place of hits) place.classList.remove("hit", "here");
  hits = wanted ? places.filter((_, index) => words[index].includes(wanted)) : [];
  for (const place of hits) place.classList.add("hit");
  at = -1;
  document.body.dataset.hits = String(hits.length);
  count.textContent = wanted ? `${hits.length} found` : "";
  history.replaceState(null, "", wanted ? "#q=" + encodeURIComponent(wanted) : location.pathname + location.search);
}

function go(step) {
  if (!hits.length) return;
  hits[at]?.classList.remove("here");
  at = (at + step + hits.length) % hits.length;
  const place = hits[at];
  for (let above = place.parentElement; above; above = above.parentElement) {
    if (above.tagName === "DETAILS") above.open = true;
  }
  place.classList.add("here");
  place.scrollIntoView({ block: "center" });
  count.textContent = `${at + 1} of ${hits.length}`;
}

let waiting;
field.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(search, 150);
});
document.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  go(1);
});
document.querySelector("#previous").addEventListener("click", () => go(-1));
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== field) {
    event.preventDefault();
    field.focus();
  }
});
for (const choice of document.querySelectorAll(".view input")) {
  choice.addEventListener("change", () => {
    for (const code of choice.closest(".inside").querySelectorAll(".code")) {
      code.className = "code show-" + choice.value;
      // What is whole has nothing to fold away.
      for (const fold of code.querySelectorAll("details")) fold.open = choice.value !== "changes";
    }
  });
}
if (location.hash.startsWith("#q=")) {
  field.value = decodeURIComponent(location.hash.slice(3));
  search();
  go(1);
}
