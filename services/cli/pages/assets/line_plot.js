"use strict";
// Curves over steps: with bands, with intervals, or stacked.
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
    const clip = `clip-${shared.charts.indexOf(this)}`; // an id of a figure may have names of a run in it
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
