// Elements. Every text of the data goes through here as text, never as HTML.
"use strict";

function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// A name of foreign letters keeps its direction to itself.
function nameOf(text) {
  return h("bdi", {}, text);
}

function hidden(text) {
  return h("span", { class: "unseen" }, text);
}
