// One channel of gated linear attention: the decay matrix, and the exponents that three ways of computing it meet.

const SCHEMES = { "one piece": "one piece", chunk: "a reference per chunk", "sub-chunk": "a reference per sub-chunk" };

// g = log sigmoid(z) / tau, without overflow for large |z|.
const logGate = (z, tau) => (Math.min(z, 0) - Math.log1p(Math.exp(-Math.abs(z)))) / tau;

// exp(G_t - G_i) row by row, each difference summed on its own from i + 1 to t.
function decayMatrix(g) {
  return g.map((_, t) => {
    const row = new Array(t + 1);
    for (let i = t, sum = 0; i >= 0; sum += g[i], i--) row[i] = Math.exp(sum);
    return row;
  });
}

function maxExponent(g, scheme, chunk, subchunk, repeats) {
  const length = g.length * repeats, at = (t) => g[t % g.length];
  let largest = 0;
  if (scheme === "one piece") chunk = length;
  for (let start = 0; start < length; start += chunk) {
    const end = Math.min(start + chunk, length);
    let sum = 0;
    if (scheme !== "sub-chunk") {
      for (let t = start; t < end; t++) sum += at(t);
      largest = Math.max(largest, -sum);
      continue;
    }
    for (let first = start; first < end; first += subchunk) {
      sum = 0; // G_t - G_first for the rows of this sub-chunk
      for (let t = first + 1; t < Math.min(first + subchunk, end); t++) largest = Math.max(largest, (sum += at(t)));
      sum = 0; // G_first - G_i for the columns before it
      for (let i = first - 1; i >= start; i--) largest = Math.max(largest, (sum += at(i + 1)));
    }
  }
  return largest;
}

function part(t, i, chunk, subchunk) {
  const of = (x, size) => Math.floor(x / size);
  if (of(t, chunk) !== of(i, chunk)) return "state";
  return of(t % chunk, subchunk) === of(i % chunk, subchunk) ? "diagonal" : "matmul";
}

// The first length, in tokens of the repeated sentence, at which one piece overflows.
function onset(g, limit) {
  const sum = g.reduce((a, b) => a + b), whole = Math.floor(limit / -sum);
  let rest = limit + whole * sum, t = 0;
  for (; t < g.length; t++) if ((rest += g[t]) < 0) break;
  return whole * g.length + t + 1;
}

function compute({ z, temperature, chunk, subchunk, repeats, token }, limits) {
  const g = z.map((v) => logGate(v, temperature)), rows = decayMatrix(g), size = Math.min(subchunk, chunk);
  const exponents = {}, shares = { state: 0, matmul: 0, diagonal: 0 };
  for (const scheme in SCHEMES) exponents[scheme] = maxExponent(g, scheme, chunk, size, repeats);
  const matrix = rows.flat();
  rows.forEach((row, t) => row.forEach((_, i) => { shares[part(t, i, chunk, size)] += 1 / matrix.length; }));
  return {
    matrix, held: rows[token], exponents, log_gate: g[token], half_life: Math.LN2 / -g[token], shares, onset: onset(g, limits.fp32),
  };
}

function render({ model, el }) {
  const keys = ["z", "temperature", "chunk", "subchunk", "repeats", "token"];
  const words = model.get("words"), limits = model.get("limits"), colours = model.get("colours"), T = words.length;
  const fig = figure({ model, el }, { name: "decay", keys, draw, say });
  const gates = fig.one('[data-strip="gates"]'), gateAt = scale(gates), heldAt = scale(fig.one('[data-strip="held"]'));
  const dots = fig.all("[data-handle]"), cells = fig.all("[data-cell]"), helds = fig.all("[data-held]"), frame = fig.one("[data-row]");
  const places = cells.map((cell) => cell.dataset.cell.split(",").map(Number)), cellSize = +cells[0].getAttribute("height") + 1;
  const nats = scale(fig.one("[data-bars]")), place = (x) => nats(Math.log2(1 + x));
  const group = (x) => x.toLocaleString("en-GB");

  function verdict(scheme, x) {
    const says = x > limits.fp32 ? "overflows fp32" : x > limits.fp16 ? "overflows fp16" : "fits";
    return `${SCHEMES[scheme]}: ${x.toLocaleString("en-GB", { minimumFractionDigits: 1, maximumFractionDigits: 1 })}, ${says}`;
  }

  function draw() {
    const state = Object.fromEntries(keys.map((key) => [key, model.get(key)]));
    const v = compute(state, limits), size = Math.min(state.subchunk, state.chunk);
    state.z.forEach((z, i) => {
      put(dots[i].querySelector("line"), { y2: gateAt(z) });
      put(dots[i].querySelector("circle"), { cy: gateAt(z), "stroke-width": i === state.token ? 2 : 0 });
      bar(helds[i], heldAt, i <= state.token ? v.held[i] : 0);
    });
    places.forEach(([t, i], n) => {
      put(cells[n], { fill: colours[part(t, i, state.chunk, size)], "fill-opacity": 0.1 + 0.9 * v.matrix[n] });
    });
    put(frame, { y: +cells[(state.token * (state.token + 1)) / 2].getAttribute("y") - 1, width: (state.token + 1) * cellSize + 1 });
    fig.one('[data-heading="held"]').textContent = `Left in the state after “${words[state.token]}”`;
    for (const scheme in SCHEMES) {
      const x = v.exponents[scheme];
      fig.one(`[data-verdict="${scheme}"]`).textContent = verdict(scheme, x);
      put(fig.one(`[data-exponent="${scheme}"]`), {
        width: Math.max(1.5, place(x) - place(0)), fill: colours[x > limits.fp32 ? "over" : "state"],
      });
    }
    fig.write("half-name", `Half-life at “${words[state.token]}”`);
    fig.write("half", v.half_life >= 100 ? `${group(Math.round(v.half_life))} tokens` : `${v.half_life.toFixed(2)} tokens`);
    fig.write("onset", `${group(v.onset)} tokens`);
    fig.write("share", `${(100 * v.shares.diagonal).toFixed(0)}%`);
    return v;
  }

  function say(v) {
    const token = model.get("token");
    return `After “${words[token]}”, ${(100 * v.held[0]).toFixed(0)} percent of the first token is left; half-life ` +
      `${v.half_life.toFixed(1)} tokens. ${Object.keys(SCHEMES).map((s) => verdict(s, v.exponents[s])).join("; ")}.`;
  }

  slider(fig, {
    key: "temperature", label: "Temperature τ", min: 0, max: 6, step: 0.05, show: String,
    decode: (p) => +(2 ** p).toPrecision(3), encode: Math.log2,
  });
  slider(fig, { key: "chunk", label: "Chunk C", min: 1, max: T, step: 1, show: String });
  slider(fig, { key: "subchunk", label: "Sub-chunk c", min: 1, max: T, step: 1, show: (v) => String(Math.min(v, model.get("chunk"))) });
  slider(fig, {
    key: "repeats", label: "Length T", min: 0, max: 1, step: 0.005, show: (v) => group(v * T),
    decode: (p) => Math.round(200 ** p), encode: (v) => Math.log(v) / Math.log(200),
  });
  const level = (value) => words.map(() => value);
  presets(fig, {
    label: "Examples",
    options: [
      ["paper’s start", { z: level(0), temperature: 16, repeats: 1 }],
      ["… at 2,064 tokens", { z: level(0), temperature: 16, repeats: 86 }],
      ["reset at the stops", { z: words.map((w) => (w === "." ? -20 : 4)), temperature: 1, repeats: 1 }],
      ["strongly mixed", { z: model.get("mixed"), temperature: 1, repeats: 1 }],
    ],
  });
  handles(fig, {
    strip: gates, key: "z", step: 0.5, picked: "token",
    label: (i) => `Gate logit of token ${i + 1}, ${words[i]}`, show: (z) => z.toFixed(1),
  });
  cells.forEach((cell, n) => cell.addEventListener("click", () => fig.set({ token: places[n][0] })));
  fig.update();
  return fig.stop;
}

export default { render };
