"use strict";
// A response, token by token, coloured by what the policies and routers said of each.
const AWAY = "194 87 12", TOWARDS = "31 95 191"; // orange and blue: told apart by every kind of eye

function known(values) { return (values ?? []).filter((value) => value !== null); }

// Where most of the values lie: one token out of a thousand does not make all others pale.
function reach(values, least) {
  const sizes = known(values).map(Math.abs).sort((a, b) => a - b);
  return Math.max(least, sizes.length ? sizes[Math.ceil((sizes.length - 1) * 0.98)] : 0);
}

function shade(colour, share) { return `rgb(${colour} / ${(0.75 * Math.min(1, Math.max(0, share))).toFixed(3)})`; }

// Each: whether a sample has it, and a colour for a token with words for the two ends of the scale.
const COLOURINGS = {
  gamma: {
    label: "router shift γ", has: (t) => known(t.gamma).length > 0,
    make(t) {
      const most = reach(known(t.gamma).map((g) => -Math.log(Math.max(g, 1e-9))), 1e-3);
      return {
        colour: (i) => t.gamma[i] === null ? "" : shade(AWAY, -Math.log(Math.max(t.gamma[i], 1e-9)) / most),
        scale: [["1: unmoved", shade(AWAY, 0)], [`${inWords(Math.exp(-most))}: moved`, shade(AWAY, 1)]],
      };
    },
  },
  log_ratio: {
    label: "log-ratio", has: (t) => known(t.log_ratio).length > 0,
    make(t) {
      const most = reach(t.log_ratio, 1e-3);
      return {
        colour: (i) => t.log_ratio[i] === null ? "" : shade(t.log_ratio[i] < 0 ? AWAY : TOWARDS, Math.abs(t.log_ratio[i]) / most),
        scale: [[`−${inWords(most)}: less likely now`, shade(AWAY, 1)], ["0", shade(AWAY, 0)], [`+${inWords(most)}: more likely now`, shade(TOWARDS, 1)]],
      };
    },
  },
  versions: {
    label: "version", has: (t) => t.versions.length > 0,
    make(t) {
      const all = [...new Set(t.versions)].sort((a, b) => a - b);
      const paint = (version) => `color-mix(in srgb, ${colour(all.indexOf(version))} 35%, transparent)`;
      return { colour: (i) => paint(t.versions[i]), scale: all.map((version) => [`version ${version}`, paint(version)]) };
    },
  },
  surprise: {
    label: "log-prob at sampling", has: (t) => known(t.logprobs).length > 0,
    make(t) {
      const most = reach(t.logprobs, 1e-3);
      return {
        colour: (i) => t.logprobs[i] === null ? "" : shade(AWAY, -t.logprobs[i] / most),
        scale: [["0: certain", shade(AWAY, 0)], [`−${inWords(most)}: surprising`, shade(AWAY, 1)]],
      };
    },
  },
  entropy: {
    label: "entropy", has: (t) => known(t.entropy).length > 0,
    make(t) {
      const most = reach(t.entropy, 1e-3);
      return {
        colour: (i) => t.entropy[i] === null ? "" : shade(TOWARDS, t.entropy[i] / most),
        scale: [["0", shade(TOWARDS, 0)], [`${inWords(most)} nats`, shade(TOWARDS, 1)]],
      };
    },
  },
  none: { label: "nothing", has: () => true, make: () => ({ colour: () => "", scale: [] }) },
};

// Spaces and ends of lines are tokens like others, and must be seen.
function visible(piece) { return piece === "" ? "∅" : piece.replace(/\n/g, "↵\n").replace(/^ +$/, (s) => "·".repeat(s.length)); }

class TokenView {
  constructor(sample) {
    this.sample = sample;
    this.tokens = sample.tokens;
    this.tip = element("div", { class: "tip token-tip", role: "status", hidden: "" });
    this.text = element("div", { class: "tokens", tabindex: "0", role: "group", "aria-label": "The response by token; arrow keys move" });
    this.spans = this.tokens.pieces.map((piece, i) => element("span", { "data-token": i }, visible(piece)));
    this.text.append(...this.inOrder());
    this.legend = element("span", { class: "token-scale" });
    const choices = Object.entries(COLOURINGS).filter(([, c]) => c.has(this.tokens));
    this.choice = element("select", { class: "colouring", onchange: () => this.paint(this.choice.value) },
      ...choices.map(([name, c]) => element("option", { value: name }, c.label)));
    this.table = element("details", {}, element("summary", {}, "Table of tokens"));
    this.table.addEventListener("toggle", () => this.fillTable(), { once: true });
    this.root = element("div", { class: "token-view" },
      element("div", { class: "tools" }, element("label", {}, "Coloured by", this.choice), this.legend), this.text, this.tip, this.table);
    this.listen();
    this.paint(choices[0][0]);
  }

  // Sampled tokens, and between them what others said and what a turn has earned, as blocks.
  inOrder() {
    const { segments } = this.sample;
    if (!segments.length) return this.spans;
    let begin = 0;
    const block = (name, text) => element("div", { class: "given" }, element("b", {}, name), ` ${text}`);
    return segments.flatMap(({ is_sampled: isSampled, role, tokens, text, reward }) => {
      if (!isSampled) return [block(role, text)];
      begin += tokens;
      const said = this.spans.slice(begin - tokens, begin);
      return reward === null ? said : [...said, block("earned", reward)];
    });
  }

  paint(name) {
    const { colour: paint, scale } = COLOURINGS[name].make(this.tokens);
    for (const [i, span] of this.spans.entries()) {
      span.style.backgroundColor = paint(i);
      span.classList.toggle("clipped", Boolean(this.tokens.clipped?.[i]));
    }
    this.legend.replaceChildren(...scale.map(([words, background]) => {
      const mark = element("i");
      mark.style.backgroundColor = background;
      return element("span", {}, mark, words);
    }));
  }

  listen() {
    this.text.addEventListener("pointerover", (event) => {
      const span = event.target.closest("[data-token]");
      if (span) this.show(Number(span.dataset.token));
    });
    this.text.addEventListener("pointerleave", () => this.show(null));
    this.text.addEventListener("blur", () => this.show(null));
    this.text.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (move === undefined || !this.tokens.pieces.length) return;
      event.preventDefault();
      this.show(Math.min(this.tokens.pieces.length - 1, Math.max(0, (this.active ?? -1) + move)));
    });
  }

  show(i) {
    if (this.active != null) this.spans[this.active]?.classList.remove("active");
    this.active = i;
    this.tip.hidden = i === null;
    if (i === null) return;
    const span = this.spans[i];
    span.classList.add("active");
    this.tip.replaceChildren(...this.tipRows(i));
    const box = span.getBoundingClientRect(), root = this.root.getBoundingClientRect();
    const left = Math.min(Math.max(0, box.left - root.left), Math.max(0, root.width - this.tip.offsetWidth));
    const below = box.bottom + this.tip.offsetHeight + 6 <= innerHeight || box.top < this.tip.offsetHeight + 6;
    const top = below ? box.bottom - root.top + 6 : box.top - root.top - this.tip.offsetHeight - 6;
    this.tip.style.transform = `translate(${left}px, ${top}px)`;
  }

  numbers(i) {
    const t = this.tokens, at = (values) => values?.[i];
    return [
      ["token id", at(t.ids)], ["version", at(t.versions)], ["γ", at(t.gamma)], ["log-ratio", at(t.log_ratio)],
      ["log-prob at sampling", at(t.logprobs)], ["log-prob in training", at(t.trained_logprobs)], ["entropy", at(t.entropy)],
    ].filter(([, value]) => value !== undefined && value !== null);
  }

  tipRows(i) {
    const rows = [element("b", { class: "mono" }, JSON.stringify(this.tokens.pieces[i])), ` token ${i}`,
      ...this.numbers(i).map(([name, value]) => element("div", { class: "row" }, element("span", {}, name), element("span", {}, inWords(value))))];
    if (this.tokens.clipped?.[i]) rows.push(element("div", { class: "quiet" }, "clipped: no gradient"));
    const drift = this.tokens.drift?.[i];
    if (drift && known(drift).length) rows.push(...this.bars(drift));
    return rows;
  }

  // The drift of each layer as bars, on one scale for all tokens of the sample.
  bars(drift) {
    this.most ??= reach(this.tokens.drift.flat(), 1e-6);
    const step = Math.max(3, Math.min(14, Math.floor(240 / drift.length))), height = 44;
    const picture = shape("svg", { viewBox: `0 0 ${step * drift.length} ${height}`, width: step * drift.length, height, "aria-hidden": "true" });
    drift.forEach((value, layer) => {
      const size = value === null ? 0 : Math.max(1, Math.min(1, value / this.most) * height);
      picture.append(shape("rect", { x: layer * step, y: height - size, width: step - 1, height: size, fill: "var(--c1)" }));
    });
    const largest = drift.indexOf(Math.max(...known(drift)));
    const layer = this.sample.layers[largest] ?? largest;
    return [element("div", { class: "quiet" }, `drift by layer; most in layer ${layer}: ${inWords(drift[largest])}`), picture];
  }

  fillTable() {
    const t = this.tokens, names = this.numbers(0).map(([name]) => name);
    const row = (cells, tag) => element("tr", {}, ...cells.map((cell, k) => element(tag, { class: k === 1 ? "mono" : "number" }, cell)));
    const rows = t.pieces.map((piece, i) => {
      const values = new Map(this.numbers(i));
      return row([String(i), JSON.stringify(piece), ...names.map((name) => (values.has(name) ? inWords(values.get(name)) : ""))], "td");
    });
    this.table.append(element("div", { class: "scroll", tabindex: "0" },
      element("table", {}, element("thead", {}, row(["", "token", ...names], "th")), element("tbody", {}, ...rows))));
  }
}
