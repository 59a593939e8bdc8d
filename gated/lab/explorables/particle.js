// 200 particles with a leak in a potential. Steps, laws and noise are those of gated.langevinflow; tests hold them together.

const POINTS = 200, STEPS = 120, NEURONS = 12, SPAN = 4, REACH = 3, RADIUS = 0.5, BOUND = 50, CAP = 6, TRACE = 24, ROW = 8, REST = 1e-3;
const LINES = Array.from({ length: 29 }, (_, i) => i + 2), START = 4 * POINTS;

// The numbers in (0, 1) of the generator mulberry32, one by one.
function mulberry(seed) {
  let state = seed | 0;
  return () => {
    state = (state + 0x6D2B79F5) | 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return (((x ^ (x >>> 14)) >>> 0) + 0.5) / 4294967296;
  };
}

// Noise of both oscillators by Box and Muller: step by step, point by point.
function normals(seed) {
  const next = mulberry(Math.imul(seed + 1, 0x9E3779B9)), noise = new Float64Array(2 * STEPS * POINTS);
  for (let at = 0; at < noise.length; at += 2) {
    const radius = Math.sqrt(-2 * Math.log(next())), angle = 2 * Math.PI * next();
    noise[at] = radius * Math.cos(angle);
    noise[at + 1] = radius * Math.sin(angle);
  }
  return noise;
}

// A mode: the sum or the difference of the oscillators. Its step is the matrix M and the noise (b1, b2) on (z, v).
function mode(k, { a, h, scale, scheme }) {
  const x = h * h * k, square = (u) => u * u;
  let M, b = [0, scale], trace = 1 + a, det = a, gap = a * x, over = 2 + 2 * a + a * x, turn;
  if (scheme === "euler") {
    M = [1, h, -a * h * k, a];
    det = a * (1 + x);
    turn = square(1 - a) - 4 * a * x;
  } else if (scheme === "symplectic") {
    M = [1, h, -a * h * k, a * (1 - x)];
    trace = 1 + a - a * x;
    over = 2 + 2 * a - a * x;
  } else {
    const drift = (h * (1 + a)) / 2, kick = (h * k) / 2;
    M = [1 - drift * kick, drift, -(a + 1) * kick + drift * kick * kick, a - drift * kick];
    b = [(h / 2) * scale, (1 - x / 4) * scale];
    [trace, gap, over] = [(1 + a) * (1 - x / 2), ((1 + a) * x) / 2, (1 + a) * (2 - x / 2)];
  }
  turn ??= trace * trace - 4 * a;
  const root = Math.sqrt(Math.abs(turn)) / 2;
  const eigenvalues = [1, -1].map((sign) => (turn < 0 ? [trace / 2, sign * root] : [trace / 2 + sign * root, 0]));
  const radius = Math.max(...eigenvalues.map(([re, im]) => Math.hypot(re, im)));
  return { k, M, b, trace, det, gap, over, turn, eigenvalues, radius };
}

// Long-run variances of z and v and their covariance.
function lawOf({ k, det, gap, over }, { a, h, scale, scheme }) {
  if (scheme === "baoab") {
    const heat = (scale * scale) / (1 - a * a);
    return [heat / k, heat * (1 - (h * h * k) / 4), 0];
  }
  const place = ((scale * h) ** 2 * (1 + det)) / ((1 - det) * gap * over), share = (place * gap) / (1 + det);
  return [place, (2 * share) / (h * h), -share / h];
}

function kindOf(modes, friction) {
  if (modes[0].k < 0) return "saddle";
  if (modes.some((m) => m.k > 0 && (m.det > 1 || m.over <= 0 || (m.det === 1 && friction > 0)))) return "bursts";
  if (modes[0].k === 0) return "drifts";
  if (friction === 0) return "free";
  if (modes.some((m) => m.turn < 0)) return "turns";
  return Math.max(...modes.map((m) => m.radius)) > Math.exp(-1 / STEPS) ? "frozen" : "creeps";
}

function boundOf({ a, scheme }) {
  const root = (1 - Math.sqrt(a)) ** 2;
  return scheme === "euler" ? (1 - a) ** 2 / (4 * a) : scheme === "symplectic" ? root / a : (2 * root) / (1 + a);
}

// Two discs: each point (z1, z2, v1, v2) lies elsewhere in the partners' disc, which is around 0.
function blob([z, v]) {
  const x = new Float64Array(START), golden = Math.PI * (3 - Math.sqrt(5));
  for (let i = 0; i < POINTS; i++) {
    const j = (89 * i) % POINTS, r = RADIUS * Math.sqrt(i / POINTS), q = RADIUS * Math.sqrt(j / POINTS);
    x.set([z + r * Math.cos(i * golden), q * Math.cos(j * golden), v + r * Math.sin(i * golden), q * Math.sin(j * golden)], 4 * i);
  }
  return x;
}

// All bins until a coordinate passes BOUND. What couples the oscillators is half the difference of the modes.
function simulate([p, m], start, noise, points) {
  const own = p.M.map((u, i) => (u + m.M[i]) / 2), other = p.M.map((u, i) => (u - m.M[i]) / 2);
  const c = p.b[0], d = (p.b[1] + m.b[1]) / 2, g = (p.b[1] - m.b[1]) / 2;
  const bins = [start.slice(0, 4 * points)];
  for (let n = 0; n < STEPS; n++) {
    const old = bins[n], x = new Float64Array(4 * points);
    let far = 0;
    for (let i = 0; i < points; i++) {
      const at = 4 * i, z = old[at], y = old[at + 1], v = old[at + 2], w = old[at + 3];
      const e = noise ? noise[2 * (n * POINTS + i)] : 0, o = noise ? noise[2 * (n * POINTS + i) + 1] : 0;
      x[at] = own[0] * z + own[1] * v + other[0] * y + other[1] * w + c * e;
      x[at + 1] = own[0] * y + own[1] * w + other[0] * z + other[1] * v + c * o;
      x[at + 2] = own[2] * z + own[3] * v + other[2] * y + other[3] * w + d * e + g * o;
      x[at + 3] = own[2] * y + own[3] * w + other[2] * z + other[3] * v + d * o + g * e;
      for (let j = at; j < at + 4; j++) far = Math.max(far, Math.abs(x[j]));
    }
    if (far > BOUND) break;
    bins.push(x);
  }
  return bins;
}

// Half the log volume of the points in all four coordinates: the pivots of Gram and Schmidt.
const COLUMNS = Array.from({ length: 4 }, () => new Float64Array(POINTS));
function dot(u, w) {
  let total = 0;
  for (let i = 0; i < POINTS; i++) total += u[i] * w[i];
  return total;
}
function logVolume(x) {
  let sum = 0;
  for (let j = 0; j < 4; j++) {
    const u = COLUMNS[j];
    let mean = 0;
    for (let i = 0; i < POINTS; i++) mean += u[i] = x[4 * i + j];
    mean /= POINTS;
    for (let i = 0; i < POINTS; i++) u[i] -= mean;
    for (let k = 0; k < j; k++) {
      const w = COLUMNS[k], part = dot(u, w);
      for (let i = 0; i < POINTS; i++) u[i] -= part * w[i];
    }
    const norm = Math.sqrt(dot(u, u));
    for (let i = 0; i < POINTS; i++) u[i] /= norm;
    sum += Math.log(norm) / 2;
  }
  return sum;
}

const HANN = Float64Array.from({ length: STEPS }, (_, n) => 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / STEPS));
const COS = Float64Array.from({ length: STEPS }, (_, n) => Math.cos((2 * Math.PI * n) / STEPS));
const SIN = Float64Array.from({ length: STEPS }, (_, n) => Math.sin((2 * Math.PI * n) / STEPS));
const OVERLAP = Array.from(HANN, (_, lag) => HANN.reduce((sum, w, n) => sum + (n + lag < STEPS ? w * HANN[n + lag] : 0), 0));
const shares = (power) => {
  const total = power.reduce((a, b) => a + b, 0);
  return power.map((p) => p / total);
};

function spectrum(bins) {
  const power = LINES.map(() => 0), y = new Float64Array(STEPS);
  for (let i = 0; i < POINTS; i++) {
    for (let n = 0; n < STEPS; n++) y[n] = HANN[n] * (bins[n][4 * i] - bins[0][4 * i]);
    LINES.forEach((k, l) => {
      let re = 0, im = 0;
      for (let n = 0, turn = 0; n < STEPS; n++) {
        re += y[n] * COS[turn];
        im += y[n] * SIN[turn];
        turn += k;
        if (turn >= STEPS) turn -= STEPS;
      }
      power[l] += re * re + im * im;
    });
  }
  return power.reduce((a, b) => a + b, 0) > REST * POINTS ? shares(power) : "none";
}

// The same for the law: from its autocovariances, less a constant that falls out.
function expectedSpectrum(modes, laws, scheme) {
  const r = new Float64Array(STEPS);
  modes.forEach(({ trace, det, gap }, i) => {
    const place = laws[i][0];
    let before = 0, now = (-place * gap) / (scheme === "baoab" ? 2 : 1 + det);
    for (let lag = 1; lag < STEPS; lag++) {
      r[lag] += now;
      [before, now] = [now, trace * now - det * before - gap * place];
    }
  });
  return shares(LINES.map((k) => r.reduce((sum, u, lag) => sum + COS[(k * lag) % STEPS] * u * OVERLAP[lag], 0)));
}

// Counts of each neuron, a digit a bin. Log rates are linear in (z, v); counts by inversion, at most 9.
function spikes(bins, seed) {
  const next = mulberry(Math.imul(seed + 1, 0x85EBCA6B)), counts = new Array(NEURONS).fill("");
  let cut = 0;
  for (const [z, , v] of bins.slice(0, STEPS)) {
    for (let i = 0; i < NEURONS; i++) {
      const angle = i * ((2 * Math.PI) / NEURONS), rate = 0.25 * Math.exp(0.8 * (Math.cos(angle) * z + Math.sin(angle) * v));
      const r = Math.min(CAP, rate), u = next();
      cut += rate > CAP;
      let k = 0;
      for (let chance = Math.exp(-r), below = chance; u > below && k < 9; below += chance) chance *= r / ++k;
      counts[i] += k;
    }
  }
  return { counts, cut };
}

function howOf(s) {
  const a = 1 - s.gamma, heat = s.temperature;
  const scale = s.noise === "released" ? Math.sqrt(2 * s.gamma) * Math.sqrt(heat) : Math.sqrt(heat * (1 - a * a));
  return { a, h: s.h, scale, scheme: s.integrator };
}

// All that does not depend on the bin shown.
function compute(s, noise) {
  const how = howOf(s), { a, h, scale, scheme } = how, modes = [s.curvature, s.curvature + 2 * s.coupling].map((k) => mode(k, how));
  const start = blob(s.start), bins = simulate(modes, start, noise, POINTS), still0 = simulate(modes, start, null, 1);
  const kind = kindOf(modes, s.gamma), settles = ["frozen", "creeps", "turns"].includes(kind);
  const laws = settles ? modes.map((one) => lawOf(one, how)) : [], ended = bins.length - 1;
  const growth = modes.reduce((sum, one) => sum + Math.log(Math.max(Math.abs(one.det), 1e-12)), 0) / 2;
  const first = logVolume(bins[0]);
  const v = {
    kind, ended, factor: Math.exp(growth), det: modes[0].det * modes[1].det,
    eigenvalues: modes.map((one) => one.eigenvalues), radius: Math.max(...modes.map((one) => one.radius)),
    zeta: modes.map(({ k }) => (k > 0 ? Math.abs(Math.log(a)) / h / (2 * Math.sqrt(k)) : "none")),
    angle: h * h * modes[1].k, bound: boundOf(how), turns: +modes.some((one) => one.turn < 0),
    period: modes.map((one) => (one.turn < 0 ? (2 * Math.PI) / Math.atan2(one.eigenvalues[0][1], one.trace / 2) : "none")),
    memory: a < 1 ? -1 / Math.log(a) : "endless",
    law: settles ? [0, 1, 2].map((i) => (laws[0][i] + laws[1][i]) / 2) : "none",
    rest: settles ? modes.reduce((sum, { k }, i) => sum + k * laws[i][0] + laws[i][1], 0) / 4 : "none",
    path: bins.map((x) => x[0]), partner: bins.map((x) => x[1]),
    quiet: [0, 1, 2, 3].map((j) => still0.map((x) => x[j])),
    area: bins.map((x, n) => (scale ? logVolume(x) - first : n * growth)),
    spectrum: ended >= STEPS - 1 ? spectrum(bins) : "none",
    expected: settles && scale ? expectedSpectrum(modes, laws, scheme) : "none",
    ...spikes(bins.map((x) => x.subarray(0, 3)), s.seed),
  };
  return { v, bins };
}

// What the 200 do in the bin shown.
function present(x, s) {
  const mean = [0, 0], cloud = [0, 0, 0];
  let energy = 0, outside = 0;
  for (let at = 0; at < START; at += 4) {
    const z = x[at], y = x[at + 1], v = x[at + 2], w = x[at + 3];
    mean[0] += z / POINTS;
    mean[1] += v / POINTS;
    energy += (v * v + w * w + s.curvature * (z * z + y * y) + s.coupling * (z - y) ** 2) / (4 * POINTS);
    outside += Math.abs(z) > SPAN || Math.abs(v) > SPAN;
  }
  for (let at = 0; at < START; at += 4) {
    const z = x[at] - mean[0], v = x[at + 2] - mean[1];
    cloud[0] += (z * z) / POINTS;
    cloud[1] += (v * v) / POINTS;
    cloud[2] += (z * v) / POINTS;
  }
  return { mean, cloud, outside, energy };
}

// Lines of equal energy, as the particle has it with its partner at 0.
function contours(k) {
  const turn = Array.from({ length: 73 }, (_, i) => (2 * Math.PI * i) / 72), both = [1, -1], three = [1, 2, 3];
  const line = Array.from({ length: 20 * SPAN + 1 }, (_, i) => 0.1 * i - SPAN);
  if (k > 0) return [1, 2, 3, 4].map((w) => turn.map((t) => [(w / Math.sqrt(k)) * Math.cos(t), w * Math.sin(t)]));
  const up = three.flatMap((w) => both.map((sign) => line.map((z) => [z, sign * Math.sqrt(w * w - k * z * z)])));
  if (k === 0) return up;
  return [...up, ...three.flatMap((w) => both.map((sign) => line.map((v) => [sign * Math.sqrt(w * w - (v * v) / k), v])))];
}

// Two standard deviations around the mean.
function ellipse([z, v], law) {
  if (typeof law === "string" || law[0] <= 0) return [];
  const a = Math.sqrt(law[0]), c = law[2] / Math.sqrt(law[0]), b = Math.sqrt(Math.max(0, law[1] - c * c));
  return Array.from({ length: 61 }, (_, i) => {
    const t = (Math.PI * i) / 30;
    return [z + 2 * a * Math.cos(t), v + 2 * (c * Math.cos(t) + b * Math.sin(t))];
  });
}

// The point, or where the way to it from 0 leaves the plane.
function held(z, v) {
  const far = Math.max(1, Math.abs(z) / SPAN, Math.abs(v) / SPAN);
  return [z / far, v / far];
}

const short = (v) => (typeof v === "string" ? v : String(+v.toPrecision(3)).replaceAll("-", "−"));
const list = (values) => (typeof values === "string" ? values : [...new Set(values.slice(0, 2).map(short))].join("; "));
function verdict(v) {
  const word = v.turns ? "yes" : v.angle <= v.bound ? "no" : "no, it flips";
  return `${word}: ${short(v.angle)} ${v.angle > v.bound ? ">" : "<"} ${short(v.bound)}`;
}

function render({ model, el }) {
  const keys = ["gamma", "h", "curvature", "coupling", "temperature", "noise", "integrator", "start", "step", "seed"];
  const fig = figure({ model, el }, { name: "particle", keys, draw, say });
  const names = ["z", "v", "area", "place", "power", "line", "raster", "time"];
  const at = Object.fromEntries(names.map((name) => [name, scale(fig.one(`[data-${name}]`))]));
  const handle = fig.one("[data-handle]"), particle = fig.one("[data-particle]"), nows = fig.all("[data-now]");
  let noise, seeded = null, made = "", run;

  // The path of some polylines, broken where they leave the axes.
  function trail(curves, x = at.z, y = at.v) {
    let d = "";
    for (const curve of curves) {
      let pen = "M";
      for (const [a, b] of curve) {
        const there = x.low <= a && a <= x.high && y.low <= b && b <= y.high;
        if (there) d += `${pen}${x(a).toFixed(2)} ${y(b).toFixed(2)}`;
        pen = there ? "L" : "M";
      }
    }
    return d || "M0 0";
  }
  const mark = (name, d) => put(fig.one(`[data-mark="${name}"]`), { d });
  const curve = (name, values, axis) => {
    put(fig.one(`[data-curve="${name}"]`), { d: trail([values.map((u, n) => [n, u])], at.time, axis) });
  };

  // Points as strokes of no length; those outside lie on the edge, in a path of their own.
  function dots(x) {
    const paths = ["", ""];
    for (let i = 0; i < START; i += 4) {
      const [z, v] = held(x[i], x[i + 2]), out = Math.max(Math.abs(x[i]), Math.abs(x[i + 2])) > SPAN;
      paths[+out] += `M${at.z(z).toFixed(2)} ${at.v(v).toFixed(2)}h0`;
    }
    return paths.map((d) => d || "M0 0");
  }

  // Spikes up to the bin shown, and later ones; two or more in a bin are a taller stroke.
  function ticks(counts, step) {
    const paths = ["", ""], top = at.raster(0);
    counts.forEach((row, i) => {
      for (let n = 0; n < row.length; n++) {
        if (row[n] === "0") continue;
        const high = row[n] === "1" ? 5 : 7;
        paths[+(n > step)] += `M${at.time(n + 0.5).toFixed(2)} ${top + ROW * (i + 1) - high}v${high}`;
      }
    });
    return paths.map((d) => d || "M0 0");
  }

  function status(now, v) {
    if (now === v.ended && now < STEPS) return `Bin ${now} is the last: the run leaves all bounds`;
    return `Bin ${now}` + (v.outside ? `: ${v.outside} of ${POINTS} beyond the edge` : "");
  }

  function draw() {
    const s = Object.fromEntries(keys.map((key) => [key, model.get(key)]));
    if (s.seed !== seeded) [noise, seeded] = [normals(s.seed), s.seed];
    const settings = JSON.stringify({ ...s, step: 0 }), fresh = settings !== made;
    if (fresh) [run, made] = [compute(s, noise), settings];
    const now = Math.min(s.step, run.v.ended), x = run.bins[now], v = { ...run.v, ...present(x, s) };
    if (fresh) {
      mark("contours", trail(contours(s.curvature + s.coupling)));
      mark("law", trail([ellipse([0, 0], v.law)]));
      const steps = Array.from({ length: STEPS + 1 }, (_, n) => n);
      curve("contraction", steps.map((n) => n * Math.log(1 - s.gamma)), at.area);
      curve("silent", steps.map((n) => n * Math.log(v.factor)), at.area);
      curve("area", v.area, at.area);
      curve("quiet", v.quiet[0], at.place);
      curve("partner", v.partner, at.place);
      curve("path", v.path, at.place);
      const top = Math.max(1e-9, ...[v.expected, v.spectrum].flatMap((values) => (values === "none" ? [] : values)));
      for (const name of ["expected", "spectrum"]) {
        const points = v[name] === "none" ? [] : v[name].map((share, i) => [LINES[i], share / top]);
        put(fig.one(`[data-curve="${name}"]`), { d: trail([points], at.line, at.power) });
      }
    }
    const [inside, edge] = dots(x), [past, later] = ticks(v.counts, s.step);
    mark("cloud", inside);
    mark("edge", edge);
    mark("sample", trail([ellipse(v.mean, v.cloud)]));
    mark("trace", trail([run.bins.slice(Math.max(0, now - TRACE), now + 1).map((one) => [one[0], one[2]])]));
    const [z, w] = held(x[0], x[2]), seen = (there) => ({ visibility: there ? "visible" : "hidden" });
    put(particle, { cx: at.z(z), cy: at.v(w) });
    put(fig.one("[data-burst]"), seen(v.kind === "bursts"));
    put(fig.one("[data-void]"), seen(v.spectrum === "none"));
    put(handle, { transform: `translate(${at.z(s.start[0]).toFixed(2)} ${at.v(s.start[1]).toFixed(2)})` });
    put(fig.one('[data-spikes="past"]'), { d: past });
    put(fig.one('[data-spikes="later"]'), { d: later });
    for (const node of nows) put(node, { x1: at.time(now), x2: at.time(now) });
    fig.one("[data-status]").textContent = status(now, v);
    fig.callout(v.kind, model.get("words"));
    fig.write("zeta", list(v.zeta));
    fig.write("turns", verdict(v));
    fig.write("period", list(v.period));
    fig.write("memory", short(v.memory));
    fig.write("factor", `${v.factor.toFixed(4)}; ${(1 - s.gamma).toFixed(4)}`);
    fig.write("radius", v.radius.toFixed(4));
    fig.write("law", list(v.law));
    fig.write("cloud", list(v.cloud));
    fig.write("energy", list([v.energy, v.rest]));
    fig.write("cut", String(v.cut));
    return v;
  }

  function say(v) {
    const [title] = model.get("words")[v.kind], ran = v.ended < STEPS ? ` The run leaves all bounds after bin ${v.ended}.` : "";
    return `${title}.${ran} Variances of z and v: ${list(v.cloud)} now, ${list(v.law)} in the long run.`;
  }

  const row = buttons(fig, "Time", [
    ["▶ play"],
    ["one bin on", () => { halt(); fig.set({ step: Math.min(STEPS, model.get("step") + 1) }); }],
    ["back to bin 0", () => { halt(); fig.set({ step: 0 }); }],
    ["other noise", () => fig.set({ seed: (model.get("seed") + 1) % 10000 })],
  ]);
  const halt = player(fig, row[0], { key: "step", end: () => STEPS, ms: 80, running: "❚❚ pause" }); // all bins in ten seconds
  const fixed = (digits) => (v) => v.toFixed(digits).replace("-", "−");
  const power = { decode: (u) => +(10 ** u).toPrecision(3), encode: Math.log10 };
  slider(fig, { key: "step", label: "Time bin", min: 0, max: STEPS, step: 1 });
  slider(fig, { key: "gamma", label: "Friction γ", min: 0, max: 0.95, step: 0.01, show: fixed(2) });
  slider(fig, { key: "h", label: "Step h", min: -2, max: 0, step: 0.02, show: (v) => short(v), ...power });
  slider(fig, { key: "curvature", label: "Curvature λ", min: -4, max: 12, step: 0.25, show: fixed(2) });
  const released = { h: 0.01, curvature: 11, coupling: 0, temperature: 1, noise: "released", integrator: "euler", start: [1.5, 0] };
  presets(fig, {
    label: "Settings",
    options: [
      ["released maze", { ...released, gamma: 0.55, step: 45 }],
      ["released rsg", { ...released, gamma: 0.7, step: 85 }],
      ["underdamped", {
        gamma: 0.05, h: 0.3, curvature: 1, coupling: 0.1, temperature: 0.1, noise: "exact", integrator: "baoab", start: [2.5, 0], step: 30,
      }],
      ["saddle", {
        gamma: 0.2, h: 0.1, curvature: -1, coupling: 0, temperature: 0.2, noise: "exact", integrator: "symplectic", start: [-2.5, 2.5], step: 20,
      }],
    ],
  });
  slider(fig, { key: "coupling", label: "Coupling κ", min: 0, max: 4, step: 0.1, show: fixed(1) });
  slider(fig, { key: "temperature", label: "Temperature T", min: 0, max: 3, step: 0.05, show: fixed(2) });
  choice(fig, { key: "noise", label: "Noise", options: Object.entries(model.get("noises")) });
  choice(fig, { key: "integrator", label: "Integrator", options: Object.entries(model.get("schemes")) });

  // The blob: dragged in two directions, or moved by the arrow keys.
  const svg = handle.ownerSVGElement, snap = (u) => +Math.max(-REACH, Math.min(REACH, u)).toFixed(2);
  put(svg, { role: "group" });
  put(handle, { role: "slider", tabindex: "0", "aria-label": "Start of the cloud", "aria-valuemin": String(-REACH), "aria-valuemax": String(REACH) });
  const move = (z, v) => fig.set({ start: [snap(z), snap(v)] });
  handle.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    handle.setPointerCapture(event.pointerId);
    handle.focus({ preventScroll: true });
  });
  still(handle);
  handle.addEventListener("pointermove", (event) => {
    if (!handle.hasPointerCapture(event.pointerId)) return;
    const box = svg.getBoundingClientRect(), ratio = svg.viewBox.baseVal.width / box.width;
    move(at.z.inverse((event.clientX - box.left) * ratio), at.v.inverse((event.clientY - box.top) * ratio));
  });
  handle.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
    if (!by) return;
    event.preventDefault();
    const [z, v] = model.get("start");
    move(z + by[0], v + by[1]);
  });
  fig.followers.push(() => {
    const [z, v] = model.get("start");
    put(handle, { "aria-valuenow": String(z), "aria-valuetext": `z ${z.toFixed(2)}, v ${v.toFixed(2)}`.replaceAll("-", "−") });
  });
  fig.update();
  return fig.stop;
}

export default { render };
