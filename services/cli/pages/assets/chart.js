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
