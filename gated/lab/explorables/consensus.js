// 200 inputs by 12 gates on their way to a consensus. The numbers are those of gated.polarization; tests hold them together.

const INPUTS = 200, GATES = 12, FIRST = 120, STEPS = 400, EVERY = 5, KEEP = 20, SHADES = 8, SIZE = INPUTS * GATES;
const LEFT = 38, SLOT = 29, TILE = 23, MATRIX = 272, CHANGES = [4, 8];
const sum = (list) => list.reduce((a, b) => a + b, 0);

// Logits lie gate by gate. Each gate has one need, or two: the first 120 inputs' and the others'.
function begin(s, g) {
  if (s.base.length) return Float64Array.from(s.base);
  return Float64Array.from(g.noise, (z, at) => g.lean[Math.floor(at / INPUTS)] + s.spread * z);
}
const needs = (s, g) => (s.modes === "two" ? [g.need[1], g.need[2]] : [g.need[0], g.need[0]]);

// One Euler step of each logit. `see(p, first, mean)` is shown the gate's probabilities before it.
function step(logits, s, need, p, see) {
  for (let l = 0; l < GATES; l++) {
    const first = l * INPUTS, middle = first + FIRST, last = first + INPUTS;
    let total = 0;
    for (let at = first; at < last; at++) total += p[at] = 1 / (1 + Math.exp(-logits[at]));
    const mean = total / INPUTS;
    see?.(p, first, mean);
    const push = need.map((b) => s.lambda_a - s.gain * b[l] + s.lambda_p * (1 - 2 * mean));
    for (let at = first; at < middle; at++) logits[at] -= push[0] * p[at] * (1 - p[at]);
    for (let at = middle; at < last; at++) logits[at] -= push[1] * p[at] * (1 - p[at]);
  }
}

function flow(logits, steps, s, g) {
  const now = Float64Array.from(logits), p = new Float64Array(SIZE), need = needs(s, g);
  for (let i = 0; i < steps; i++) step(now, s, need, p);
  return now;
}

// All 400 steps: the logits every 20 steps, indecision and disagreement every 5.
function run(s, g) {
  const logits = begin(s, g), p = new Float64Array(SIZE), need = needs(s, g), kept = [], curve = [[], []];
  for (let i = 0; i <= STEPS; i++) {
    if (i % KEEP === 0) kept.push(logits.slice());
    if (i % EVERY) { step(logits, s, need, p); continue; }
    let indecision = 0, disagreement = 0;
    step(logits, s, need, p, (p, first, mean) => {
      const [undecided, apart] = parts(s.gates === "hard" ? logits : p, first, mean, s.gates === "hard");
      indecision += undecided / GATES;
      disagreement += apart / GATES;
    });
    curve[0].push(indecision);
    curve[1].push(disagreement);
  }
  return { kept, curve };
}

// E[p (1 - p)] and Var[p] of a gate; for hard gates the logits are given, and all is disagreement.
function parts(values, first, mean, hard) {
  let undecided = 0, apart = 0, opened = 0;
  for (let at = first; at < first + INPUTS; at++) {
    const v = values[at];
    if (hard) opened += v > 0;
    else undecided += v * (1 - v), apart += (v - mean) ** 2;
  }
  return hard ? [0, (opened / INPUTS) * (1 - opened / INPUTS)] : [undecided / INPUTS, apart / INPUTS];
}

// How many inputs open each gate.
const count = (logits) => Array.from({ length: GATES }, (_, l) => {
  let opened = 0;
  for (let at = l * INPUTS; at < (l + 1) * INPUTS; at++) opened += logits[at] > 0;
  return opened;
});

function compute(s, g, path) {
  const at = Math.min(STEPS, s.steps), from = Math.floor(at / KEEP), logits = flow(path.kept[from], at - from * KEEP, s, g);
  const hard = s.gates === "hard", p = logits.map((v) => 1 / (1 + Math.exp(-v))), gates = hard ? logits.map((v) => +(v > 0)) : p;
  const open = [], soft = [], loss = [0, 0], inputs = new Array(INPUTS).fill(0), counts = count(logits), need = needs(s, g);
  for (let l = 0; l < GATES; l++) {
    const first = l * INPUTS;
    let total = 0, all = 0;
    for (let i = 0; i < INPUTS; i++) total += gates[first + i], all += p[first + i], inputs[i] += gates[first + i] / GATES;
    open.push(total / INPUTS);
    soft.push(all / INPUTS);
    parts(hard ? logits : p, first, total / INPUTS, hard).forEach((part, k) => { loss[k] += part / GATES; });
  }
  const kept = counts.map((n) => +(2 * n >= INPUTS)), against = counts.map((n) => Math.min(n, INPUTS - n));
  const dissent = against.map((n) => n / INPUTS), bound = sum(against) / INPUTS, number = sum(kept);
  let off = 0;
  for (let i = 0; i < INPUTS; i++) off += kept.some((k, l) => logits[l * INPUTS + i] > 0 !== k > 0);
  const share = (key) => {
    const fixed = g.sizes[`fixed_${key}`], all = g.sizes[key];
    return (fixed + sum(all.filter((_, l) => kept[l]))) / (fixed + sum(all));
  };
  const between = (gain) => {
    const a = s.lambda_a - gain;
    return Math.abs(a) < Math.abs(s.lambda_p) ? (1 + a / s.lambda_p) / 2 : "";
  };
  const again = s.base.length ? count(flow(begin({ ...s, base: [] }, g), at, s, g)) : [];
  const torn = soft.some((m, l) => {
    const [a, b] = need.map((list) => s.lambda_a - s.gain * list[l] + s.lambda_p * (1 - 2 * m));
    return dissent[l] > 0 && a * b < 0;
  });
  let kind = number === 0 ? "shut" : number === GATES ? "open" : "consensus";
  if (bound > 0) {
    if (s.lambda_p <= 0) kind = s.lambda_p < 0 ? "apart" : "fair";
    else if (again.length && again.every((n) => n % INPUTS === 0)) kind = "late";
    else kind = torn && at === STEPS ? "torn" : "moving";
  }
  const v = {
    open, inputs, dissent, bound, off_path: off / INPUTS, indecision: loss[0], disagreement: loss[1], curve: path.curve, kept,
    macs: share("macs"), parameters: share("parameters"), line: between(0),
    lines: need.map((list) => list.map((b) => between(s.gain * b))),
    fresh: again.length ? again.map((n) => +(2 * n >= INPUTS)) : "", kind,
  };
  return { v, logits, gates };
}

// For each shade a path of all its cells, run by run down the columns.
function cells(gates) {
  const paths = new Array(SHADES + 1).fill("");
  for (let l = 0; l < GATES; l++) {
    const shade = (i) => Math.floor(gates[l * INPUTS + i] * SHADES + 0.5);
    for (let i = 1, start = 0, now = shade(0); i <= INPUTS; i++) {
      const next = i < INPUTS ? shade(i) : -1;
      if (next === now) continue;
      paths[now] += `M${LEFT + SLOT * l + 3} ${MATRIX + start}h${TILE}v${i - start}h-${TILE}z`;
      [start, now] = [i, next];
    }
  }
  return paths.slice(1);
}

// Middle of each block on the row, and where the row ends.
function places(kept, cut) {
  let end = LEFT;
  const middle = kept.map((keep, l) => {
    const width = keep || !cut ? SLOT : CHANGES.includes(l) ? 10 : 0;
    end += width;
    return end - width / 2;
  });
  return [middle, end];
}

const split = (v) => `${v.indecision.toFixed(3)} + ${v.disagreement.toFixed(3)}`;
const percent = (share) => `${(100 * share).toFixed(1)} %`;
function status(v) {
  const gone = GATES - sum(v.kept);
  return v.bound ? "no consensus, so no block can go" : `consensus: ${gone} block${gone === 1 ? "" : "s"} cut away`;
}

function render({ model, el }) {
  const keys = ["lambda_p", "lambda_a", "gain", "spread", "steps", "modes", "gates", "start"];
  const g = Object.fromEntries(["noise", "lean", "need", "sizes"].map((key) => [key, model.get(key)]));
  const fig = figure({ model, el }, { name: "consensus", keys, draw, say });
  const at = Object.fromEntries(["share", "loss", "time"].map((name) => [name, scale(fig.one(`[data-${name}]`))]));
  const names = ["tile", "block", "short", "fresh", "bar", "shade", "area", "star", "line"];
  const marks = Object.fromEntries(names.map((name) => [name, fig.all(`[data-${name}]`)]));
  const single = ["status", "path", "head", "new", "kinds", "now", "turn"];
  const one = Object.fromEntries(single.map((name) => [name, fig.one(`[data-${name}]`)]));
  const seen = (yes) => ({ visibility: yes ? "visible" : "hidden" });
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
    for (const node of fig.all("svg [style]")) node.removeAttribute("style"); // the blocks' gliding
  }
  let path, made = "", last = null, spread;

  function area(under, over) {
    const points = (list) => list.map((value, i) => `${at.time(EVERY * i).toFixed(2)},${at.loss(value).toFixed(2)}`);
    return [...points(over), ...points(under).reverse()].join(" ");
  }

  // The flow goes on from the gates shown, whenever what drives it has changed.
  function goOn(s) {
    const drive = [s.lambda_p, s.lambda_a, s.gain, s.modes].join();
    if (s.start === "fresh") s.base = [];
    else if (last && last.drive !== drive) s.base = Array.from(last.logits);
    if (s.base !== model.get("base") && (s.base.length || model.get("base").length)) {
      model.set("base", s.base);
      model.save_changes();
    }
    return drive;
  }

  function draw() {
    const s = Object.fromEntries([...keys, "base"].map((key) => [key, model.get(key)])), drive = goOn(s);
    const settings = [drive, s.spread, s.gates, s.start].join();
    if (settings !== made) [path, made] = [run(s, g), settings];
    const { v, logits, gates } = compute(s, g, path), cut = v.bound === 0, [middle, end] = places(v.kept, cut);
    last = { drive, logits };
    one.status.textContent = status(v);
    put(one.path, { width: end - LEFT + 22 });
    put(one.head, { transform: `translate(${(end + 6).toFixed(2)} 0)` });
    marks.tile.forEach((node, l) => put(node, { "fill-opacity": v.open[l] }));
    marks.block.forEach((node, l) => {
      put(node, { transform: `translate(${middle[l].toFixed(2)} 0)`, opacity: cut && !v.kept[l] ? 0 : 1 });
    });
    for (const node of marks.short) {
      const l = +node.dataset.short;
      put(node, { transform: `translate(${middle[l].toFixed(2)} 0)`, opacity: cut && !v.kept[l] ? 1 : 0 });
    }
    put(one.new, seen(v.fresh.length));
    marks.fresh.forEach((node, l) => put(node, { "fill-opacity": v.fresh[l] ?? 0 }));
    marks.bar.forEach((node, l) => bar(node, at.share, v.open[l]));
    for (const node of marks.line) {
      const [k, l] = node.dataset.line.split(","), y = at.share(+v.lines[k][l]);
      put(node, { y1: y, y2: y, ...seen(v.lines[k][l] !== "") });
    }
    const [rule, label] = marks.star, y = at.share(+v.line);
    put(rule, { y1: y, y2: y, ...seen(v.line !== "") });
    put(label, { y: y + 3.5, ...seen(v.line !== "") });
    put(one.turn, seen(s.lambda_p));
    cells(gates).forEach((d, shade) => put(marks.shade[shade], { d: d || "M0 0" }));
    put(one.kinds, seen(s.modes === "two"));
    const [low, added] = v.curve, top = low.map((value, i) => value + added[i]);
    put(marks.area[0], { points: area(low.map(() => 0), low) });
    put(marks.area[1], { points: area(low, top) });
    put(one.now, { x1: at.time(s.steps), x2: at.time(s.steps) });
    fig.callout(v.kind, model.get("words"));
    fig.write("parts", split(v));
    fig.write("bound", v.bound.toFixed(3));
    fig.write("off_path", percent(v.off_path));
    fig.write("kept", `${sum(v.kept)} of ${GATES}`);
    fig.write("macs", percent(v.macs));
    fig.write("parameters", percent(v.parameters));
    if (spread) spread.disabled = s.start === "warm";
    return v;
  }

  function say(v) {
    const fresh = v.fresh.length ? ` From a fresh start: ${sum(v.fresh)}.` : "";
    return `${model.get("words")[v.kind][0]}. Dissent ${v.bound.toFixed(2)}; the majority opens ${sum(v.kept)} of 12 blocks.${fresh}`;
  }

  const signed = (v) => v.toFixed(2).replace("-", "−");
  choice(fig, { key: "modes", label: "Inputs", options: [["one", "one kind of input"], ["two", "two kinds"]] });
  slider(fig, { key: "lambda_p", label: "Polarization λₚ", min: -1, max: 1, step: 0.05, show: signed });
  presets(fig, {
    label: "Places of the polarization weight",
    options: [["−1: dynamic (AIG)", { lambda_p: -1 }], ["0: price only", { lambda_p: 0 }], ["0.8: consensus", { lambda_p: 0.8 }]],
  });
  slider(fig, { key: "lambda_a", label: "Activation λₐ", min: 0, max: 1, step: 0.05, show: signed });
  slider(fig, { key: "gain", label: "Task gain (times b)", min: 0, max: 1, step: 0.05, show: signed });
  spread = slider(fig, { key: "spread", label: "Spread at start", min: 0, max: 2, step: 0.1, show: (v) => v.toFixed(1) });
  slider(fig, { key: "steps", label: "Steps", min: 0, max: STEPS, step: 5 });
  const [play] = buttons(fig, "Time", [["▶ play the steps"]]);
  player(fig, play, { key: "steps", end: () => STEPS, ms: 12, running: "❚❚ stop" }); // all steps in five seconds
  const starts = [["fresh", "a change starts afresh"], ["warm", "goes on from here"]];
  choice(fig, { key: "start", label: "Where a change starts", options: starts });
  choice(fig, { key: "gates", label: "Gates shown", options: [["soft", "soft p"], ["hard", "hard 0 / 1"]] });
  fig.update();
  return fig.stop;
}

export default { render };
