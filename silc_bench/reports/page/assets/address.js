// Everything that a reader chooses stands in the address after "#", so that a link shows the same.
// A choice changes the address, and only a changed address changes the page.
"use strict";

const address = {
  read() {
    return new URLSearchParams(location.hash.slice(1));
  },

  one(name, otherwise = "") {
    return this.read().get(name) ?? otherwise;
  },

  all(name) {
    return this.read().getAll(name);
  },

  // A choice of filters replaces the address; what opens a dialog can be left with "back".
  change(values, { isStep = false } = {}) {
    const params = this.read();
    for (const [name, value] of Object.entries(values)) {
      params.delete(name);
      const list = Array.isArray(value) ? value : [value];
      for (const item of list) if (item !== null && item !== "") params.append(name, item);
    }
    const hash = `#${params}`;
    if (hash === (location.hash || "#")) return;
    if (isStep) location.hash = hash;
    else location.replace(hash);
  },

  // A link that shows one thing and nothing else.
  link(values) {
    return `#${new URLSearchParams(values)}`;
  },
};

// Clicks on our own links keep the filters; opened elsewhere they show the thing alone.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
  const params = new URLSearchParams(link.getAttribute("href").slice(1));
  if (!params.has("model")) return;
  event.preventDefault();
  const opened = { column: null, with: null, ...Object.fromEntries(params) };
  address.change(opened, { isStep: true });
});
