// Temperature, top-k and noise on a row of logits. The numbers are those of gated.gates; tests hold the two together.

const TAU_LOW = 0.05, TAU_RATIO = 400, STEPS = 40, CURVE_DRAWS = 64;
const INDEX = "₁₂₃₄₅₆₇₈₉";

// A table of signed bytes in units of `unit`, written by Python as base64.
function table(text, unit, width) {
  const bytes = Int8Array.from(atob(text), (c) => c.charCodeAt(0));
  return Array.from({ length: bytes.length / width }, (_, r) =>
    Array.from(bytes.subarray(r * width, (r + 1) * width), (b) => b * unit));
}

// The k largest logits; the earlier one wins a tie.
function topK(z, k) {
  const order = z.map((_, i) => i).sort((a, b) => z[b] - z[a] || a - b);
  const open = z.map(() => false);
  for (const i of order.slice(0, k)) open[i] = true;
  return open;
}

// Softmax over the open logits, or over all with the closed ones cut away afterwards. Writes the weights w, and the
// probabilities p that the gradient is made of: dw_i/dz_j = w_i ((i = j) - p_j) / tau.
function gate(z, open, tau, renormalised, w, p) {
  let best = -Infinity, sum = 0;
  for (let i = 0; i < z.length; i++) if ((open[i] || !renormalised) && z[i] > best) best = z[i];
  for (let i = 0; i < z.length; i++) sum += p[i] = open[i] || !renormalised ? Math.exp((z[i] - best) / tau) : 0;
  for (let i = 0; i < z.length; i++) {
    p[i] /= sum;
    w[i] = open[i] ? p[i] : 0;
  }
  return w;
}

function entropy(w) {
  let sum = 0, h = 0;
  for (const v of w) sum += v;
  for (const v of w) if (v > 0) h -= (v / sum) * Math.log(v / sum);
  return h;
}

// Means over rows of logits: weights, Jacobian (row by row in one array), entropy, effective number.
function average(rows, opens, tau, renormalised, each) {
  const n = rows[0].length, share = 1 / rows.length, w = new Float64Array(n), p = new Float64Array(n);
  const weights = new Array(n).fill(0), jacobian = new Float64Array(n * n);
  let h = 0, effective = 0, square = 0;
  for (let r = 0; r < rows.length; r++) {
    gate(rows[r], opens[r], tau, renormalised, w, p);
    each?.push([...w]);
    for (let i = 0; i < n; i++) {
      if (w[i] === 0) continue;
      const slope = (w[i] * share) / tau;
      weights[i] += w[i] * share;
      jacobian[i * n + i] += slope;
      for (let j = 0; j < n; j++) jacobian[i * n + j] -= slope * p[j];
    }
    const one = entropy(w);
    h += one * share;
    effective += Math.exp(one) * share;
  }
  for (const v of jacobian) square += v * v;
  return { weights, jacobian, entropy: h, effective, norm: Math.sqrt(square) };
}

function regime(n, k, noise, renormalised, row) {
  if (noise > 0) return "noisy";
  if (k === 1) return renormalised ? "hard" : "switch";
  if (k < n && !renormalised) return "truncated";
  if (Math.max(...row.weights) > 0.99) return "argmax";
  if (row.effective > 0.985 * k) return "uniform";
  return k === n ? "dense" : "sparse";
}

function compute(state, deviations, draws) {
  const { logits: z, temperature: tau, top_k: k, noise, order, expert } = state;
  const n = z.length, renormalised = order === "topk-softmax";
  const rows = noise > 0 ? draws.map((e) => z.map((v, i) => v + noise * e[i])) : [z];
  const opens = rows.map((row) => topK(row, k));
  const each = [], row = average(rows, opens, tau, renormalised, each);
  const ordered = z.map((_, i) => each.map((w) => w[i]).sort((a, b) => a - b));
  const last = rows.length - 1, curve = [];
  const some = rows.slice(0, CURVE_DRAWS);
  for (let s = 0; s <= STEPS; s++) curve.push(average(some, opens, TAU_LOW * TAU_RATIO ** (s / STEPS), renormalised));
  const load = z.map(() => 0), importance = z.map(() => 0);
  deviations.forEach((d, r) => {
    const token = z.map((v, i) => v + d[i] + noise * draws[r][i]);
    const w = gate(token, topK(token, k), tau, renormalised, [], []);
    for (let i = 0; i < n; i++) {
      load[i] += (w[i] > 0) / deviations.length;
      importance[i] += w[i] / deviations.length;
    }
  });
  const mean = load.reduce((a, b) => a + b) / n;
  return {
    weights: row.weights,
    low: ordered.map((w) => w[Math.round(0.1 * last)]),
    high: ordered.map((w) => w[Math.round(0.9 * last)]),
    gradient: z.map((_, i) => row.jacobian[i * n + expert]),
    norm: row.norm, entropy: row.entropy, effective: row.effective, load, importance,
    imbalance: Math.sqrt(load.reduce((sum, v) => sum + (v - mean) ** 2, 0) / n) / mean,
    norm_curve: curve.map((c) => c.norm),
    effective_curve: curve.map((c) => c.effective),
    regime: regime(n, k, noise, renormalised, row),
  };
}

// As in drawing.py: over a bar, or over a line that would strike the label through.
const above = (top, line) => (top - 13 < line && line < top - 2 ? line - 3 : top - 4);

function render({ model, el }) {
  const keys = ["logits", "temperature", "top_k", "noise", "order", "expert"];
  const n = model.get("logits").length;
  const unit = model.get("unit"), deviations = table(model.get("deviations"), unit, n), draws = table(model.get("draws"), unit, n);

  const fig = figure({ model, el }, { name: "gates", keys, draw, say });
  const strip = Object.fromEntries(fig.all("[data-strip]").map((node) => [node.dataset.strip, node]));
  const at = Object.fromEntries(Object.entries(strip).map(([name, node]) => [name, scale(node)]));
  const marks = (name) => fig.all(`[data-${name}]`);
  const dots = marks("handle"), weights = marks("weight"), weightLabels = marks("weight-label"), spreads = marks("spread");
  const slopes = marks("slope"), slopeLabels = marks("slope-label");
  const loads = marks("load"), loadLabels = marks("load-label"), shares = marks("importance");
  const heading = fig.one('[data-heading="gradient"]'), over = fig.one('[data-heading="weights"]'), column = fig.one("[data-column]"), even = fig.one("[data-even]");
  const curves = fig.one("[data-curves]"), curveAt = scale(curves), now = fig.one("[data-now]");
  const { left, right } = curves.dataset, curveX = (step) => +left + ((right - left) * step) / STEPS;

  function draw() {
    const state = Object.fromEntries(keys.map((key) => [key, model.get(key)]));
    const v = compute(state, deviations, draws), noisy = state.noise > 0;
    const level = at.load(state.top_k / n);
    for (let i = 0; i < n; i++) {
      const z = at.logits(state.logits[i]), w = v.weights[i], d = v.gradient[i], x = +dots[i].querySelector("circle").getAttribute("cx");
      put(dots[i].querySelector("line"), { y2: z });
      put(dots[i].querySelector("circle"), { cy: z, "fill-opacity": v.high[i] > 0 ? "1" : "0.15" });
      bar(weights[i], at.weights, w);
      put(weightLabels[i], { x: x + (noisy ? 12 : 0), y: at.weights(w) - 4 });
      weightLabels[i].textContent = w === 0 ? "0" : w.toFixed(2);
      put(spreads[i], { y1: at.weights(v.low[i]), y2: at.weights(v.high[i]), visibility: noisy ? "visible" : "hidden" });
      bar(slopes[i], at.gradient, d);
      put(slopes[i], { fill: d < 0 ? "var(--gx-orange, #c46a00)" : "var(--gx-green, #00805b)" });
      put(slopeLabels[i], { y: at.gradient(d) + (d < 0 ? 12 : -4) });
      slopeLabels[i].textContent = d === 0 ? "×" : Math.abs(d) < 0.005 ? "≈0" : d.toFixed(2).replace("-", "−");
      bar(loads[i], at.load, v.load[i]);
      bar(shares[i], at.load, v.importance[i]);
      put(loadLabels[i], { y: above(at.load(v.load[i]), level) });
      loadLabels[i].textContent = (100 * v.load[i]).toFixed(0) + "%";
      if (i === state.expert) put(column, { x: x - column.width.baseVal.value / 2 });
    }
    over.textContent = noisy ? `Gate weights wᵢ: mean over ${draws.length} draws` : "Gate weights wᵢ";
    heading.textContent = `Gradient ∂wᵢ/∂z${INDEX[state.expert]} (× is none)`;
    put(even, { y1: level, y2: level });
    put(fig.one("[data-even-label]"), { y: level + 3.5 });
    const line = (values) => values.map((y, s) => `${curveX(s).toFixed(2)},${curveAt(y).toFixed(2)}`).join(" ");
    put(fig.one('[data-curve="effective"]'), { points: line(v.effective_curve.map((x) => x / n)) });
    put(fig.one('[data-curve="norm"]'), { points: line(v.norm_curve) });
    const place = curveX((STEPS * Math.log(state.temperature / TAU_LOW)) / Math.log(TAU_RATIO));
    put(now, { x1: place, x2: place });
    fig.callout(v.regime, model.get("regimes"));
    fig.write("entropy", `${v.entropy.toFixed(2)} nats`);
    fig.write("effective", `${v.effective.toFixed(2)} of ${n}`);
    fig.write("norm", v.norm.toFixed(3));
    fig.write("imbalance", v.imbalance.toFixed(2));
    return v;
  }

  function say(v) {
    const dead = v.gradient.filter((d) => d === 0).length;
    return `${model.get("regimes")[v.regime][0]}. Weights ${v.weights.map((w) => w.toFixed(2)).join(", ")}. ` +
      `${v.effective.toFixed(1)} effective experts. Gradient with respect to logit ${model.get("expert") + 1} is zero at ${dead} of ${n} experts.`;
  }

  const decode = (position) => +(TAU_LOW * TAU_RATIO ** position).toPrecision(3);
  const encode = (tau) => Math.log(tau / TAU_LOW) / Math.log(TAU_RATIO);
  slider(fig, { key: "temperature", label: "Temperature τ", min: 0, max: 1, step: 0.005, decode, encode, show: (v) => String(v) });
  slider(fig, { key: "top_k", label: "Open experts k", min: 1, max: n, step: 1, show: (v) => `${v} of ${n}` });
  slider(fig, { key: "noise", label: "Noise ν", min: 0, max: 3, step: 0.05, show: (v) => v.toFixed(2) });
  choice(fig, {
    key: "order", label: "Order of the two steps",
    options: [["topk-softmax", "top-k → softmax"], ["softmax-topk", "softmax → top-k"]],
  });
  const calm = { temperature: 1, top_k: n, noise: 0, order: "topk-softmax" };
  presets(fig, {
    label: "Regimes",
    options: [
      ["dense", calm], ["cold", { ...calm, temperature: 0.1 }], ["hot", { ...calm, temperature: 15 }],
      ["sparse", { ...calm, top_k: 2 }], ["hard", { ...calm, top_k: 1 }],
      ["Switch", { ...calm, top_k: 1, order: "softmax-topk" }], ["noisy", { ...calm, top_k: 2, noise: 1 }],
    ],
  });
  handles(fig, {
    strip: strip.logits, key: "logits", step: 0.05, picked: "expert",
    label: (i) => `Logit of expert ${i + 1}`, show: (z) => z.toFixed(2),
  });
  for (const node of marks("pick")) node.addEventListener("click", () => fig.set({ expert: +node.dataset.pick }));
  fig.update();
  return fig.stop;
}

export default { render };
