"use strict";
// Plots of steps: the same zoom and the same cursor in all of them.
const MARGIN = { left: 50, right: 10, top: 8, bottom: 24 };
const shared = { zoom: null, cursor: null, smoothing: 0, runs: [], hiddenRuns: new Set(), charts: [] };

function redrawAll() { for (const chart of shared.charts) chart.draw(); }

function setZoom(range) {
  shared.zoom = range;
  for (const button of document.querySelectorAll(".reset-zoom")) button.hidden = range === null;
  redrawAll();
}

function setCursor(x, source) {
  shared.cursor = x;
  for (const chart of shared.charts) chart.showCursor(x, chart === source);
}

// What line plots and heat maps have in common.
class Chart {
  constructor(figure, place) {
    this.figure = figure;
    this.svg = shape("svg", { "aria-hidden": "true" });
    this.tip = element("div", { class: "tip", role: "status", hidden: "" });
    this.stage = element("div", { class: "stage", tabindex: "0", role: "group" }, this.svg, this.tip);
    this.legend = element("div", { class: "legend" });
    this.note = element("p");
    this.heading = element("h3");
    this.table = element("details", {}, element("summary", {}, "Table"));
    this.table.addEventListener("toggle", () => this.fillTable());
    this.root = element("figure", { class: "plot", id: `plot-${figure.id}` },
      element("figcaption", {}, this.heading, this.note), this.legend, this.stage, this.table);
    place.append(this.root);
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.stage);
    shared.charts.push(this);
  }

  update(figure) {
    this.figure = figure;
    this.heading.replaceChildren(figure.title, ...(figure.unit ? [element("span", { class: "unit" }, figure.unit)] : []));
    this.note.textContent = figure.note;
    this.stage.setAttribute("aria-label", `${figure.title}. Arrow keys read values; the table below has all of them.`);
    this.makeLegend();
    this.draw();
    this.fillTable();
  }

  fillTable() {
    while (this.table.children.length > 1) this.table.lastChild.remove();
    if (!this.table.open) return;
    const [head, rows] = this.rows();
    const row = (cells, tag) => element("tr", {}, ...cells.map((cell) => element(tag, { class: "number" }, cell)));
    this.table.append(element("div", { class: "scroll", tabindex: "0" },
      element("table", {}, element("thead", {}, row(head, "th")), element("tbody", {}, ...rows.map((r) => row(r, "td"))))));
  }

  get innerWidth() { return Math.max(40, this.stage.clientWidth - MARGIN.left - MARGIN.right); }

  get range() {
    const own = this.extent();
    if (!shared.zoom) return own;
    return shared.zoom[1] < own[0] || shared.zoom[0] > own[1] ? own : shared.zoom;
  }

  toX(step) { const [a, b] = this.range; return MARGIN.left + (step - a) / (b - a || 1) * this.innerWidth; }

  toStep(x) { const [a, b] = this.range; return a + (x - MARGIN.left) / this.innerWidth * (b - a); }

  listen() {
    let from = null;
    const at = (event) => event.clientX - this.stage.getBoundingClientRect().left;
    const clamp = (x) => Math.min(MARGIN.left + this.innerWidth, Math.max(MARGIN.left, x));
    this.stage.addEventListener("pointerdown", (event) => {
      if (event.button === 0) { from = clamp(at(event)); this.stage.setPointerCapture(event.pointerId); }
    });
    this.stage.addEventListener("pointermove", (event) => {
      this.pointerY = event.clientY - this.stage.getBoundingClientRect().top;
      setCursor(this.snap(this.toStep(at(event))), this);
      if (from !== null) this.select(from, clamp(at(event)));
    });
    const end = (event) => {
      if (from === null) return;
      const to = clamp(at(event));
      if (event.type === "pointerup" && Math.abs(to - from) > 8) setZoom([this.toStep(Math.min(from, to)), this.toStep(Math.max(from, to))]);
      from = null;
      this.select(0, 0);
    };
    this.stage.addEventListener("pointerup", end);
    this.stage.addEventListener("pointercancel", end);
    this.stage.addEventListener("pointerleave", () => setCursor(null, null));
    this.stage.addEventListener("blur", () => setCursor(null, null));
    this.stage.addEventListener("dblclick", () => setZoom(null));
    this.stage.addEventListener("keydown", (event) => {
      const steps = this.steps().filter((x) => x >= this.range[0] && x <= this.range[1]);
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (event.key === "Escape") setZoom(null);
      else if (move !== undefined && steps.length) {
        const now = shared.cursor === null ? (move > 0 ? -1 : steps.length) : nearest(steps, shared.cursor);
        setCursor(steps[Math.min(steps.length - 1, Math.max(0, now + move))], this);
        event.preventDefault();
      }
    });
  }

  snap(step) { const steps = this.steps(); return steps.length ? steps[nearest(steps, step)] : step; }

  select(a, b) {
    this.selection?.remove();
    if (a === b) return;
    this.selection = shape("rect", {
      x: Math.min(a, b), y: MARGIN.top, width: Math.abs(b - a), height: this.height - MARGIN.top - MARGIN.bottom,
      fill: "var(--accent)", opacity: 0.15,
    });
    this.svg.append(this.selection);
  }

  axes(yTicks, toY) {
    const [a, b] = this.range;
    for (const [tick, label] of yTicks) {
      const y = toY(tick);
      this.svg.append(shape("line", { x1: MARGIN.left, x2: MARGIN.left + this.innerWidth, y1: y, y2: y, stroke: "var(--grid)" }));
      this.svg.append(shape("text", { x: MARGIN.left - 6, y: y + 3.5, "text-anchor": "end" }, label));
    }
    for (const tick of ticks(a, b, this.innerWidth / 45, true)) {
      this.svg.append(shape("text", { x: this.toX(tick), y: this.height - 8, "text-anchor": "middle" }, inWords(tick)));
    }
  }

  showCursor(x, withTip) {
    this.line?.remove();
    this.tip.hidden = true;
    const [a, b] = this.range;
    if (x === null || x < a || x > b || !this.height) return;
    const at = this.toX(x);
    this.line = shape("line", {
      x1: at, x2: at, y1: MARGIN.top, y2: this.height - MARGIN.bottom, stroke: "var(--quiet)", "stroke-dasharray": "2 2",
    });
    this.svg.append(this.line);
    if (!withTip) return;
    this.tip.replaceChildren(...this.tipRows(x));
    this.tip.hidden = false;
    const width = this.tip.offsetWidth, space = this.stage.clientWidth;
    const left = at + 14 + width > space ? at - 14 - width : at + 14;
    this.tip.style.transform = `translate(${Math.min(Math.max(0, left), Math.max(0, space - width))}px, ${MARGIN.top}px)`;
  }
}

function toggle(shown, change, ...content) {
  return element("button", {
    type: "button", title: "Show or hide", "aria-pressed": String(shown),
    onclick: (event) => {
      const button = event.currentTarget, now = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(now));
      change(now);
    },
  }, ...content);
}

function tipRow(paint, name, value) {
  const mark = element("i");
  mark.style.background = paint;
  return element("div", { class: "row" }, mark, element("span", {}, name), element("span", {}, value));
}

class LinePlot extends Chart {
  constructor(figure, place) {
    super(figure, place);
    this.hidden = new Set();
    this.height = 220;
    if (figure.bars) this.root.classList.add("wide");
    this.update(figure);
  }

  get several() { return shared.runs.length > 1; }

  names() { return [...new Set(this.figure.series.map((s) => s.name))]; }

  // Several runs: a colour is a run and a dash is a curve; else a colour is a curve.
  paint(series) { return colour(this.several && !this.figure.stacked ? series.run : this.names().indexOf(series.name)); }

  dash(series) { return this.several && !this.figure.stacked ? DASHES[this.names().indexOf(series.name) % DASHES.length] : ""; }

  label(series) { return this.several ? `${series.name} · ${shared.runs[series.run]}` : series.name; }

  visible() { return this.figure.series.filter((s) => !this.hidden.has(s.name) && !shared.hiddenRuns.has(s.run)); }

  steps() { return [...new Set(this.visible().flatMap((s) => s.x))].sort((a, b) => a - b); }

  extent() {
    const all = this.figure.series.flatMap((s) => [s.x[0], s.x[s.x.length - 1]]);
    const low = Math.min(...all), high = Math.max(...all);
    if (low === high) return [low - 1, high + 1];
    const edge = this.figure.bars ? (high - low) * 0.02 : 0;
    return [low - edge, high + edge];
  }

  // By curve; runs are shown and hidden for the whole page.
  makeLegend() {
    const names = this.names();
    this.legend.replaceChildren(...(names.length < 2 ? [] : names.map((name) => {
      const series = this.figure.series.find((s) => s.name === name);
      const stroke = this.several && !this.figure.stacked ? "currentColor" : this.paint(series);
      const key = shape("svg", { viewBox: "0 0 18 8", "aria-hidden": "true" });
      key.append(shape("line", { x1: 0, x2: 18, y1: 4, y2: 4, stroke, "stroke-width": 3, "stroke-dasharray": this.dash(series) }));
      return toggle(!this.hidden.has(name), (shown) => {
        if (shown) this.hidden.delete(name); else this.hidden.add(name);
        this.draw();
      }, key, name);
    })));
  }

  // Smoothed as TensorBoard does: an exponential mean without its bias towards 0.
  smoothed(values) {
    const keep = shared.smoothing;
    if (!keep || this.figure.bars || this.figure.stacked) return values;
    let mean = 0, weight = 0;
    return values.map((value) => {
      if (value === null) return null;
      mean = keep * mean + (1 - keep) * value;
      weight = keep * weight + (1 - keep);
      return mean / weight;
    });
  }

  layers() {
    const total = new Map();
    return this.visible().map((series) => {
      if (!this.figure.stacked) return { series, y: this.smoothed(series.y), below: null };
      const below = series.x.map((x) => total.get(x) ?? 0);
      const y = series.y.map((value, i) => below[i] + (value ?? 0));
      series.x.forEach((x, i) => total.set(x, y[i]));
      return { series, y, below };
    });
  }

  yRange(layers) {
    const [a, b] = this.range, values = [];
    for (const { series, y, below } of layers) {
      series.x.forEach((x, i) => {
        if (x < a || x > b || y[i] === null) return;
        values.push(y[i], series.y[i]);
        if (this.figure.bars && series.low) values.push(series.low[i], series.high[i]);
        if (below) values.push(below[i]);
      });
    }
    let low = values.length ? Math.min(...values) : 0, high = values.length ? Math.max(...values) : 1;
    // One slow step, such as one with an evaluation, does not flatten all others.
    if (this.figure.stacked && layers.length) {
      const tops = [...layers[layers.length - 1].y].sort((p, q) => p - q);
      const usual = tops[Math.floor(tops.length * 0.95)];
      if (high > 4 * usual) high = 2 * usual;
      low = 0;
    }
    // Values that differ by less than is shown of them are drawn as equal.
    if (high - low <= Math.max(Math.abs(low), Math.abs(high)) * 1e-6) high = low;
    if (this.figure.log) return low === high ? [low / 2, high * 2] : [low / 1.1, high * 1.1];
    if (low === high) return low === 0 ? [0, 1] : [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
    const edge = (high - low) * 0.06;
    return [low >= 0 && low - edge < 0 ? 0 : low - edge, high + edge];
  }

  draw() {
    if (!this.stage.clientWidth) return;
    const width = this.stage.clientWidth, height = this.height;
    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.style.height = `${height}px`;
    const layers = this.layers(), [low, high] = this.yRange(layers), log = this.figure.log;
    const share = log ? (v) => Math.log(v / low) / Math.log(high / low) : (v) => (v - low) / (high - low);
    const toY = (v) => height - MARGIN.bottom - share(v) * (height - MARGIN.top - MARGIN.bottom);
    this.axes((log ? logTicks(low, high) : ticks(low, high, 6)).map((t) => [t, inWords(t)]), toY);
    const clip = `clip-${this.figure.id}`;
    const frame = shape("clipPath", { id: clip });
    frame.append(shape("rect", { x: MARGIN.left - 4, y: MARGIN.top - 4, width: this.innerWidth + 8, height: height - MARGIN.top - MARGIN.bottom + 8 }));
    const group = shape("g", { "clip-path": `url(#${clip})` });
    this.svg.append(frame, group);
    layers.forEach((layer, index) => this.drawSeries(group, layer, toY, index));
  }

  drawSeries(group, { series, y, below }, toY, index) {
    const paint = this.paint(series), line = (values) => {
      let path = "", pen = false;
      values.forEach((value, i) => {
        if (value === null) { pen = false; return; }
        path += `${pen ? "L" : "M"}${this.toX(series.x[i]).toFixed(1)} ${toY(value).toFixed(1)}`;
        pen = true;
      });
      return path;
    };
    const area = (top, bottom, opacity) => {
      const back = series.x.map((x, i) => `L${this.toX(x).toFixed(1)} ${toY(bottom[i]).toFixed(1)}`).reverse().join("");
      group.append(shape("path", { d: `${line(top)}${back}Z`, fill: paint, opacity }));
    };
    if (below) area(y, below, 0.55);
    else if (series.low && !this.figure.bars && !this.figure.log) area(series.high, series.low, 0.15);
    const smooth = y !== series.y && !below;
    if (smooth) group.append(shape("path", { d: line(series.y), fill: "none", stroke: paint, opacity: 0.25 }));
    group.append(shape("path", {
      d: line(y), fill: "none", stroke: paint, "stroke-width": 1.75, "stroke-linejoin": "round", "stroke-dasharray": this.dash(series),
    }));
    if (this.figure.bars && series.low) {
      const dodge = (index % 5 - 1) * 3;
      series.x.forEach((x, i) => {
        const at = this.toX(x) + dodge, low = toY(series.low[i]), high = toY(series.high[i]);
        group.append(shape("path", { d: `M${at} ${low}V${high}M${at - 3} ${low}h6M${at - 3} ${high}h6`, stroke: paint, fill: "none", opacity: 0.8 }));
      });
    }
    if ((series.x.length <= 40 || this.figure.bars) && !below) {
      series.x.forEach((x, i) => {
        if (y[i] !== null) group.append(shape("circle", { cx: this.toX(x), cy: toY(y[i]), r: 2.4, fill: paint }));
      });
    }
  }

  value(series, i) {
    const value = inWords(series.y[i]);
    return series.low ? `${value} (${inWords(series.low[i])} to ${inWords(series.high[i])})` : value;
  }

  tipRows(x) {
    const rows = [element("b", {}, `${this.figure.bars ? "version" : "step"} ${inWords(x)}`)], notes = new Set();
    for (const series of this.visible()) {
      const i = series.x.indexOf(x);
      if (i < 0) continue;
      rows.push(tipRow(this.paint(series), this.label(series), this.value(series, i)));
      if (series.notes?.[i]) notes.add(series.notes[i]);
    }
    return [...rows, ...[...notes].map((note) => element("div", { class: "quiet" }, note))];
  }

  rows() {
    const all = this.figure.series, noted = all.some((s) => s.notes?.some(Boolean));
    const found = [...new Set(all.flatMap((s) => s.x))].sort((a, b) => a - b).map((x) => {
      const notes = [...new Set(all.map((s) => s.notes?.[s.x.indexOf(x)]).filter(Boolean))];
      return [inWords(x), ...all.map((s) => (s.x.includes(x) ? this.value(s, s.x.indexOf(x)) : "")), ...(noted ? [notes.join(", ")] : [])];
    });
    return [[this.figure.bars ? "version" : "step", ...all.map((s) => this.label(s)), ...(noted ? ["sampled by"] : [])], found];
  }
}

class HeatMap extends Chart {
  constructor(figure, place) {
    super(figure, place);
    this.canvas = element("canvas", { "aria-hidden": "true" });
    this.stage.prepend(this.canvas);
    this.update(figure);
  }

  steps() { return this.figure.x; }

  // A column ends at its step and begins where the one before it ends.
  edge(i) { const { x } = this.figure; return i > 0 ? x[i - 1] : x[0] - (x.length > 1 ? x[1] - x[0] : 1); }

  extent() { return [this.edge(0), this.figure.x[this.figure.x.length - 1]]; }

  snap(step) { const { x } = this.figure, i = x.findIndex((end) => end >= step); return x[i < 0 ? x.length - 1 : i]; }

  makeLegend() {
    const bar = element("canvas", { width: "64", height: "1" }), pen = bar.getContext("2d");
    for (let i = 0; i < 64; i++) { pen.fillStyle = viridis(i / 63); pen.fillRect(i, 0, 1, 1); }
    const [low, high] = this.figure.bounds.map(inWords), [first, last] = this.figure.ends;
    this.legend.replaceChildren(element("div", { class: "scale" }, `${low} ${first}`, bar, `${high} ${last}`));
  }

  draw() {
    const { x, y, z, bounds } = this.figure, width = this.stage.clientWidth;
    if (!width || !this.canvas) return;
    const cell = Math.min(28, Math.max(5, Math.floor(260 / y.length)));
    this.height = cell * y.length + MARGIN.top + MARGIN.bottom;
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.canvas.style.height = this.svg.style.height = `${this.height}px`;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.svg.replaceChildren();
    const pen = this.canvas.getContext("2d"), [low, high] = bounds, right = MARGIN.left + this.innerWidth;
    pen.scale(ratio, ratio);
    pen.beginPath();
    pen.rect(MARGIN.left, MARGIN.top, this.innerWidth, cell * y.length);
    pen.clip();
    this.cell = cell;
    for (let i = 0; i < x.length; i++) {
      const from = this.toX(this.edge(i)), to = this.toX(x[i]);
      if (to < MARGIN.left || from > right) continue;
      for (let layer = 0; layer < y.length; layer++) {
        if (z[layer][i] === null) continue;
        pen.fillStyle = viridis(high > low ? (z[layer][i] - low) / (high - low) : 0.5);
        pen.fillRect(from, this.top(layer), to - from + 0.5, cell + 0.5);
      }
    }
    const every = Math.ceil(14 / cell);
    y.forEach((layer, i) => {
      if (i % every === 0) this.svg.append(shape("text", { x: MARGIN.left - 6, y: this.top(i) + cell / 2 + 4, "text-anchor": "end" }, `L${layer}`));
    });
    this.axes([], null);
  }

  // The first layer is the lowest, as in drawings of networks.
  top(layer) { return MARGIN.top + this.cell * (this.figure.y.length - 1 - layer); }

  tipRows(x) {
    const { y, z } = this.figure, i = this.figure.x.indexOf(x);
    const row = Math.floor(((this.pointerY ?? MARGIN.top) - MARGIN.top) / this.cell);
    const layer = Math.min(y.length - 1, Math.max(0, y.length - 1 - row));
    const column = z.map((values) => values[i]).filter((value) => value !== null);
    const paint = (v) => viridis((v - this.figure.bounds[0]) / (this.figure.bounds[1] - this.figure.bounds[0] || 1));
    return [
      element("b", {}, `step ${inWords(x)}`),
      tipRow(paint(z[layer][i]), `layer ${y[layer]}`, inWords(z[layer][i])),
      ...(column.length ? [element("div", { class: "quiet" }, `all layers: ${inWords(Math.min(...column))} to ${inWords(Math.max(...column))}`)] : []),
    ];
  }

  rows() {
    const { x, y, z } = this.figure;
    return [["step", ...y.map((layer) => `layer ${layer}`)], x.map((step, i) => [inWords(step), ...z.map((row) => inWords(row[i]))])];
  }
}

// Draws the figures of a page, or takes newer ones of the same page.
function showFigures(page) {
  shared.runs = page.runs;
  for (const section of page.sections) {
    const place = document.querySelector(`#${section.id} .plots`);
    if (!place) continue;
    place.closest("section").hidden = false;
    for (const figure of section.figures) {
      const known = shared.charts.find((chart) => chart.figure.id === figure.id);
      if (known) known.update(figure);
      else if (figure.kind === "heatmap") new HeatMap(figure, place);
      else new LinePlot(figure, place);
    }
  }
}

// Colours and widths that depend on data: the policy of the page allows no style in its markup.
function dress(root) {
  for (const mark of root.querySelectorAll("[data-colour]")) mark.style.background = colour(Number(mark.dataset.colour));
  for (const bar of root.querySelectorAll("[data-share]")) bar.style.flexGrow = bar.dataset.share;
}

addEventListener("DOMContentLoaded", () => {
  showFigures(JSON.parse(document.getElementById("page-data").textContent));
  dress(document);
  document.getElementById("smoothing").addEventListener("input", (event) => {
    shared.smoothing = Number(event.target.value);
    redrawAll();
  });
  for (const button of document.querySelectorAll(".reset-zoom")) button.addEventListener("click", () => setZoom(null));
  for (const place of document.querySelectorAll(".run[data-run]")) {
    const run = Number(place.dataset.run);
    place.replaceChildren(toggle(true, (shown) => {
      if (shown) shared.hiddenRuns.delete(run); else shared.hiddenRuns.add(run);
      redrawAll();
    }, ...place.childNodes));
  }
});
