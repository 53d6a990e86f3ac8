// Light, dark, or as the system says: a choice of the address.
"use strict";

const THEMES = ["", "light", "dark"];
document.getElementById("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(address.one("theme")) + 1) % THEMES.length];
  address.change({ theme: next });
});

function applyTheme() {
  const theme = THEMES.includes(address.one("theme")) ? address.one("theme") : "";
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  document.getElementById("theme").textContent = `Theme: ${theme || "auto"}`;
}
