"use strict";
// Without this, pages are whole: here are only larger pictures, other orders, and links that open what is folded.
const dialog = document.createElement("dialog");
const shown = [...document.querySelectorAll(".zooms img")];
let place = 0;

function show(step) {
  place = (place + step + shown.length) % shown.length;
  const image = new Image();
  const words = document.createElement("p");
  image.src = shown[place].src;
  image.alt = words.textContent = shown[place].alt;
  dialog.replaceChildren(image, words);
}

function zoom(image) {
  place = shown.indexOf(image);
  show(0);
  dialog.showModal();
}

dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) show(step);
});
document.body.append(dialog);

for (const image of shown) {
  image.tabIndex = 0;
  image.setAttribute("role", "button");
  image.addEventListener("click", () => zoom(image));
  image.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    zoom(image);
  });
}

// A gallery's orders stand in data-orders, "key: title, ..."; its items have a number for each, data-KEY. Those behind
// "more" are sorted together with the others, which keep their number.
for (const part of document.querySelectorAll("[data-orders]")) {
  const lists = [...part.querySelectorAll(".gallery")];
  const counts = lists.map((list) => list.children.length);
  const label = document.createElement("label");
  const select = document.createElement("select");
  for (const order of part.dataset.orders.split(", ")) {
    const [key, title] = order.split(": ");
    select.add(new Option(title, key));
  }
  select.addEventListener("change", () => {
    const items = lists.flatMap((list) => [...list.children]);
    items.sort((one, other) => one.dataset[select.value] - other.dataset[select.value]);
    for (const [number, list] of lists.entries()) list.append(...items.splice(0, counts[number]));
  });
  label.className = "sorting";
  label.append("sorted by ", select);
  part.prepend(label);
}

// A link into a folded part opens it, and so does the address of the page.
function unfold(hash) {
  let part = document.getElementById(decodeURIComponent(hash.slice(1)));
  for (; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
}

for (const link of document.querySelectorAll('a[href^="#"]')) link.addEventListener("click", () => unfold(link.hash));
addEventListener("hashchange", () => unfold(location.hash));
unfold(location.hash);
