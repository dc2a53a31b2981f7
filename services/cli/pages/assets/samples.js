"use strict";
// The table of samples: rows come from the server a page at a time, or lie in the page itself.
const COLUMNS = [
  ["step", "step", "number"], ["trajectory", "id", ""], ["outcome", "outcome", ""], ["reward", "reward", "number"],
  ["advantage", "advantage", "number"], ["tokens", "tokens", "number"], ["newest_version", "versions", "number"],
  ["gamma_mean", "γ mean", "number"], ["gamma_min", "γ min", "number"], ["prompt", "prompt", "text"], ["response", "response", "text"],
];

async function ask(path, parameters) {
  const answer = await fetch(`${path}?${new URLSearchParams(parameters)}`);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

const remote = {
  rows: (query) => ask("api/samples", query),
  sample: (step, trajectory) => ask("api/sample", { step, trajectory }),
};

// The same answers from samples that are part of the page.
function embedded(samples) {
  const summaries = samples.map(({ summary }) => summary);
  return {
    async rows(query) {
      const text = query.text.toLowerCase();
      const found = summaries.filter((s) =>
        (!query.outcome || s.outcome === query.outcome)
        && (!query.correct || (s.correct !== null && (s.correct >= 1) === (query.correct === "yes")))
        && (query.first_step === "" || s.step >= Number(query.first_step)) && (query.last_step === "" || s.step <= Number(query.last_step))
        && (!text || [s.trajectory, s.problem, s.prompt, s.response].some((t) => t.toLowerCase().includes(text))));
      const sign = query.descending === "yes" ? -1 : 1, key = query.sort;
      found.sort((a, b) => (a[key] === null) - (b[key] === null) || sign * (a[key] < b[key] ? -1 : a[key] > b[key] ? 1 : 0));
      const rows = found.slice(query.offset, query.offset + query.limit);
      return { rows, total: found.length, kept: summaries.length, outcomes: [...new Set(summaries.map((s) => s.outcome))].sort() };
    },
    async sample(step, trajectory) { return samples.find(({ summary: s }) => s.step === step && s.trajectory === trajectory).sample; },
  };
}

class SampleTable {
  constructor(place, source) {
    this.place = place;
    this.source = source;
    this.query = { offset: 0, limit: 25, sort: "step", descending: "yes", outcome: "", correct: "", text: "", first_step: "", last_step: "" };
    this.asked = 0;
    this.find = (name) => place.querySelector(`[data-part="${name}"]`);
    this.head = element("tr", {}, ...COLUMNS.map(([key, label, kind]) => {
      const button = element("button", { type: "button", onclick: () => this.sort(key) }, label);
      return element("th", { class: kind, "data-key": key, scope: "col" }, button);
    }));
    this.body = element("tbody");
    this.find("table").append(element("thead", {}, this.head), this.body);
    let waiting;
    for (const input of place.querySelectorAll("[data-filter]")) {
      input.addEventListener("input", () => {
        clearTimeout(waiting);
        waiting = setTimeout(() => this.change({ [input.dataset.filter]: input.value.trim(), offset: 0 }), 150);
      });
    }
    this.find("previous").addEventListener("click", () => this.change({ offset: Math.max(0, this.query.offset - this.query.limit) }));
    this.find("next").addEventListener("click", () => this.change({ offset: this.query.offset + this.query.limit }));
    this.load();
  }

  change(parts) { Object.assign(this.query, parts); return this.load(); }

  sort(key) {
    const turned = this.query.sort === key && this.query.descending === "yes" ? "no" : "yes";
    this.change({ sort: key, descending: turned, offset: 0 });
  }

  async load() {
    const number = ++this.asked;
    let found;
    try {
      found = await this.source.rows(this.query);
    } catch (error) {
      if (number === this.asked) this.find("count").textContent = error.message;
      return;
    }
    if (number !== this.asked) return; // a newer question is on its way
    this.rows = found.rows;
    this.place.closest("section").hidden = found.kept === 0 && this.place.dataset.empty === "hide";
    this.body.replaceChildren(...found.rows.map((row) => this.row(row)));
    for (const th of this.head.children) {
      if (th.dataset.key === this.query.sort) th.setAttribute("aria-sort", this.query.descending === "yes" ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    }
    const { offset, limit } = this.query, last = offset + found.rows.length;
    const of = found.total === found.kept ? "" : ` (${found.kept} kept)`;
    this.find("count").textContent = found.total ? `${offset + 1} to ${last} of ${found.total}${of}` : `none of ${found.kept}`;
    this.find("previous").disabled = offset === 0;
    this.find("next").disabled = offset + limit >= found.total;
    const select = this.find("outcome"), chosen = select.value;
    select.replaceChildren(element("option", { value: "" }, "every outcome"), ...found.outcomes.map((o) => element("option", { value: o }, o)));
    select.value = chosen;
  }

  row(summary) {
    const cells = COLUMNS.map(([key, , kind]) => {
      const value = key === "newest_version" && summary.oldest_version !== summary.newest_version
        ? `${summary.oldest_version}–${summary.newest_version}` : summary[key];
      if (key === "trajectory") return element("td", {}, element("button", { type: "button", class: "open", onclick: () => this.open(summary) }, value));
      return element("td", { class: kind }, typeof value === "number" ? inWords(value) : value ?? "–");
    });
    const made = element("tr", { onclick: (event) => { if (!event.target.closest("button")) this.open(summary); } }, ...cells);
    made.classList.toggle("chosen", this.isOpen(summary));
    return made;
  }

  isOpen(summary) { return this.opened?.step === summary.step && this.opened?.trajectory === summary.trajectory; }

  async open(summary) {
    this.opened = summary;
    const place = this.find("detail");
    this.rows.forEach((row, i) => this.body.children[i]?.classList.toggle("chosen", this.isOpen(row)));
    let sample;
    try {
      sample = await this.source.sample(summary.step, summary.trajectory);
    } catch (error) {
      place.replaceChildren(element("p", { class: "bad" }, error.message));
      return;
    }
    if (!this.isOpen(summary)) return;
    const facts = [
      ["reward", inWords(sample.reward)], ["advantage", inWords(sample.advantage)], ["outcome", sample.outcome],
      ["ended by", sample.finish_reason || "–"], ["verifier", [sample.verifier, sample.verifier_version].filter(Boolean).join(" ")],
      ...Object.entries(sample.parts).map(([name, value]) => [name, inWords(value)]), ["problem", sample.problem],
    ].filter(([, value]) => value);
    place.replaceChildren(
      element("div", { class: "tools" }, element("h3", {}, `Step ${sample.step}, ${sample.trajectory}`),
        element("button", { type: "button", onclick: () => this.showGroup(summary) }, "Whole group")),
      element("dl", {}, ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
      ...(sample.message ? [element("h4", {}, "The verifier said"), element("pre", {}, sample.message)] : []),
      element("h4", {}, "Prompt"), element("pre", {}, sample.prompt),
      element("h4", {}, "Response"), new TokenView(sample).root,
    );
    place.scrollIntoView({ block: "nearest" });
  }

  showGroup(summary) {
    const input = this.place.querySelector('[data-filter="text"]');
    input.value = `${summary.group}/`;
    this.change({ text: input.value, offset: 0 });
  }
}

let sampleTable = null;
addEventListener("DOMContentLoaded", () => {
  const place = document.querySelector(".samples");
  if (!place) return;
  const { samples } = JSON.parse(document.getElementById("page-data").textContent);
  sampleTable = new SampleTable(place, samples === null ? remote : embedded(samples));
});
