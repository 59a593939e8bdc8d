// One decode step on two lanes. The numbers are those of gated.pregated.simulate; tests hold the two together.

const DESIGNS = ["resident", "on_demand", "prefetch_all", "pre_gated", "look_ahead"];
const NAMES = ["resident", "on demand", "prefetch all", "pre-gated", "guess, verify"];
const BLOCKS = 12;
const KINDS = (design) => [
  ...(design === "resident" ? [] : ["wait"]), "block", "dense", ...(design === "resident" ? [] : ["copy"]),
  ...(design === "look_ahead" ? ["repair"] : []),
];

// Plays one step: an event is [kind, block, start, end]; the link serves first come, first served.
function play(design, s, overhead) {
  const copy = s.size / s.bandwidth, B = s.blocks, resident = design === "resident";
  const ahead = { pre_gated: s.look_ahead, prefetch_all: 1, look_ahead: 1 }[design] ?? B;
  const wanted = resident ? 0 : design === "prefetch_all" ? s.num_experts : s.active;
  const events = [], arrival = [];
  let free = 0, now = 0, moved = wanted * B, latency = 0;
  const order = (b, experts, kind = "copy") => {
    const start = Math.max(now, free);
    free = arrival[b] = start + experts * copy;
    if (experts) events.push([kind, b, start, free]);
  };
  const spend = (kind, b, until) => {
    if (until > now) events.push([kind, b, now, until]);
    now = Math.max(now, until);
  };
  for (let b = 0; b < B; b++) {
    const gate = now;
    if (!resident) {
      const missed = (1 - s.guessed) * wanted;
      if (b < ahead) order(b, wanted);
      else if (design === "look_ahead" && missed) {
        spend("wait", b, arrival[b]);
        order(b, missed, "repair");
        moved += missed;
      }
      spend("wait", b, arrival[b]);
      spend("overhead", b, now + overhead);
      if (b + ahead < B) order(b + ahead, wanted);
    }
    spend("block", b, now + s.block);
    latency += now - gate;
    spend("dense", b, now + s.dense);
  }
  return { events, moved, total: now, latency: latency / B };
}

// The most experts that the fast tier holds at once.
function most(design, s) {
  const B = s.blocks, N = { on_demand: 0, look_ahead: 1 }[design] ?? s.look_ahead;
  if (design === "resident") return B * s.num_experts;
  if (design === "prefetch_all") return Math.min(B, 2) * s.num_experts;
  let fullest = 0;
  for (let b = 0; b < B; b++) {
    const coming = Math.max(0, Math.min(B, b + N + 1) - Math.max(N, b + 1));
    fullest = Math.max(fullest, s.active * (1 + coming));
  }
  return fullest;
}

function compute(s, presets, overhead) {
  const steps = Object.fromEntries(DESIGNS.map((design) => [design, play(design, s, overhead)]));
  const step = steps[s.design], copy = s.size / s.bandwidth, window = s.block + s.dense;
  const barsOf = (design) => {
    const bars = Object.fromEntries(KINDS(design).map((kind) => [kind, Array.from({ length: BLOCKS }, () => [0, 0])]));
    for (const [kind, b, start, end] of steps[design].events) {
      if (kind === "wait" && bars.wait[b][1]) bars.wait[b][1] = end;
      else if (kind in bars) bars[kind][b] = [start, end];
    }
    return bars;
  };
  const fits = s.active * copy <= window;
  const regime = s.design === "pre_gated" ? (s.look_ahead > 1 ? "deep" : fits ? "hidden" : "late")
    : { prefetch_all: "all", look_ahead: "guess" }[s.design] ?? s.design;
  const same = ([, one]) => Object.entries(one.state).every(([key, value]) => s[key] === value);
  return {
    latency: Object.fromEntries(DESIGNS.map((design) => [design, steps[design].latency])),
    memory: Object.fromEntries(DESIGNS.map((design) => [design, most(design, s) * s.size])),
    bars: Object.fromEntries(DESIGNS.map((design) => [design, barsOf(design)])),
    totals: Object.fromEntries(DESIGNS.map((design) => [design, steps[design].total])),
    moved: step.moved * s.size, window, regime,
    end: Math.max(...DESIGNS.filter((design) => design !== "prefetch_all").map((design) => steps[design].total)),
    copy: (s.design === "prefetch_all" ? s.num_experts : s.active) * copy,
    break_even: window / copy,
    preset: Object.entries(presets).find(same)?.[0] ?? "",
  };
}

function fixed(v) {
  return v < 10 ? v.toFixed(2) : v < 100 ? v.toFixed(1) : v.toFixed(0).replace(/\B(?=(\d{3})+$)/g, ",");
}

function render({ model, el }) {
  const keys = ["bandwidth", "size", "num_experts", "active", "blocks", "block", "dense", "look_ahead", "guessed", "design"];
  const presetsOf = model.get("presets"), overhead = model.get("overhead");
  const fig = figure({ model, el }, { name: "offload", keys, draw, say });
  const at = Object.fromEntries(fig.all("[data-strip]").map((node) => [node.dataset.strip, scale(node)]));
  const marks = (name) => fig.all(`[data-${name}]`);
  const bars = marks("bar"), totals = marks("total"), ticks = marks("tick"), rows = marks("row");
  const names = marks("name"), measuredMarks = marks("measured"), legend = fig.one("[data-legend]");

  function draw() {
    const s = Object.fromEntries(keys.map((key) => [key, model.get(key)]));
    const v = compute(s, presetsOf, overhead), x = (time) => at.time(time / v.end);
    for (const node of bars) {
      const [design, kind, b] = node.dataset.bar.split(","), [start, end] = v.bars[design][kind][+b];
      put(node, { x: x(start), width: x(end) - x(start) });
    }
    ticks.forEach((node, i) => { node.textContent = fixed((v.end * i) / 4); });
    for (const node of totals) node.textContent = `${fixed(v.totals[node.dataset.total])} ms`;
    for (const node of rows) {
      const [kind, design] = node.dataset.row.split(","), value = v[kind][design], axis = at[kind];
      put(node, { width: value > 0 ? Math.max(1.5, axis(Math.log10(value)) - axis(axis.low)) : 1.5, "fill-opacity": design === s.design ? "1.00" : "0.50" });
    }
    for (const node of names) put(node, { "font-weight": node.dataset.name === s.design ? "600" : "400" });
    const measured = presetsOf[v.preset]?.measured ?? {};
    for (const node of measuredMarks) {
      const value = measured[node.dataset.measured], place = at.latency(Math.log10(value ?? 1));
      put(node, { x1: place, x2: place, visibility: value === undefined ? "hidden" : "visible" });
    }
    put(legend, { visibility: Object.keys(measured).length ? "visible" : "hidden" });
    fig.callout(v.regime, model.get("regimes"));
    fig.write("copy", `${fixed(v.copy)} ms`);
    fig.write("window", `${fixed(v.window)} ms`);
    fig.write("break_even", `${fixed(v.break_even)} experts`);
    fig.write("moved", `${fixed(v.moved)} MB`);
    return v;
  }

  function say(v) {
    const list = DESIGNS.map((design, i) => `${NAMES[i]} ${fixed(v.latency[design])}`).join(", ");
    return `${model.get("regimes")[v.regime][0]}. Milliseconds a layer: ${list}.`;
  }

  const log = (low, high, digits) => ({
    min: 0, max: 1, step: 0.005,
    decode: (u) => +(low * (high / low) ** u).toPrecision(digits),
    encode: (value) => Math.log(value / low) / Math.log(high / low),
  });
  choice(fig, { key: "design", label: "Design", options: DESIGNS.map((design, i) => [design, NAMES[i]]) });
  presets(fig, {
    label: "Machines and models",
    options: Object.entries(presetsOf).map(([name, one]) => [name, one.state]),
  });
  slider(fig, { key: "bandwidth", label: "Link, GB/s", ...log(1, 64, 3) });
  slider(fig, { key: "size", label: "Expert, MB", ...log(1, 100, 3), show: (v) => v.toPrecision(3) });
  slider(fig, { key: "active", label: "Active experts a", min: 1, max: 16, step: 1 });
  slider(fig, { key: "num_experts", label: "Experts E", min: 4, max: 8, step: 1, decode: (v) => 2 ** v, encode: Math.log2 });
  slider(fig, { key: "blocks", label: "Blocks B", min: 1, max: BLOCKS, step: 1 });
  slider(fig, { key: "block", label: "Block T, ms", ...log(0.1, 10, 3) });
  const dense = slider(fig, { key: "dense", label: "Dense Td, ms", min: 0, max: 5, step: 0.05 });
  dense.previousSibling.textContent = "Dense T";
  element(dense.previousSibling, "sub", {}, "d");
  dense.previousSibling.append(", ms");
  slider(fig, { key: "look_ahead", label: "Look-ahead N", min: 1, max: 3, step: 1 });
  slider(fig, { key: "guessed", label: "Right guesses", min: 0, max: 1, step: 0.05, show: (v) => v.toFixed(2) });
  fig.update();
  return fig.stop;
}

export default { render };
