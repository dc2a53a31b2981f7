"use strict";
// Light and dark: the reader's system decides until the button does.
(() => {
  const root = document.documentElement;
  const remembered = (() => {
    try { return localStorage.getItem("routershift-theme"); } catch { return null; }
  })();
  if (remembered === "light" || remembered === "dark") root.dataset.theme = remembered;
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
      try { localStorage.setItem("routershift-theme", root.dataset.theme); } catch { /* a file:// page may not */ }
      dispatchEvent(new Event("themechange"));
    });
  });
})();
