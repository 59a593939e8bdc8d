// Self-tuning on ridge regression. The numbers are those of response_run.py and gated.stn; tests hold them together.

const MODES = 6, STEPS = 100, SPAN = 6, NARROW = 0.05, WIDE = 4, RATE = 2, RATE_RHO = 5, PUSH = 15, TOP = 1.15;
const SHOWN = Array.from({ length: 121 }, (_, i) => (i - 60) / 10), METHODS = ["stn", "delta", "exact"];
const dot = (a, b) => a.reduce((sum, v, i) => sum + v * b[i], 0);
const times = (matrix, v) => matrix.map((line) => dot(line, v));
const hold = (v, low, high) => Math.min(high, Math.max(low, v));
const sigmoid = (v) => 1 / (1 + Math.exp(-v));

// Standard normal numbers, six for each step: xorshift on 32 bits, then pairs by Box and Muller.
function draws(seed) {
  let state = (Math.imul(seed, 2654435761) + 88172645) >>> 0 || 1;
  const uniform = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return ((state >>> 0) - 0.5) / 2 ** 32;
  };
  const row = () => {
    const out = [];
    while (out.length < MODES) {
      const radius = Math.sqrt(-2 * Math.log(uniform())), angle = 2 * Math.PI * uniform();
      out.push(radius * Math.cos(angle), radius * Math.sin(angle));
    }
    return out;
  };
  return Array.from({ length: STEPS + 1 }, row);
}

// What the weights at lambda predict in each mode, and its slope: times the targets, a gate and the gate's slope.
// With noise, targets and perturbation go together by chance, and the normal equations of a mode have `chance`.
function fit(method, lam, sigma, s, g, drawn) {
  const r = Math.exp(lam), rm = Math.exp(lam + (sigma * sigma) / 2), centre = [], slope = [];
  s.spectrum.forEach((c, i) => {
    const a = Math.exp(c), t = g.targets[i], chance = (s.noise * drawn[i]) / sigma;
    if (method === "exact") {
      const gate = a / (a + r);
      centre.push(gate * t);
      slope.push(-gate * (1 - gate) * t);
    } else if (method === "stn") {
      const determinant = (a + rm) ** 2 + a * rm * sigma * sigma;
      centre.push((a * ((a + rm * (1 + sigma * sigma)) * t - rm * sigma * sigma * chance)) / determinant);
      slope.push((a * ((a + rm) * chance - rm * t)) / determinant);
    } else {
      centre.push((a * t) / (a + r));
      slope.push((a * chance - rm * centre[i]) / (a + rm * (1 + sigma * sigma)));
    }
  });
  return { centre, slope };
}

// First and second derivative of the validation loss along the response, and the second along its line.
function slopes(method, { centre, slope }, g) {
  const pressed = times(g.gram, centre).map((v, i) => 2 * (v - g.pull[i])), line = 2 * dot(slope, times(g.gram, slope));
  const bend = slope.map((v, i) => v * ((2 * centre[i]) / g.targets[i] - 1)); // as g' = -g (1 - g), g'' = g' (2 g - 1)
  return [dot(pressed, slope), line + (method === "exact" ? dot(pressed, bend) : 0), line];
}
const loss = (p, g) => 1 + dot(p, times(g.gram, p)) - 2 * dot(p, g.pull);

// lambda and sigma, before each step and after the last. A step: refit, then one gradient step of both.
function run(method, s, g, noise) {
  const lams = [s.lam], sigmas = [s.sigma];
  for (let step = 0; step < STEPS; step++) {
    const at = lams[step], width = sigmas[step], inner = -Math.expm1(-width); // of softplus at rho = width + ln(inner)
    const [down, curvature] = slopes(method, fit(method, at, width, s, g, noise[step]), g);
    const rho = width + Math.log(inner) - RATE_RHO * (width * curvature - s.tau / width) * inner;
    lams.push(hold(at - RATE * down, -SPAN, SPAN));
    sigmas.push(hold(Math.max(rho, 0) + Math.log1p(Math.exp(-Math.abs(rho))), NARROW, WIDE));
  }
  return [lams, sigmas];
}

// Standard deviation of the first derivative that the chance in the slope alone makes.
function noiseOfSlope(method, lam, sigma, centre, s, g) {
  if (method === "exact") return 0;
  const pressed = times(g.gram, centre), rm = Math.exp(lam + (sigma * sigma) / 2);
  const parts = s.spectrum.map((c, i) => {
    const a = Math.exp(c), stn = (a * (a + rm)) / ((a + rm) ** 2 + a * rm * sigma * sigma);
    return (method === "stn" ? stn : a / (a + rm * (1 + sigma * sigma))) * (pressed[i] - g.pull[i]);
  });
  return ((2 * s.noise) / sigma) * Math.hypot(...parts);
}

function kindOf(method, sigma, truth, fitted, noise) {
  if (method === "exact") return "exact";
  if (noise > Math.abs(truth)) return "noisy";
  if (sigma === WIDE) return "runaway";
  if (Math.abs(truth) < 0.004) return "flat";
  const ratio = fitted / truth;
  return ratio < 0 ? (method === "stn" ? "wrong" : "turned") : ratio < 0.85 ? "shrunk" : ratio > 1.15 ? "stretched" : "trust";
}

function compute(s, g, noise) {
  const paths = Object.fromEntries(METHODS.map((method) => [method, run(method, s, g, noise)]));
  const { method } = s, [lam, sigma] = paths[method].map((path) => path[s.steps]), drawn = noise[s.steps];
  const fitted = fit(method, lam, sigma, s, g, drawn), exact = fit("exact", lam, sigma, s, g, drawn);
  const [down, curvature, line] = slopes(method, fitted, g), [truth] = slopes("exact", exact, g);
  const curve = SHOWN.map((at) => loss(s.spectrum.map((c, i) => sigmoid(c - at) * g.targets[i]), g));
  const least = Math.min(...curve), share = (list) => list.map((v, i) => v / g.targets[i]);
  return {
    lam, sigma, gates: share(exact.centre), centre: share(fitted.centre), slope: share(fitted.slope), curve,
    loss: loss(exact.centre, g), fitted_loss: loss(fitted.centre, g), best: SHOWN[curve.indexOf(least)], least,
    true: truth, fitted: down, ratio: Math.abs(truth) > 1e-4 ? down / truth : "", curvature, line,
    balance: curvature > 1e-9 ? Math.sqrt(s.tau / curvature) : "", paths,
    kind: kindOf(method, sigma, truth, down, noiseOfSlope(method, lam, sigma, fitted.centre, s, g)),
  };
}

// The ends of the part of low to high where centre + slope e is a little below 0 at least and above 1 at most.
function within(centre, slope, [low, high]) {
  if (Math.abs(slope) > 1e-9) {
    const [one, two] = [(-0.12 - centre) / slope, (1.12 - centre) / slope].sort((a, b) => a - b);
    [low, high] = [Math.max(low, one), Math.min(high, two)];
  }
  return low < high ? [low, high] : [];
}

const signed = (v, digits) => v.toFixed(digits).replace("-", "−");

function render({ model, el }) {
  const keys = ["lam", "sigma", "tau", "noise", "method", "steps", "spectrum", "mode", "seed"];
  const g = Object.fromEntries(["targets", "gram", "pull", "colours", "names"].map((key) => [key, model.get(key)]));
  const fig = figure({ model, el }, { name: "response", keys, draw, say });
  const names = ["x", "gate", "loss", "spectrum", "width", "schedule", "time"];
  const at = Object.fromEntries(names.map((name) => [name, scale(fig.one(`[data-axis="${name}"]`))]));
  const kinds = ["gate", "line", "stem", "handle", "band", "here", "at", "name", "arrow", "bowl", "all", "done", "head", "schedule"];
  const marks = Object.fromEntries(kinds.map((kind) => [kind, fig.all(`[data-${kind}]`)]));
  const one = Object.fromEntries(["true", "best", "now"].map((kind) => [kind, fig.one(`[data-${kind}]`)]));
  let seed = null, noise, other;

  const path = (x, xs, y, ys) =>
    xs.length ? "M" + xs.map((v, i) => `${x(v).toFixed(2)} ${y(ys[i]).toFixed(2)}`).join("L") : "M0 0";

  // The loss along the line between two distances from lambda, as far as it lies in the picture.
  function bowl(v, low, high) {
    const { fitted_loss: start, fitted: slope, line } = v, room = slope * slope - 2 * line * (start - TOP);
    if (line > 1e-9 && room > 0) {
      low = Math.max(low, (-slope - Math.sqrt(room)) / line);
      high = Math.min(high, (-slope + Math.sqrt(room)) / line);
    }
    const es = low < high ? Array.from({ length: 41 }, (_, i) => low + ((high - low) * i) / 40) : [];
    return path(at.x, es.map((e) => v.lam + e), at.loss, es.map((e) => start + slope * e + (line * e * e) / 2));
  }

  function arrow(lam, slope, y) {
    const start = at.x(lam), tip = at.x(lam - PUSH * slope), side = tip < start ? -6 : 6;
    const head = `m${(-side).toFixed(2)} -5l${side.toFixed(2)} 5l${(-side).toFixed(2)} 5`;
    return `M${start.toFixed(2)} ${y}H${tip.toFixed(2)}${Math.abs(tip - start) >= 3 ? head : ""}`;
  }

  function draw() {
    const s = Object.fromEntries(keys.map((key) => [key, model.get(key)]));
    if (s.seed !== seed) [noise, seed] = [draws(s.seed), s.seed];
    const v = compute(s, g, noise), { lam, sigma } = v, own = g.colours[s.method];
    const reach = [Math.max(-2 * sigma, -SPAN - lam), Math.min(2 * sigma, SPAN - lam)];
    const left = at.x(lam - 2 * sigma), right = at.x(lam + 2 * sigma), here = at.x(lam);
    for (const node of marks.band) put(node, { x: left, width: right - left });
    for (const node of marks.here) put(node, { x1: here, x2: here });
    s.spectrum.forEach((c, i) => {
      const bold = { "stroke-width": i === s.mode ? "3.00" : "1.25" }, y = at.spectrum(c);
      put(marks.gate[i], { d: path(at.x, SHOWN, at.gate, SHOWN.map((u) => sigmoid(c - u))), ...bold });
      const ends = within(v.centre[i], v.slope[i], reach), heights = ends.map((e) => v.centre[i] + v.slope[i] * e);
      put(marks.line[i], { d: path(at.x, ends.map((e) => lam + e), at.gate, heights), stroke: own, ...bold });
      put(marks.stem[i], { y2: y });
      for (const circle of marks.handle[i].querySelectorAll("circle")) put(circle, { cy: y });
      put(marks.handle[i].querySelector("text"), { y: y + 4 });
    });
    put(one.true, { d: path(at.x, SHOWN, at.loss, v.curve) });
    put(marks.bowl[0], { d: bowl(v, -SPAN - lam, SPAN - lam), stroke: own });
    put(marks.bowl[1], { d: bowl(v, ...reach), stroke: own });
    put(marks.at[0], { cx: here, cy: at.loss(v.loss) });
    put(marks.at[1], { cx: here, cy: at.loss(v.fitted_loss), fill: own });
    for (const node of marks.name) put(node, { x: lam > 0 ? 8 : 312, "text-anchor": lam > 0 ? "start" : "end" });
    put(marks.arrow[0], { d: arrow(lam, v.true, 284) });
    put(marks.arrow[1], { d: arrow(lam, v.fitted, 312), stroke: own });
    put(one.best, { x1: at.x(v.best), x2: at.x(v.best) });
    METHODS.forEach((method, i) => {
      const [lams, sigmas] = v.paths[method], logs = sigmas.map(Math.log10), chosen = method === s.method;
      const bold = { "stroke-width": chosen ? "3.00" : "1.50" }, end = s.steps + 1;
      put(marks.all[i], { d: path(at.x, lams, at.width, logs), ...bold });
      put(marks.done[i], { d: path(at.x, lams.slice(0, end), at.width, logs.slice(0, end)), ...bold });
      put(marks.head[i], { cx: at.x(lams[s.steps]), cy: at.width(logs[s.steps]), r: chosen ? "6" : "4" });
      put(marks.schedule[i], { d: path(at.time, lams.map((_, step) => step), at.schedule, lams), ...bold });
    });
    put(one.now, { x1: at.time(s.steps), x2: at.time(s.steps) });
    fig.callout(v.kind, model.get("words"));
    fig.write("now", `${signed(lam, 2)}, ${sigma.toFixed(2)}`);
    fig.write("true", signed(v.true, 4));
    fig.write("fitted", signed(v.fitted, 4));
    fig.write("ratio", v.ratio === "" ? "no slope" : signed(v.ratio, 2));
    fig.write("curvature", signed(v.curvature, 4));
    fig.write("balance", v.balance === "" ? "none" : v.balance > 99 ? "over 99" : v.balance.toFixed(2));
    fig.write("losses", `${v.loss.toFixed(3)}, ${v.least.toFixed(3)}`);
    if (other) other.disabled = s.noise === 0;
    return v;
  }

  function say(v) {
    const ratio = v.ratio === "" ? "no slope" : signed(v.ratio, 2);
    return `${model.get("words")[v.kind][0]}. ${g.names[model.get("method")]}, lambda ${signed(v.lam, 2)}, sigma ` +
      `${v.sigma.toFixed(2)}: hypergradient over the true one ${ratio}; validation loss ${v.loss.toFixed(3)}.`;
  }

  choice(fig, { key: "method", label: "Response", options: METHODS.map((method) => [method, g.names[method]]) });
  slider(fig, { key: "lam", label: "Start: λ", min: -SPAN, max: SPAN, step: 0.1, show: (v) => signed(v, 1) });
  const power = { decode: (u) => +(10 ** u).toPrecision(3), encode: Math.log10 };
  slider(fig, { key: "sigma", label: "Start: σ", min: Math.log10(NARROW), max: Math.log10(WIDE), step: 0.01, show: (v) => v.toPrecision(2), ...power });
  slider(fig, { key: "tau", label: "Entropy τ", min: -4, max: -1, step: 0.05, show: (v) => `${+v.toPrecision(2)}`, ...power });
  slider(fig, { key: "noise", label: "Refit noise ν", min: 0, max: 0.1, step: 0.005, show: (v) => v.toFixed(3) });
  slider(fig, { key: "steps", label: "Steps", min: 0, max: STEPS, step: 1 });
  const row = buttons(fig, "The run", [
    ["one step", () => fig.set({ steps: Math.min(STEPS, model.get("steps") + 1) })],
    ["▶ run"],
    ["back to the start", () => { halt(); fig.set({ steps: 0 }); }],
    ["other noise", () => fig.set({ seed: (model.get("seed") + 1) % 100 })],
  ]);
  const halt = player(fig, row[1], { key: "steps", end: () => STEPS, ms: 60, running: "❚❚ stop" }); // all steps in six seconds
  other = row[3];
  const start = { lam: -4, sigma: 0.5, tau: 0.01, noise: 0, method: "stn", steps: 0, spectrum: [3, 2, 1, 0, -1, -2] };
  presets(fig, {
    label: "Examples",
    options: [
      ["σ well set", start], ["σ too large", { ...start, lam: 3, sigma: 3, tau: 0.03 }],
      ["wrong way", { ...start, lam: 0, sigma: 2.5 }],
      ["σ too small + noise", { ...start, sigma: 0.1, tau: 0.001, noise: 0.05 }],
    ],
  });
  handles(fig, {
    strip: fig.one('[data-axis="spectrum"]'), key: "spectrum", step: 0.1, picked: "mode",
    label: (i) => `2 ln d of mode ${i + 1}`, show: (v, i) => `mode ${i + 1}: ${signed(v, 1)}`,
  });
  fig.update();
  return fig.stop;
}

export default { render };
