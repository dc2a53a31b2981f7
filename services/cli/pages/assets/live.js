"use strict";
// Asks the server for the page again, and takes over what has changed.
const LIVE_SECONDS = 2;

async function follow() {
  const state = document.getElementById("live");
  let { tag } = JSON.parse(document.getElementById("page-data").textContent);
  for (;;) {
    if (!document.hidden) {
      try {
        const answer = await fetch("./", { headers: { "If-None-Match": tag } });
        if (answer.status === 200) {
          tag = answer.headers.get("ETag");
          takeOver(new DOMParser().parseFromString(await answer.text(), "text/html"));
        } else if (answer.status !== 304) {
          throw new Error(answer.statusText);
        }
        state.textContent = "live";
        state.className = "good";
      } catch {
        state.textContent = "not connected";
        state.className = "bad";
      }
    }
    await new Promise((resolve) => setTimeout(resolve, LIVE_SECONDS * 1000));
  }
}

function takeOver(newer) {
  showFigures(JSON.parse(newer.getElementById("page-data").textContent));
  for (const part of ["answers", "dropped-table"]) {
    const now = document.getElementById(part), then = newer.getElementById(part);
    if (now && then) now.replaceWith(document.adoptNode(then));
  }
  dress(document);
  sampleTable?.load();
}

addEventListener("DOMContentLoaded", follow);
