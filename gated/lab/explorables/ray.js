// A ray in the parameters of a gate with temperature: who notices it? The numbers are those of gated.gaussian_moe.

const TOP = 6; // nats: the upper edge of the second drawing

const logistic = (z) => 1 / (1 + Math.exp(-z)), phi = (z) => 0.5 * (1 + erf(z / Math.SQRT2));
// sigma and its derivative
const SCORES = {
  identity: [(z) => z, () => 1],
  tanh: [Math.tanh, (z) => 1 - Math.tanh(z) ** 2],
  sigmoid: [logistic, (z) => logistic(z) * (1 - logistic(z))],
  gelu: [(z) => z * phi(z), (z) => phi(z) + (z * Math.exp(-0.5 * z * z)) / Math.sqrt(2 * Math.PI)],
  silu: [(z) => z * logistic(z), (z) => logistic(z) * (1 + z * (1 - logistic(z)))],
  softplus: [(z) => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z))), logistic],
  sin: [Math.sin, Math.cos],
  relu: [(z) => Math.max(z, 0), (z) => (z > 0 ? 1 : 0)],
  square: [(z) => z * z, (z) => 2 * z],
  cube: [(z) => z * z * z, (z) => 3 * z * z],
};

// The two experts' shares at x, c times along the ray. The second expert has the score sigma(0) and no bias.
function shares(x, c, kind, s, g) {
  const [score] = SCORES[kind], slope = c ** (1 / (g.degrees[kind] || 1)) * s.beta1;
  const z = (score(slope * x) + c * g.truth.beta0 - score(0)) / (c * g.truth.tau);
  return [logistic(z), logistic(-z)];
}

// The experts' densities at all nodes, which no slider changes, with the weight of the quadrature.
function experts(g) {
  const { a, b, variance } = g.truth, step = g.outputs[1] - g.outputs[0];
  return g.nodes.map((x, j) => {
    const at = [0, 1].map((i) => g.outputs.map((y) => {
      const e = y - a[i] * x - b[i];
      return Math.exp((-0.5 * e * e) / variance[i]) / Math.sqrt(2 * Math.PI * variance[i]);
    }));
    return { x, weight: g.weights[j] * step, first: at[0], second: at[1] };
  });
}

// Expected log-likelihood that a point loses at each c.
function losses(scales, s, g, table) {
  const sum = scales.map(() => 0), length = g.outputs.length, true_ = new Array(length);
  for (const { x, weight, first, second } of table) {
    const [p, q] = shares(x, 1, s.activation, s, g);
    for (let m = 0; m < length; m++) true_[m] = p * first[m] + q * second[m];
    scales.forEach((c, k) => {
      const [pc, qc] = shares(x, c, s.activation, s, g);
      let part = 0;
      for (let m = 0; m < length; m++) part += true_[m] * Math.log(true_[m] / (pc * first[m] + qc * second[m]));
      sum[k] += weight * part;
    });
  }
  return sum;
}

// sqrt((I^-1) of tau) from the last pivot of Cholesky's factor: the derivative along the ray is the last score.
// A score is a factor of x times one of five functions of y, so only the products of the five are summed over y.
function spread(kind, s, g, table) {
  if (g.degrees[kind]) return Infinity;
  const [score, slope] = SCORES[kind], { a, b, variance, tau } = g.truth, which = [1, 1, 2, 3, 3, 4, 0, 0, 0];
  const I = which.map(() => new Array(9).fill(0));
  for (const { x, weight, first, second } of table) {
    const [p, q] = shares(x, 1, kind, s, g), M = Array.from({ length: 5 }, () => new Array(5).fill(0));
    const z = s.beta1 * x, d = slope(z), bend = z * d - score(z) + score(0), f = new Array(5);
    g.outputs.forEach((y, m) => {
      const density = p * first[m] + q * second[m], r = (p * first[m]) / density, t = (q * second[m]) / density;
      const e = y - a[0] * x - b[0], h = y - a[1] * x - b[1];
      f[0] = r - p;
      f[1] = r * e;
      f[2] = r * ((e * e) / variance[0] - 1);
      f[3] = t * h;
      f[4] = t * ((h * h) / variance[1] - 1);
      for (let i = 0; i < 5; i++) for (let j = 0; j <= i; j++) M[i][j] += density * f[i] * f[j];
    });
    const v = variance, factor = [
      x / v[0], 1 / v[0], 0.5 / v[0], x / v[1], 1 / v[1], 0.5 / v[1], 1 / tau, (x * d) / tau, bend / (tau * tau),
    ];
    for (let i = 0; i < 9; i++) for (let j = 0; j <= i; j++) {
      const [l, k] = [which[i], which[j]];
      I[i][j] += weight * factor[i] * factor[j] * M[Math.max(l, k)][Math.min(l, k)];
    }
  }
  for (let i = 0; i < 9; i++) for (let j = 0; j <= i; j++) {
    for (let k = 0; k < j; k++) I[i][j] -= I[i][k] * I[j][k];
    I[i][j] = i === j ? Math.sqrt(I[i][i]) : I[i][j] / I[j][j];
  }
  return 1 / I[8][8];
}

function compute(s, g, table) {
  const here = g.shown.map((x) => shares(x, 1, s.activation, s, g)[0]);
  const there = g.shown.map((x) => shares(x, s.c, s.activation, s, g)[0]);
  const sd = {}, tau = g.truth.tau;
  let own;
  for (const kind in g.names) {
    const value = spread(kind, s, g, table);
    if (kind === s.activation) own = value;
    sd[kind] = value < Infinity ? value / Math.sqrt(s.n) : "infinite";
  }
  const curve = losses([...g.scales, s.c], s, g, table), loss = curve.pop();
  return {
    here, there, apart: Math.max(...here.map((v, i) => Math.abs(v - there[i]))), curve, loss, sd,
    needed: own < Infinity ? 100 * (own / tau) ** 2 : "infinite",
    regime: own === Infinity ? "flat" : own / Math.sqrt(s.n) > tau ? "hopeless" : "bent",
  };
}

const endless = (v) => typeof v === "string";
const group = (v) => v.toLocaleString("en-GB", { maximumFractionDigits: 0 });
const deviation = (v) => (endless(v) ? "∞" : v.toFixed(v < 0.01 ? 4 : v < 0.1 ? 3 : v < 10 ? 2 : 1));

function render({ model, el }) {
  const keys = ["activation", "c", "beta1", "n"];
  const fixed = ["names", "degrees", "truth", "nodes", "weights", "outputs", "shown", "scales"];
  const g = Object.fromEntries(fixed.map((key) => [key, model.get(key)])), table = experts(g), { tau } = g.truth;
  const fig = figure({ model, el }, { name: "ray", keys, draw, say });
  const strip = (name) => scale(fig.one(`[data-strip="${name}"]`));
  const at = { gate: strip("gate"), loss: strip("loss"), ray: strip("ray"), x: strip("x"), sd: strip("sd") };
  const bars = fig.all("[data-bar]"), names = fig.all("[data-name]"), verdicts = fig.all("[data-verdict]");
  const path = (points) => "M" + points.map(([x, y]) => `${x.toFixed(2)} ${y.toFixed(2)}`).join("L");
  const lost = (v) => {
    const nats = Math.max(0, model.get("n") * v.loss);
    return nats < 100 ? nats.toFixed(2) : group(nats);
  };

  // The path of a curve of [c, nats] as far as it lies under the upper edge.
  function below(curve) {
    const xs = curve.map(([c]) => at.ray(Math.log10(c))), points = [];
    curve.forEach(([, nats], i) => {
      if (nats <= TOP) points.push([xs[i], at.loss(nats)]);
      else for (const j of [i - 1, i + 1]) {
        const low = curve[j]?.[1];
        if (low < TOP) points.push([xs[j] + ((xs[i] - xs[j]) * (TOP - low)) / (nats - low), at.loss(TOP)]);
      }
    });
    return path(points);
  }

  function draw() {
    const s = Object.fromEntries(keys.map((key) => [key, model.get(key)]));
    const v = compute(s, g, table), sharp = v.sd[s.activation];
    for (const kind of ["here", "there"]) {
      put(fig.one(`[data-gate="${kind}"]`), { d: path(g.shown.map((x, i) => [at.x(x), at.gate(v[kind][i])])) });
    }
    const near = g.scales.filter((c) => 0.5 <= c && c <= 2), curvature = endless(sharp) ? 0 : (tau / sharp) ** 2;
    put(fig.one("[data-again]"), { d: below(near.map((c) => [c, (curvature * Math.log(c) ** 2) / 2])) });
    put(fig.one("[data-lost]"), { d: below(g.scales.map((c, i) => [c, s.n * v.curve[i]])) });
    const x = at.ray(Math.log10(s.c)), y = at.loss(s.n * v.loss);
    put(fig.one("[data-stem]"), { x1: x, x2: x, y2: y });
    put(fig.one("[data-dot]"), { cx: x, cy: y });
    bars.forEach((node, i) => {
      const kind = node.dataset.bar, sd = v.sd[kind];
      const width = at.sd(endless(sd) ? at.sd.high : Math.log10(sd)) - at.sd(at.sd.low);
      const fill = endless(sd) ? "grey, #77808a" : sd <= tau ? "blue, #0072b2" : "orange, #c46a00";
      const shade = endless(sd) ? "0.35" : "1.00";
      put(node, { width: Math.max(1.5, width), fill: `var(--gx-${fill})`, "fill-opacity": shade });
      verdicts[i].textContent = endless(sd) ? "∞ at any n" : deviation(sd) + (sd > tau ? " hopeless" : "");
      names[i].style.fontWeight = kind === s.activation ? 600 : 400;
    });
    fig.callout(v.regime, model.get("words"));
    fig.write("apart", v.apart.toFixed(3));
    fig.write("lost", lost(v));
    fig.write("error", deviation(sharp));
    fig.write("needed", endless(v.needed) ? "no number" : group(+v.needed.toPrecision(2)));
    return v;
  }

  function say(v) {
    const kind = model.get("activation"), many = group(model.get("n")), sd = v.sd[kind];
    return `${model.get("words")[v.regime][0]}. ${g.names[kind]}, c ${model.get("c")}: ` +
      `${many} points lose ${lost(v)} nats; standard deviation of tau ${endless(sd) ? "infinite" : deviation(sd)}.`;
  }

  const short = (v) => (v < 1e4 ? group(v) : v < 1e6 ? `${+(v / 1e3).toPrecision(3)}k` : "1M"); // the column is narrow
  const power = { decode: (u) => +(10 ** u).toPrecision(3), encode: Math.log10 };
  choice(fig, { key: "activation", label: "Activation of the score", options: Object.entries(g.names) });
  slider(fig, { key: "c", label: "Scale c", min: -1, max: 1, step: 0.01, show: (v) => v.toPrecision(3), ...power });
  slider(fig, { key: "beta1", label: "True slope β₁", min: 0.5, max: 5, step: 0.1, show: (v) => v.toFixed(1) });
  slider(fig, { key: "n", label: "Points n", min: 2, max: 6, step: 0.02, show: short, ...power });
  fig.update();
  return fig.stop;
}

export default { render };
