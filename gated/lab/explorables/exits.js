// Gates to exits for one sample, and rules for leaving on the accuracy-cost plane: the numbers of gated.jeidnn.

const POLICIES = { gates: "learned gates", confidence: "confidence", entropy: "entropy", patience: "patience" };
const SLACK = 1e-12; // masses this close are equal
const clampMass = (m) => Math.max(0, m);
const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;

const integers = (text) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return Array.from({ length: bytes.length / 2 }, (_, i) => bytes[2 * i] + 256 * bytes[2 * i + 1]);
};
const rows = (list, size) => Array.from({ length: list.length / size }, (_, i) => list.slice(size * i, size * (i + 1)));

// What a gate takes of the mass m that no earlier exit took.
const spend = (g, m, composition) =>
  composition === "clip" ? Math.min(g, m) : composition === "stick" ? g * m : Math.max(0, g - (1 - m));

function distribution(gates, composition) {
  const p = [];
  let m = 1;
  for (const g of gates) {
    p.push(spend(g, m, composition));
    m = clampMass(m - p.at(-1));
  }
  return [...p, m];
}

function remaining(p) {
  let sum = 0;
  return p.map((value) => {
    const m = clampMass(1 - sum);
    sum += value;
    return m;
  });
}

const first = (length, leaves) => {
  for (let l = 0; l < length; l++) if (leaves(l)) return l;
  return length;
};

// Half of what is left leaves here; read as a distribution function, half of all mass is spent by now.
function hardExit(p, composition) {
  const m = remaining(p), half = (l) => (composition === "cdf" ? 2 * (1 - m[l] + p[l]) >= 1 - SLACK : 2 * p[l] >= m[l] - SLACK);
  return first(p.length - 1, half);
}

function drawn(p, i, step) {
  const u = ((i + 0.5) * step) % 1;
  let sum = 0;
  return first(p.length - 1, (l) => (sum += p[l]) > u);
}

// The first exit at which so many exits in a row have answered alike.
function patient(guess, patience) {
  let run = 0;
  return first(guess.length - 1, (l) => (run = l && guess[l] === guess[l - 1] ? run + 1 : 1) >= patience);
}

// Corners of the least concave curve over points of rising cost, up to the best.
function concaveHull(points) {
  const corners = [];
  for (const [x, y] of points) {
    while (corners.length > 1) {
      const [[ax, ay], [bx, by]] = corners.slice(-2);
      if ((by - ay) * (x - ax) > (y - ay) * (bx - ax)) break;
      corners.pop();
    }
    corners.push([x, y]);
  }
  const best = Math.max(...corners.map((c) => c[1]));
  return corners.slice(0, corners.findIndex((c) => c[1] === best) + 1);
}

// The stored samples, and those that no exit helps, in the form in which all rules read them.
function unpack(g) {
  const L = g.costs.length, scales = g.scales, digits = (text) => [...text].map((c) => parseInt(c, 36));
  const statistics = rows(rows(integers(g.statistics).map((v, i) => v / scales[i % 4]), 4), L);
  const labels = digits(g.labels), guesses = rows(digits(g.guesses), L);
  const losses = rows(integers(g.losses).map((v) => v / scales[4]), L);
  const form = (statistic, guess, label) => ({
    guess, right: guess.map((k) => k === label), confidence: statistic.map((u) => u[0]),
    entropy: statistic.map((u) => 1 - u[1] / Math.log(g.classes)),
    gates: g.weights.map((weights) => weights.map((w, l) => {
      const s = statistic[l].reduce((sum, u, j) => sum + u * w[j], 0) + w[4];
      return 1 / (1 + Math.exp(-s));
    })),
  });
  const samples = guesses.map((guess, i) => form(statistics[i], guess, labels[i]));
  const more = Array.from({ length: Math.floor(samples.length / 4) }, (_, j) => {
    const guess = new Array(L).fill(j % 2);
    if (j % 50 === 1) guess[L - 1] = 0;
    return form(g.unsure, guess, 0);
  });
  const marked = more.map((one) => ({ ...one, gates: one.gates.map((gates) => [1, ...gates.slice(1)]) }));
  return { none: samples, added: [...samples, ...more], marked: [...samples, ...marked], labels, losses };
}

// Mean cost, accuracy and exit rates of a crowd of which each sample has p over the exits, or one exit.
function outcome(crowd, take, costs) {
  const rates = costs.map(() => 0);
  let right = 0;
  crowd.forEach((one, i) => {
    const taken = take(one, i);
    if (typeof taken === "number") {
      rates[taken]++;
      right += one.right[taken];
    } else taken.forEach((p, l) => {
      rates[l] += p;
      right += p * one.right[l];
    });
  });
  const share = rates.map((n) => n / crowd.length);
  return { cost: share.reduce((sum, n, l) => sum + n * costs[l], 0), accuracy: right / crowd.length, share };
}

function compute(s, g, data) {
  const { costs } = g, L = costs.length, crowd = data[s.hopeless], price = g.prices.indexOf(s.price);
  const p = distribution(s.gates, s.composition), mass = remaining(p), exit = hardExit(p, s.composition);
  const h = p.map((v, l) => (l === L - 1 || mass[l] < SLACK ? 1 : Math.min(1, Math.max(0, v / mass[l]))));
  const totals = data.losses[s.sample].map((loss, l) => loss + s.price * costs[l]);
  const rules = {
    gates: (k) => (one) => {
      const q = distribution(one.gates[k], s.composition);
      return s.rule === "hard" ? hardExit(q, s.composition) : q;
    },
    confidence: (tau) => (one) => first(L - 1, (l) => one.confidence[l] >= tau),
    entropy: (tau) => (one) => first(L - 1, (l) => one.entropy[l] >= tau),
    patience: (many) => (one) => patient(one.guess, many),
  };
  const now = { gates: price, confidence: s.threshold, entropy: s.threshold, patience: s.patience };
  const swept = { gates: g.prices.map((_, k) => k), confidence: g.grid, entropy: g.grid, patience: costs.map((_, l) => l + 1) };
  const points = {}, curves = {};
  let own;
  for (const policy in rules) {
    const play = (setting) => outcome(crowd, rules[policy](setting), costs), all = swept[policy].map(play);
    if (policy === s.policy) own = all;
    curves[policy] = all.map((one) => [one.cost, one.accuracy]);
    const here = play(now[policy]);
    points[policy] = [here.cost, here.accuracy];
  }
  const accuracy = costs.map((_, l) => mean(crowd.map((one) => +one.right[l])));
  const oracle = costs.map((_, k) => outcome(crowd, (one) => {
    const l = one.right.indexOf(true);
    return l < 0 || l > k ? 0 : l;
  }, costs)).map((one) => [one.cost, one.accuracy]);
  const take = rules[s.policy](now[s.policy]);
  const exits = crowd.map((one, i) => {
    const taken = take(one);
    return typeof taken === "number" ? taken : drawn(taken, i, g.draw);
  });
  const count = costs.map(() => 0), bias = costs.map(() => 0);
  exits.forEach((l, i) => {
    count[l]++;
    bias[l] += crowd[i].confidence[l] - crowd[i].right[l];
  });
  return {
    p, h, mass, exit, cost: costs[exit], expected: p.reduce((sum, v, l) => sum + v * costs[l], 0), totals,
    best: totals.indexOf(Math.min(...totals)), 
    moved: +data.none[s.sample].gates[price].some((v, l) => Math.abs(v - s.gates[l]) > 1e-9), points, curves,
    random: own.map((one) => [one.cost, one.share.reduce((sum, n, l) => sum + n * accuracy[l], 0)]),
    oracle, accuracy, hull: concaveHull(costs.map((c, l) => [c, accuracy[l]])), exits, count,
    bias: bias.map((sum, l) => sum / Math.max(1, count[l])),
    plain: costs.map((_, l) => mean(crowd.map((one) => one.confidence[l] - one.right[l]))),
    kind: s.hopeless !== "none" ? s.hopeless : { gates: s.composition, patience: "patience" }[s.policy] ?? "threshold",
  };
}

const two = (v) => (v + 1e-9).toFixed(2);
const percent = (v, digits = 1) => `${(100 * v + 1e-9).toFixed(digits)}%`;

function render({ model, el }) {
  const keys = ["sample", "gates", "gate", "composition", "rule", "policy", "price", "threshold", "patience", "hopeless"];
  const fixed = ["statistics", "losses", "guesses", "labels", "costs", "prices", "weights", "classes", "scales", "unsure", "grid", "draw"];
  const g = Object.fromEntries(fixed.map((key) => [key, model.get(key)])), data = unpack(g), L = g.costs.length;
  const fig = figure({ model, el }, { name: "exits", keys, draw, say });
  const marks = {}, cells = {}, strip = (name) => scale(fig.one(`[data-strip="${name}"]`));
  for (const mark of ["mass", "p", "bar", "handle", "curve", "single", "point", "pick", "more", "share", "bias", "plain", "gap", "big"]) {
    marks[mark] = fig.all(`[data-${mark}]`);
  }
  for (const row of ["exit", "answer", "h", "loss"]) cells[row] = fig.all(`[data-cell="${row}"]`);
  const at = { mass: strip("mass"), accuracy: strip("accuracy"), bias: strip("bias"), cost: strip("cost") };
  const sizes = Object.fromEntries(Object.entries(fig.one("[data-stream]").dataset).map(([key, value]) => [key, +value]));
  const path = (points) => "M" + points.map(([x, y]) => `${at.cost(x).toFixed(2)} ${at.accuracy(y).toFixed(2)}`).join("L");
  const ink = (high) => `var(--gx-${high ? "orange, #c46a00" : "blue, #0072b2"})`;

  // A sample's gates follow the sample and lambda, until a hand has moved one of them.
  const set = fig.set, own = (sample, price) => data.none[sample].gates[g.prices.indexOf(price)];
  fig.set = (patch) => {
    const sample = model.get("sample"), price = model.get("price"), gates = model.get("gates");
    const follow = "sample" in patch || ("price" in patch && own(sample, price).every((v, l) => Math.abs(v - gates[l]) < 1e-9));
    set(follow ? { ...patch, gates: own(patch.sample ?? sample, patch.price ?? price) } : patch);
  };

  function draw() {
    const s = Object.fromEntries(keys.map((key) => [key, model.get(key)])), v = compute(s, g, data);
    budget(s, v);
    plane(s, v);
    stream(s, v);
    fig.callout(v.kind, model.get("words"));
    fig.write("exit", `${v.exit + 1}, cost ${two(v.cost)}`);
    fig.write("expected", two(v.expected));
    fig.write("best", `${v.best + 1}`);
    fig.write("policy", `${percent(v.points[s.policy][1])} at ${two(v.points[s.policy][0])}`);
    return v;
  }

  function budget(s, v) {
    const label = data.labels[s.sample], { guess } = data.none[s.sample];
    const strokes = marks.pick[s.sample].querySelectorAll("path");
    marks.big.forEach((node, k) => put(node, { d: strokes[k].getAttribute("d") }));
    fig.write("label", `it is a ${label.toString(36)}`);
    fig.write("whose", v.moved ? "gates by hand" : "its own gates");
    for (let l = 0; l < L; l++) {
      bar(marks.mass[l], at.mass, v.mass[l]);
      bar(marks.p[l], at.mass, v.p[l]);
      put(marks.p[l], { fill: ink(l === v.exit) });
      const least = at.mass(s.composition === "cdf" ? Math.max(0, v.mass[l] - 0.5) : v.mass[l] / 2);
      put(marks.bar[l], { y1: least, y2: least });
      cells.exit[l].style.fontWeight = l === v.exit ? 600 : 400;
      cells.answer[l].textContent = `${guess[l].toString(36)} ${guess[l] === label ? "✓" : "✗"}`;
      cells.h[l].textContent = two(v.h[l]);
      cells.loss[l].textContent = two(v.totals[l]) + (l === v.best ? " ★" : "");
    }
    marks.handle.forEach((node, l) => put(node.querySelector("circle"), { cy: at.mass(s.gates[l]) }));
  }

  function plane(s, v) {
    for (const node of marks.curve) put(node, { d: path(v[node.dataset.curve] ?? v.curves[node.dataset.curve]) });
    marks.single.forEach((node, l) => put(node, { cy: at.accuracy(v.accuracy[l]) }));
    for (const node of marks.point) {
      const name = node.dataset.point, [x, y] = v.points[name], here = name === s.policy;
      put(node, { cx: at.cost(x), cy: at.accuracy(y), r: here ? 8 : 5.5, stroke: here ? "currentColor" : "none" });
    }
  }

  function stream(s, v) {
    const { size, line, side, space, top, left } = sizes, tops = [], seen = v.count.map(() => 0);
    let next = top;
    v.count.forEach((n, l) => {
      tops.push(next);
      put(marks.share[l], { y: next + size - 3.5 });
      marks.share[l].textContent = `${l + 1} · ${percent(n / v.exits.length, 0)}`;
      next += size * Math.max(1, Math.ceil(n / line)) + space;
    });
    [...marks.pick, ...marks.more].forEach((node, i) => {
      const l = v.exits[i] ?? 0, k = seen[l]++, factor = (size - 2) / (i < data.none.length ? side : 8);
      const x = left + size * (k % line), y = tops[l] + size * Math.floor(k / line) + factor / 2;
      put(node, { transform: `translate(${x.toFixed(2)} ${y.toFixed(2)}) scale(${factor.toFixed(4)})` });
      const stroke = i === s.sample ? "currentColor" : "none";
      put(node.firstChild, { "fill-opacity": data.added[i].right[l] ? "0" : "0.3", stroke });
    });
    put(fig.one("[data-extra]"), { visibility: s.hopeless === "none" ? "hidden" : "visible" });
    v.bias.forEach((value, l) => {
      bar(marks.bias[l], at.bias, value);
      put(marks.bias[l], { fill: ink(value > 0), "fill-opacity": v.count[l] >= 10 ? "1" : "0.4" });
      put(marks.plain[l], { y1: at.bias(v.plain[l]), y2: at.bias(v.plain[l]) });
      marks.gap[l].textContent = `${l + 1}: ${v.count[l] ? (value > 0 ? "+" : "−") + two(Math.abs(value)) : "–"}`;
    });
  }

  function say(v) {
    const policy = model.get("policy"), [cost, right] = v.points[policy];
    return `By its gates the digit leaves at exit ${v.exit + 1}. By ${POLICIES[policy]}, ${percent(right)} are right at a mean cost of ${two(cost)}.`;
  }

  choice(fig, { key: "composition", label: "Composition", options: [["clip", "clip (JEI-DNN)"], ["stick", "stick-breaking"], ["cdf", "CDF-consistent"]] });
  slider(fig, { key: "sample", label: `Sample (of ${data.none.length})`, min: 0, max: data.none.length - 1, step: 1, show: (v) => `${v + 1}` });
  fig.controls = fig.all(".gx-controls")[1]; // those of the plane
  choice(fig, { key: "policy", label: "Rule that sorts the digits", options: Object.entries(POLICIES) });
  slider(fig, { key: "price", label: "Gates’ price λ", min: 0, max: g.prices.length - 1, step: 1, decode: (k) => g.prices[k], encode: (v) => g.prices.indexOf(v) });
  slider(fig, {
    key: "threshold", label: "Threshold τ", min: 0, max: 1, step: 0.01, show: (v) => v.toFixed(3),
    decode: (u) => +(1 - (1 - u) ** 2).toFixed(4), encode: (v) => 1 - Math.sqrt(1 - v),
  });
  slider(fig, { key: "patience", label: "Patience", min: 1, max: L, step: 1 });
  choice(fig, { key: "rule", label: "Rule of the gates", options: [["hard", "hard: at one half"], ["expected", "drawn from p"]] });
  choice(fig, { key: "hopeless", label: "Hopeless samples", options: [["none", "digits only"], ["added", "+ 20% hopeless"], ["marked", "… known to the gates"]] });
  handles(fig, { strip: fig.one('[data-strip="mass"]'), key: "gates", step: 0.01, picked: "gate", label: (l) => `Gate ${l + 1}`, show: two });
  for (const node of marks.pick) node.addEventListener("click", () => fig.set({ sample: +node.dataset.pick }));
  fig.update();
  return fig.stop;
}

export default { render };
