// Two true experts fitted by three. The numbers are those of gated.gaussian_moe; tests hold the two together.

const COLUMNS = 75, ROWS = 301, TOP = 18, BOTTOM = -8, LEVELS = [0.002, 0.02, 0.2];
const WHERE = 0.8, MIDDLE = -1, HALF = 1.5, POINTS = 61, STEP = 1.05, LEAST = 1e-8, CELL = 6;
const TRUTH = { beta0: [-8, 0], beta1: [25, 0], a: [-20, 20], b: [15, -5], variance: [0.3 ** 2, 0.4 ** 2], keep: 2, rank: "logit" };
const sum = (list) => list.reduce((a, b) => a + b, 0);

// The truth and, as expert 3, a copy of its expert 1 with another slope in the gate; the two a distance apart.
function fitted(s, delta) {
  const [first, second] = TRUTH.variance, variance = first * (1 - delta * delta * s.compensate), gap = delta * Math.sqrt(first);
  const beta0 = TRUTH.beta0[0] - Math.LN2 * s.halve;
  return {
    beta0: [beta0, 0, beta0], beta1: [...TRUTH.beta1, s.slope], a: [...TRUTH.a, TRUTH.a[0]],
    b: [TRUTH.b[0] + gap, TRUTH.b[1], TRUTH.b[0] - gap], variance: [variance, second, variance], keep: s.top_k, rank: s.rank,
  };
}

// The kept experts at one x, and everyone's share.
function gate(m, x) {
  const score = m.beta1.map((beta) => beta * x), logit = score.map((v, i) => v + m.beta0[i]);
  const by = m.rank === "slope" ? score : logit;
  const kept = by.map((_, i) => i).sort((i, j) => by[j] - by[i] || i - j).slice(0, m.keep);
  const best = Math.max(...kept.map((i) => logit[i])), share = score.map(() => 0);
  for (const i of kept) share[i] = Math.exp(logit[i] - best);
  const total = sum(share);
  return { kept, share: share.map((v) => v / total) };
}

const normal = (y, mean, variance) => Math.exp((-0.5 * (y - mean) ** 2) / variance) / Math.sqrt(2 * Math.PI * variance);

// The density on the grid, column by column, each from the top down.
function density(m) {
  const out = new Float64Array(COLUMNS * ROWS), h = (TOP - BOTTOM) / (ROWS - 1);
  for (let c = 0; c < COLUMNS; c++) {
    const x = (c + 0.5) / COLUMNS, { share } = gate(m, x);
    share.forEach((pi, i) => {
      if (pi < 1e-30) return;
      // Beyond nine deviations there is less than float64 can tell from nothing.
      const mean = m.a[i] * x + m.b[i], v = m.variance[i], reach = 9 * Math.sqrt(v), height = pi / Math.sqrt(2 * Math.PI * v);
      const last = Math.min(ROWS - 1, Math.floor((TOP - mean + reach) / h));
      for (let r = Math.max(0, Math.ceil((TOP - mean - reach) / h)); r <= last; r++) {
        const e = TOP - h * r - mean;
        out[c * ROWS + r] += height * Math.exp((-0.5 * e * e) / v);
      }
    });
  }
  return out;
}

// Total variation of each column.
function variation(p, q) {
  return Array.from({ length: COLUMNS }, (_, c) => {
    let total = 0;
    for (let at = c * ROWS; at < (c + 1) * ROWS; at++) total += Math.abs(p[at] - q[at]);
    return (total * (TOP - BOTTOM)) / (ROWS - 1) / 2;
  });
}

// 0 for less than the first level, 1 to 3 where the fit is above the truth, 4 to 6 where it is below.
function level(gap) {
  const size = Math.abs(gap), high = (size >= LEVELS[0]) + (size >= LEVELS[1]) + (size >= LEVELS[2]);
  return gap < 0 && high > 0 ? high + 3 : high;
}

function compute(s, q) {
  const m = fitted(s, s.delta), p = density(m), columns = variation(p, q), levels = new Uint8Array(p.length), counts = new Array(7).fill(0);
  for (let at = 0; at < p.length; at++) counts[(levels[at] = level(p[at] - q[at]))]++;
  const at = (factor) => sum(variation(density(fitted(s, s.delta * factor)), q)) / COLUMNS;
  let exponent = "";
  if (s.delta > 0) {
    const [wider, closer] = [at(STEP), at(1 / STEP)];
    if (closer > LEAST) exponent = Math.round((Math.log(wider / closer) / Math.log(STEP) / 2) * 1000) / 1000;
  }
  const gates = columns.map((_, c) => gate(m, (c + 0.5) / COLUMNS));
  const kept = gates.map((g) => sum(g.kept.map((i) => 1 << i))), faint = gates.every((g) => g.share[2] < 0.05);
  const y = Array.from({ length: POINTS }, (_, j) => MIDDLE + HALF * ((2 * j) / (POINTS - 1) - 1));
  const part = (model, i) => {
    const pi = gate(model, WHERE).share[i];
    return y.map((v) => pi * normal(v, model.a[i] * WHERE + model.b[i], model.variance[i]));
  };
  const add = (lists) => y.map((_, j) => sum(lists.map((list) => list[j]))), parts = [0, 1, 2].map((i) => part(m, i));
  const many = faint ? "faint" : s.delta === 0 ? "copy" : s.compensate ? "hidden" : "split";
  const v = {
    tv: sum(columns) / COLUMNS, exponent,
    kind: s.top_k === 1 ? "short" : s.top_k === 3 ? many : kept.includes(5) ? "crowded" : "dormant",
    kept, shares: [gates.map((g) => g.share[1] + g.share[2]), gates.map((g) => g.share[1])], columns,
    slice: [parts[0], parts[2], add(parts)], truth: add([0, 1].map((i) => part(TRUTH, i))), levels: counts,
  };
  return { v, levels, m };
}

const high = (power) => String(power).replace(/[-0-9]/g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]);
function power(number, digits) {
  const [mantissa, exponent] = number.toExponential(digits).split("e");
  return `${mantissa} × 10${high(+exponent)}`;
}
const small = (number) => (number < 1e-12 ? "0" : number >= 0.001 ? number.toFixed(4) : power(number, 1));

// Which experts are kept, and where.
function keeps(masks) {
  const starts = masks.map((_, c) => c).filter((c) => c === 0 || masks[c] !== masks[c - 1]);
  return "Kept: " + starts.map((c, j) => {
    const names = [0, 1, 2].filter((i) => (masks[c] >> i) & 1).map((i) => i + 1).join(", "), end = starts[j + 1];
    return names + (end ? ` up to x = ${(end / COLUMNS).toFixed(2)}` : "");
  }).join("; then ");
}

function render({ model, el }) {
  const keys = ["top_k", "slope", "delta", "compensate", "halve", "rank"];
  const fig = figure({ model, el }, { name: "cells", keys, draw, say });
  const place = fig.one("[data-height]"), [left, top, foot, strip] = ["left", "top", "gate", "strip"].map((key) => +place.dataset[key]);
  const height = scale(place), row = scale(fig.one("[data-row]")), deltaAt = scale(fig.one("[data-delta]")), tvAt = scale(fig.one("[data-tv]"));
  const [tiles, means, shares, curves] = ["tile", "mean", "share", "slice"].map((name) => fig.all(`[data-${name}]`));
  const dot = fig.one("[data-dot]"), line = fig.one("[data-level]"), kept = fig.one("[data-kept]"), q = density(TRUTH);

  // For each level a path of all its cells, run by run.
  function paths(levels) {
    const out = new Array(6).fill("");
    for (let c = 0; c < COLUMNS; c++) {
      for (let r = 1, start = 0; r <= ROWS; r++) {
        const now = levels[c * ROWS + start];
        if (r < ROWS && levels[c * ROWS + r] === now) continue;
        if (now) out[now - 1] += `M${left + CELL * c} ${top + start}h${CELL}v${r - start}h-${CELL}z`;
        start = r;
      }
    }
    return out;
  }

  function draw() {
    const s = Object.fromEntries(keys.map((key) => [key, model.get(key)])), { v, levels, m } = compute(s, q);
    paths(levels).forEach((d, kind) => put(tiles[kind], { d: d || "M0 0" }));
    means.forEach((node, i) => put(node, {
      y1: row(m.b[i]), y2: row(m.a[i] + m.b[i]), visibility: v.kept.some((mask) => (mask >> i) & 1) ? "visible" : "hidden",
    }));
    shares.forEach((node, i) => {
      put(node, { d: `M${left} ${foot}${v.shares[i].map((share) => `V${(foot - strip * share).toFixed(2)}h${CELL}`).join("")}V${foot}z` });
    });
    const width = (CELL * COLUMNS) / (POINTS - 1);
    curves.forEach((node, i) => {
      put(node, { points: v.slice[i].map((p, j) => `${(left + width * j).toFixed(2)},${height(p).toFixed(2)}`).join(" ") });
    });
    const at = tvAt(Math.log10(Math.max(v.tv, 1e-12))), split = s.delta > 0;
    put(line, { y1: at, y2: at });
    put(dot, { cx: split ? deltaAt(Math.log10(s.delta)) : 0, cy: split ? at : 0, visibility: split ? "visible" : "hidden" });
    fig.one("[data-heading]").textContent = `Total variation V = ${small(v.tv)}`;
    kept.textContent = keeps(v.kept);
    fig.callout(v.kind, model.get("words"));
    fig.write("tv", small(v.tv));
    fig.write("exponent", v.exponent === "" ? "–" : v.exponent.toFixed(2));
    fig.write("n", v.tv < 1e-12 ? "none" : v.tv > 0.01 ? (v.tv ** -2).toFixed(0) : power(v.tv ** -2, 0));
    return v;
  }

  function say(v) {
    const exponent = v.exponent === "" ? "" : ` Exponent in the distance ${v.exponent.toFixed(2)}.`;
    return `${model.get("words")[v.kind][0]}. ${keeps(v.kept)}. Total variation ${v.tv.toPrecision(2)}.${exponent}`;
  }

  slider(fig, { key: "top_k", label: "Experts kept K̄", min: 1, max: 3, step: 1 });
  slider(fig, { key: "slope", label: "Third slope", min: -2, max: 26, step: 0.1, show: (v) => v.toFixed(1).replace("-", "−") });
  slider(fig, { key: "delta", label: "Split distance δ", min: 0, max: 0.9, step: 0.05, show: (v) => `${v.toFixed(2)} s` });
  const group = element(fig.controls, "div", { class: "gx-choice" });
  for (const [key, words] of [["compensate", "compensate the variance: s² (1 − δ²)"], ["halve", "halve the copies’ weights"]]) {
    const label = element(group, "label"), input = element(label, "input", { type: "checkbox", "data-key": key });
    label.append(words);
    input.addEventListener("change", () => fig.set({ [key]: input.checked }));
    fig.followers.push(() => { input.checked = model.get(key); });
  }
  choice(fig, { key: "rank", label: "Selection by", options: [["slope", "select by slope"], ["logit", "by logit"]] });
  const start = { top_k: 2, slope: 24.9, delta: 0, compensate: false, halve: false, rank: "slope" };
  const split = { ...start, top_k: 3, slope: 25, delta: 0.4, halve: true };
  presets(fig, {
    label: "Examples",
    options: [
      ["live copy", start], ["dormant expert", { ...start, slope: -1 }], ["a third place", { ...start, top_k: 3, halve: true }],
      ["split", split], ["hidden split", { ...split, compensate: true }],
    ],
  });
  fig.update();
  return fig.stop;
}

export default { render };
