"use strict";
/* Values under the pointer, log axis, smoothing, epochs and hidden series for the plots of mmed_jax/common/curves.py.
   Without this script they are read as they stand. Whatever a plot holds is put into the page as text, never as markup.
   The first functions are those of curves.py, by the same rules. */

function extent(values, log, margin) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
  if (log) { low = Math.log10(low); high = Math.log10(high); }
  const size = Math.max(Math.abs(low), Math.abs(high)), least = log ? 1e-12 : 1e-290;
  if (high - low <= Math.max(1e-12 * size, least)) {
    const room = size > least ? size / 2 : 0.5;
    low -= room;
    high += room;
  }
  [low, high] = [low - margin * (high - low), high + margin * (high - low)];
  return log ? [10 ** low, 10 ** high] : [low, high];
}

function ticks(low, high, log, whole) {
  if (log) {
    const powers = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) powers.push(p);
    const step = Math.max(1, Math.ceil(powers.length / 6));
    for (const factors of [[1], [1, 3], [1, 2, 5]]) {
      const all = powers.filter((p) => p % step === 0).flatMap((p) => factors.map((f) => f * 10 ** p));
      const chosen = all.filter((v) => low <= v && v <= high);
      if (chosen.length >= 3) return chosen;
    }
  }
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const round = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough * 0.999);
  const step = whole ? Math.max(1, round) : round;
  const out = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= Math.floor(high / step + 1e-9); k++) out.push(k * step);
  return out;
}

function grouped(digits) {
  const [whole, rest] = digits.split(".");
  return whole.replace(/\B(?=(\d{3})+$)/g, ",") + (rest ? "." + rest : "");
}

function label(v) {
  const size = Math.abs(v);
  if (size && (size < 1e-3 || size >= 1e7)) {
    const [mantissa, power] = v.toExponential(2).split("e");
    return Number(mantissa) + "e" + Number(power);
  }
  return grouped(size >= 1e4 ? v.toFixed(0) : String(Number(v.toPrecision(4))));
}

function axisLabel(v) {
  const size = Math.abs(v);
  if (size >= 1e4 && size < 1e9) return size >= 1e6 ? label(v / 1e6) + "M" : label(v / 1e3) + "k";
  return label(v);
}

function halfWindow(count, smoothing) {
  return Math.floor((count * smoothing) / 300);
}

function rollingMedian(ys, half) {
  return ys.map((_, i) => {
    const near = ys.slice(Math.max(0, i - half), i + half + 1).sort((a, b) => a - b), middle = near.length >> 1;
    return near.length % 2 ? near[middle] : (near[middle - 1] + near[middle]) / 2;
  });
}

function path(xs, ys) {
  return xs.map((x, i) => (i ? "L" : "M") + x.toFixed(1) + " " + ys[i].toFixed(1)).join(" ");
}

/* The place of the number of xs, which ascend, that lies nearest to x. */
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return x - xs[low] <= xs[high] - x ? low : high;
}

function interactive(figure) {
  const svg = figure.querySelector("svg.plot"), axes = svg.querySelector(".axes"), xName = svg.querySelector(".x-name");
  const [left, top, right, bottom] = figure.dataset.box.split(" ").map(Number);
  const numbers = (text) => (text ? text.split(" ").map(Number) : []);
  const items = [...figure.querySelectorAll(".legend li")];
  const lines = [...svg.querySelectorAll("g.series")].map((g, i) => ({
    g, name: g.dataset.name, x: numbers(g.dataset.x), y: numbers(g.dataset.y), bad: numbers(g.dataset.bad),
    perX: Number(g.dataset.epochs), smooth: "smooth" in g.dataset, item: items[i],
    value: items[i].querySelector(".value"), last: items[i].querySelector(".value").textContent,
  }));
  // By its title: a page that follows a run gets further plots, which change the places of others.
  const place = "curves " + document.title + " " + figure.querySelector("figcaption b").textContent;
  const marks = [...svg.querySelectorAll(".marks line")];
  const whole = lines.every((s) => s.x.every(Number.isInteger));
  const state = {
    log: figure.dataset.log === "true", smoothing: Number(figure.dataset.smoothing), epochs: false, hidden: [], ...recall(),
  };
  const cursor = svg.appendChild(element("line", { class: "cursor", y1: top, y2: bottom }));
  let toX, toY, range;

  // A page that follows a run is loaded anew; what was chosen stays. A page of a file may not be allowed to remember.
  function recall() {
    try { return JSON.parse(sessionStorage.getItem(place) || "{}"); } catch { return {}; }
  }
  function remember() {
    try { sessionStorage.setItem(place, JSON.stringify(state)); } catch { /* it does not */ }
  }

  function element(name, attributes, text) {
    const made = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const xOf = (s, x) => (state.epochs ? x * s.perX : x);

  function draw() {
    const shown = lines.filter((s) => !state.hidden.includes(s.name)), usable = (v) => v > 1e-100 || !state.log;
    const seen = shown.length ? shown : lines;
    const xs = seen.flatMap((s) => s.x.map((x) => xOf(s, x))), ys = seen.flatMap((s) => s.y.filter(usable));
    const yRange = ys.length ? extent(ys, state.log, 0.05) : [0.5, 1.5];
    range = extent(xs.length ? xs : [0], false, 0);
    const scale = state.log ? Math.log10 : Number, [low, high] = yRange.map(scale);
    toX = (x) => left + ((x - range[0]) / (range[1] - range[0])) * (right - left);
    toY = (y) => bottom - ((scale(y) - low) / (high - low)) * (bottom - top);
    axes.replaceChildren();
    for (const v of ticks(range[0], range[1], false, whole && !state.epochs)) {
      axes.append(element("line", { x1: toX(v), x2: toX(v), y1: top, y2: bottom }));
      axes.append(element("text", { class: "muted", x: toX(v), y: bottom + 15, "text-anchor": "middle" }, axisLabel(v)));
    }
    for (const v of ticks(yRange[0], yRange[1], state.log)) {
      axes.append(element("line", { x1: left, x2: right, y1: toY(v), y2: toY(v) }));
      axes.append(element("text", { class: "muted", x: left - 5, y: toY(v) + 4, "text-anchor": "end" }, axisLabel(v)));
    }
    xName.textContent = state.epochs ? "epoch" : figure.dataset.xName;
    for (const s of lines) drawSeries(s, shown.includes(s), usable);
    for (const m of marks) {
      const x = Number(m.dataset.x) * (state.epochs ? Number(m.dataset.epochs) : 1);
      m.setAttribute("x1", toX(x));
      m.setAttribute("x2", toX(x));
      m.style.display = x >= range[0] && x <= range[1] ? "" : "none";
    }
    leave();
  }

  function drawSeries(s, shown, usable) {
    s.g.style.display = shown ? "" : "none";
    s.item.classList.toggle("off", !shown);
    const half = s.smooth ? halfWindow(s.y.length, state.smoothing) : 0;
    s.smoothed = half ? rollingMedian(s.y, half) : [];
    const line = (values) => {
      const places = values.map((y, i) => [xOf(s, s.x[i]), y]).filter(([, y]) => usable(y));
      return [places.map(([x]) => toX(x)), places.map(([, y]) => toY(y))];
    };
    const [px, py] = line(s.y), set = (kind, d) => s.g.querySelector("." + kind).setAttribute("d", d);
    set("raw", path(px, py));
    set("smoothed", half ? path(...line(s.smoothed)) : "");
    set("dots", s.y.length <= 40 ? px.map((x, i) => "M" + x.toFixed(1) + " " + py[i].toFixed(1) + "h0").join(" ") : "");
    set("crosses", s.bad.map((x) => "M" + (toX(xOf(s, x)) - 3) + " " + (top + 2) + "l6 6m-6 0l6 -6").join(" "));
    s.g.querySelector(".raw").classList.toggle("faint", half > 0);
  }

  // The values at the point of x that is nearest to the pointer, beside the names in the legend.
  function point(x) {
    let at = null;
    for (const s of lines) {
      if (!s.x.length || state.hidden.includes(s.name)) continue;
      const i = nearest(s.x, state.epochs ? x / s.perX : x), own = xOf(s, s.x[i]);
      if (at === null || Math.abs(own - x) < Math.abs(at - x)) at = own;
    }
    if (at === null) return;
    for (const s of lines) {
      if (!s.x.length) continue;
      const i = nearest(s.x, state.epochs ? at / s.perX : at), away = Math.abs(toX(xOf(s, s.x[i])) - toX(at));
      const smoothed = s.smoothed.length ? " (" + label(s.smoothed[i]) + ")" : "";
      s.value.textContent = away > 12 ? "–" : label(s.y[i]) + smoothed;
    }
    cursor.setAttribute("x1", toX(at));
    cursor.setAttribute("x2", toX(at));
    cursor.style.display = "";
    xName.textContent = (state.epochs ? "epoch" : figure.dataset.xName) + " " + label(at);
    figure.at = at;
  }

  function leave() {
    cursor.style.display = "none";
    xName.textContent = state.epochs ? "epoch" : figure.dataset.xName;
    for (const s of lines) s.value.textContent = s.last;
    figure.at = undefined;
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), width = svg.viewBox.baseVal.width;
    const x = ((event.clientX - box.left) / box.width) * width;
    point(range[0] + ((x - left) / (right - left)) * (range[1] - range[0]));
  });
  svg.addEventListener("pointerleave", leave);
  // The values are read out while the arrow keys move along the curves, not while the pointer does.
  const legend = figure.querySelector(".legend");
  svg.addEventListener("blur", () => { legend.ariaLive = "off"; leave(); });
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    legend.ariaLive = "polite";
    const all = lines.filter((s) => !state.hidden.includes(s.name)).flatMap((s) => s.x.map((x) => xOf(s, x)));
    const xs = [...new Set(all)].sort((a, b) => a - b);
    if (!xs.length) return;
    const next = figure.at === undefined ? (by > 0 ? 0 : xs.length - 1) : nearest(xs, figure.at) + by;
    point(xs[Math.min(xs.length - 1, Math.max(0, next))]);
  });

  const controls = document.createElement("div");
  controls.className = "controls";
  function control(text, kind, key, more) {
    const made = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: kind, ...more });
    input[kind === "range" ? "value" : "checked"] = state[key];
    input.addEventListener("input", () => {
      state[key] = kind === "range" ? Number(input.value) : input.checked;
      remember();
      draw();
    });
    made.append(text, input);
    controls.append(made);
  }
  control("log axis", "checkbox", "log", {});
  if (lines.some((s) => s.smooth && s.y.length > 4)) control("smoothing", "range", "smoothing", { min: 0, max: 20 });
  if (lines.every((s) => s.perX > 0)) control("epochs", "checkbox", "epochs", {}); else state.epochs = false;
  figure.querySelector("figcaption").after(controls);

  if (lines.length > 1) for (const s of lines) {
    const box = document.createElement("input");
    Object.assign(box, { type: "checkbox", checked: !state.hidden.includes(s.name), ariaLabel: "show " + s.name });
    box.addEventListener("input", () => {
      state.hidden = state.hidden.filter((name) => name !== s.name);
      if (!box.checked) state.hidden.push(s.name);
      remember();
      draw();
    });
    const wrapped = document.createElement("label");
    wrapped.append(box, ...s.item.childNodes);
    s.item.append(wrapped);
  }
  draw();
}

if (typeof document !== "undefined") {
  document.querySelectorAll("figure.curves").forEach((figure) => interactive(figure));
}
if (typeof module !== "undefined") {
  module.exports = { extent, ticks, label, axisLabel, halfWindow, rollingMedian, path, nearest };
}
