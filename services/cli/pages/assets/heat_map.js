"use strict";
// Layer by step, in colours.
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
