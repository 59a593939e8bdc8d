// Anchors among points: who goes to which expert? The numbers are those of gated.gates; tests hold the two together.

const N = 6, GRID = 28, SPAN = 1.25, LEVELS = [0.4, 0.7];
const SCORES = ["linear", "cosine", "Gaussian", "Student-t", "Laplace"];
const SELECTIONS = ["top-k", "Switch", "top-p", "dense to sparse", "expert choice", "Soft MoE", "sigmoid + bias"];

// A table of signed bytes in units of `unit`, written by Python as base64.
function table(text, unit, width) {
  const bytes = Int8Array.from(atob(text), (c) => c.charCodeAt(0));
  return Array.from({ length: bytes.length / width }, (_, r) =>
    Array.from(bytes.subarray(r * width, (r + 1) * width), (b) => b * unit));
}

// Logits of one point for all anchors.
function logits(x, s) {
  const out = [];
  for (let i = 0; i < N; i++) {
    const a = s.anchors[2 * i], b = s.anchors[2 * i + 1], dx = x[0] - a, dy = x[1] - b, square = dx * dx + dy * dy;
    const dot = x[0] * a + x[1] * b, norms = Math.sqrt(x[0] * x[0] + x[1] * x[1]) * Math.sqrt(a * a + b * b);
    out.push({
      linear: dot / s.temperature,
      cosine: dot / (norms || 1) / s.temperature,
      Gaussian: -square / (2 * s.temperature) - Math.log(2 * Math.PI * s.temperature),
      "Student-t": -2 * Math.log1p(square / (2 * s.temperature)) - Math.log(2 * Math.PI * s.temperature),
      Laplace: -Math.sqrt(square) / s.temperature,
    }[s.score]);
  }
  return out;
}

function softmax(l) {
  const best = Math.max(...l), e = l.map((v) => Math.exp(v - best)), sum = e.reduce((a, b) => a + b);
  return e.map((v) => v / sum);
}

const sigmoid = (v) => 1 / (1 + Math.exp(-v));
const ranked = (v) => v.map((_, i) => i).sort((a, b) => v[b] - v[a] || a - b);

// Weights of one row of logits; expert choice, which looks at the whole batch, is done by the caller.
function gate(l, s) {
  const p = softmax(l);
  if (s.selection === "sigmoid + bias") {
    const open = ranked(l.map((v, i) => sigmoid(v) + s.bias[i])).slice(0, s.top_k);
    const sum = open.reduce((total, i) => total + sigmoid(l[i]), 0);
    return l.map((v, i) => (open.includes(i) ? sigmoid(v) / sum : 0));
  }
  if (s.selection === "top-p") {
    const order = ranked(p), w = p.map(() => 0);
    let sum = 0;
    for (const i of order) {
      w[i] = p[i];
      sum += p[i];
      if (sum > s.threshold) break;
    }
    return w;
  }
  if (s.selection === "Soft MoE") return p;
  if (s.selection === "dense to sparse") {
    const best = ranked(l)[0];
    return p.map((v, i) => (v > s.threshold || i === best ? v : 0));
  }
  const open = ranked(l).slice(0, s.top_k), sum = s.selection === "Switch" ? 1 : open.reduce((total, i) => total + p[i], 0);
  return p.map((v, i) => (open.includes(i) ? v / sum : 0));
}

// Normalised mutual information of two labellings, by the mean of their entropies.
function agreement(a, b) {
  const count = new Map(), add = (key) => count.set(key, (count.get(key) ?? 0) + 1), n = a.length;
  if (!n) return 0;
  a.forEach((v, t) => { add("a" + v); add("b" + b[t]); add("c" + v + "," + b[t]); });
  const H = { a: 0, b: 0, c: 0 };
  for (const [key, m] of count) H[key[0]] -= (m / n) * Math.log(m / n);
  const mean = (H.a + H.b) / 2;
  return mean > 0 ? Math.max(0, H.a + H.b - H.c) / mean : 1;
}

function compute(s, points, noise, clusters) {
  const T = points.length, C = Math.ceil((s.capacity * s.top_k * T) / N);
  const l = points.map((x, t) => logits(x, s).map((v, i) => v + s.noise * noise[t][i])), p = l.map(softmax);
  let w, threshold = new Array(N).fill(0);
  if (s.selection === "expert choice") {
    w = p.map(() => new Array(N).fill(0));
    for (let i = 0; i < N; i++) {
      const order = ranked(p.map((row) => row[i])).slice(0, Math.min(C, T));
      for (const t of order) w[t][i] = p[t][i];
      threshold[i] = Math.min(...order.map((t) => p[t][i]).filter((v) => v > 0));
    }
  } else w = l.map((row) => gate(row, s));
  const asked = new Array(N).fill(0), kept = new Array(N).fill(0), pairs = [];
  w.forEach((row, t) => row.forEach((v, i) => { if (v > 0) { asked[i]++; pairs.push([t, i, v]); } }));
  if (s.priority === "largest weight first") {
    const best = w.map((row) => Math.max(...row));
    pairs.sort((a, b) => best[b[0]] - best[a[0]] || a[0] - b[0] || a[1] - b[1]);
  }
  const served = points.map(() => []);
  const slots = s.selection === "Soft MoE";
  for (const [t, i, v] of pairs) if (slots || kept[i] < C) { kept[i]++; served[t].push([v, i]); }
  const top = served.map((list) => (list.length ? list.reduce((a, b) => (b[0] > a[0] || (b[0] === a[0] && b[1] < a[1]) ? b : a))[1] : -1));
  if (slots) [asked, kept].forEach((load) => load.fill(C)); // an expert's load is its slots, whatever the points
  const total = asked.reduce((a, b) => a + b), mean = total / N, importance = p[0].map((_, i) => p.reduce((sum, row) => sum + row[i], 0) / T);
  const known = top.map((_, t) => t).filter((t) => top[t] >= 0);
  const cells = [];
  for (let r = 0; r < GRID; r++) {
    for (let c = 0; c < GRID; c++) {
      const x = [SPAN * ((2 * c + 1) / GRID - 1), SPAN * (1 - (2 * r + 1) / GRID)], row = logits(x, s);
      let v;
      if (s.selection === "expert choice") v = softmax(row).map((q, i) => (q >= threshold[i] ? q : 0));
      else v = gate(row, s);
      const best = ranked(v)[0];
      cells.push(v[best] === 0 ? -1 : 3 * best + (v[best] >= LEVELS[0]) + (v[best] >= LEVELS[1]));
    }
  }
  return {
    top, asked, kept, cells, limit: C,
    dropped: total - kept.reduce((a, b) => a + b), unserved: T - known.length,
    imbalance: Math.sqrt(asked.reduce((sum, v) => sum + (v - mean) ** 2, 0) / N) / mean,
    switch_loss: N * asked.reduce((sum, v, i) => sum + (v / total) * importance[i], 0),
    z_loss: l.reduce((sum, row) => {
      const best = Math.max(...row);
      return sum + (best + Math.log(row.reduce((e, v) => e + Math.exp(v - best), 0))) ** 2;
    }, 0) / T,
    active: kept.reduce((a, b) => a + b) / T,
    agreement: agreement(known.map((t) => top[t]), known.map((t) => clusters[t])),
    kind: s.selection,
  };
}

function render({ model, el }) {
  const keys = ["anchors", "score", "selection", "top_k", "temperature", "noise", "threshold", "capacity", "priority", "rate", "bias", "picked"];
  const unit = model.get("unit"), points = table(model.get("points"), unit, 2), noise = table(model.get("draws"), unit, N);
  const clusters = model.get("clusters");
  const fig = figure({ model, el }, { name: "router", keys, draw, say });
  const marks = (name) => fig.all(`[data-${name}]`);
  const plane = fig.one("[data-plane]"), { left, top, side } = plane.dataset, loads = fig.one("[data-loads]"), loadAt = scale(loads);
  const tiles = marks("tile"), dots = marks("dot"), crosses = marks("cross"), anchors = marks("handle");
  const asked = marks("asked"), kept = marks("kept"), labels = marks("label"), line = fig.one("[data-limit]");
  const px = (x) => +left + (side * (x / SPAN + 1)) / 2, py = (y) => +top + (side * (1 - y / SPAN)) / 2;
  const state = () => Object.fromEntries(keys.map((key) => [key, model.get(key)]));

  function draw() {
    const s = state(), v = compute(s, points, noise, clusters), cell = side / GRID;
    const paths = tiles.map(() => "");
    v.cells.forEach((q, at) => {
      if (q >= 0) paths[q] += `M${(+left + cell * (at % GRID)).toFixed(0)} ${(+top + cell * Math.floor(at / GRID)).toFixed(0)}h${cell}v${cell}h-${cell}z`;
    });
    tiles.forEach((node, q) => put(node, { d: paths[q] || "M0 0" }));
    dots.forEach((node, t) => put(node, { "fill-opacity": v.top[t] < 0 ? "0.00" : "1.00" }));
    crosses.forEach((node, t) => put(node, { visibility: v.top[t] < 0 ? "visible" : "hidden" }));
    dots.forEach((node, t) => { if (v.top[t] >= 0) put(node, { fill: model.get("colours")[v.top[t]] }); });
    anchors.forEach((node, i) => put(node, { transform: `translate(${px(s.anchors[2 * i]).toFixed(2)} ${py(s.anchors[2 * i + 1]).toFixed(2)})` }));
    for (let i = 0; i < N; i++) {
      put(asked[i], { width: Math.max(0, loadAt(v.asked[i]) - loadAt(0)) });
      put(kept[i], { width: Math.max(0, loadAt(v.kept[i]) - loadAt(0)) });
      labels[i].textContent = `${v.asked[i]}` + (s.selection === "sigmoid + bias" ? `, b = ${s.bias[i].toFixed(3).replace("-", "−")}` : "");
    }
    put(line, { x1: loadAt(v.limit), x2: loadAt(v.limit) });
    fig.callout(v.kind, model.get("words"));
    fig.write("imbalance", v.imbalance.toFixed(2));
    fig.write("switch", v.switch_loss.toFixed(2));
    fig.write("z", v.z_loss.toFixed(2));
    fig.write("dropped", `${v.dropped} (${v.unserved})`);
    fig.write("active", `${v.active.toFixed(2)} (${((100 * v.active) / N).toFixed(0)} %)`);
    fig.write("agreement", v.agreement.toFixed(2));
    return v;
  }

  function say(v) {
    return `${model.get("words")[v.kind][0]}. Loads ${v.asked.join(", ")}; ${v.unserved} points without an expert. Agreement with the clusters ${v.agreement.toFixed(2)}.`;
  }

  choice(fig, { key: "score", label: "Score", options: SCORES.map((name) => [name, name]) });
  choice(fig, { key: "selection", label: "Selection", options: SELECTIONS.map((name) => [name, name]) });
  const decode = (u) => +(0.05 * 100 ** u).toPrecision(3), encode = (v) => Math.log(v / 0.05) / Math.log(100);
  slider(fig, { key: "top_k", label: "Experts k", min: 1, max: 4, step: 1 });
  slider(fig, { key: "temperature", label: "Temperature τ", min: 0, max: 1, step: 0.01, decode, encode, show: (v) => String(v) });
  slider(fig, { key: "noise", label: "Noise σ", min: 0, max: 2, step: 0.05, show: (v) => v.toFixed(2) });
  const parts = { threshold: slider(fig, { key: "threshold", label: "Threshold P", min: 0.05, max: 0.95, step: 0.05, show: (v) => v.toFixed(2) }) };
  slider(fig, { key: "capacity", label: "Capacity factor", min: 0.25, max: 3, step: 0.25, show: (v) => v.toFixed(2) });
  parts.rate = slider(fig, { key: "rate", label: "Bias step γ", min: 0.001, max: 0.05, step: 0.001, show: (v) => v.toFixed(3) });
  // What the selection does not look at is pale and stands still.
  fig.followers.push(() => Object.entries(model.get("applies")).forEach(([key, selections]) => {
    parts[key].disabled = !selections.includes(model.get("selection"));
    parts[key].parentNode.style.opacity = parts[key].disabled ? "0.45" : "";
  }));
  const steps = (count) => () => {
    const s = { ...state(), selection: "sigmoid + bias" };
    for (let step = 0; step < count; step++) {
      const { asked } = compute(s, points, noise, clusters), mean = asked.reduce((a, b) => a + b) / N;
      s.bias = s.bias.map((b, i) => +(b + s.rate * Math.sign(mean - asked[i])).toFixed(6));
    }
    fig.ease({ selection: s.selection, bias: s.bias });
  };
  buttons(fig, "Bias, order and anchors", [
    ["one bias step", steps(1)],
    ["ten steps", steps(10)],
    ["bias to zero", () => fig.ease({ bias: new Array(N).fill(0) })],
    ["anchors to the clusters", () => fig.ease({ anchors: model.get("centres") })],
  ]);
  choice(fig, { key: "priority", label: "Who is served first", options: [["first come", "first come"], ["largest weight first", "largest weight first"]] });

  // Anchors: dragged in two directions, or moved by the arrow keys.
  const svg = plane.ownerSVGElement, clamp = (v) => +Math.min(SPAN, Math.max(-SPAN, v)).toFixed(2);
  put(svg, { role: "group" });
  const move = (i, x, y) => {
    const now = [...model.get("anchors")];
    [now[2 * i], now[2 * i + 1]] = [clamp(x), clamp(y)];
    if (now[2 * i] === 0 && now[2 * i + 1] === 0) now[2 * i] = 0.01; // a direction is needed for cosines
    fig.set({ anchors: now, picked: i });
  };
  const follow = (i, event) => {
    const box = svg.getBoundingClientRect(), ratio = svg.viewBox.baseVal.width / box.width;
    move(i, SPAN * ((2 * ((event.clientX - box.left) * ratio - left)) / side - 1), SPAN * (1 - (2 * ((event.clientY - box.top) * ratio - top)) / side));
  };
  anchors.forEach((node, i) => {
    put(node, { role: "slider", "aria-label": `Anchor of expert ${i + 1}`, "aria-valuemin": String(-SPAN), "aria-valuemax": String(SPAN) });
    node.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      node.setPointerCapture(event.pointerId);
      follow(i, event);
      node.focus({ preventScroll: true });
    });
    still(node);
    node.addEventListener("pointermove", (event) => { if (node.hasPointerCapture(event.pointerId)) follow(i, event); });
    node.addEventListener("focus", () => { if (model.get("picked") !== i) fig.set({ picked: i }); });
    node.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-0.05, 0], ArrowRight: [0.05, 0], ArrowUp: [0, 0.05], ArrowDown: [0, -0.05] }[event.key];
      const turn = { PageDown: 1, PageUp: -1 }[event.key];
      if (step) move(i, model.get("anchors")[2 * i] + step[0], model.get("anchors")[2 * i + 1] + step[1]);
      else if (turn) anchors[(i + turn + N) % N].focus();
      else return;
      event.preventDefault();
    });
  });
  fig.followers.push(() => anchors.forEach((node, i) => {
    const [x, y] = model.get("anchors").slice(2 * i, 2 * i + 2);
    put(node, { tabindex: i === model.get("picked") ? "0" : "-1", "aria-valuenow": String(x), "aria-valuetext": `${x.toFixed(2)}, ${y.toFixed(2)}` });
  }));
  fig.update();
  return fig.stop;
}

export default { render };
