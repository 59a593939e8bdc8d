// A router between two experts under attack. The margins are those of gated.advmoe.exact_margin; tests hold the two together.

const SPAN = 2, REACH = 1.4, GRID = 48;
const sum = (list) => list.reduce((a, b) => a + b, 0), dot = (a, b) => sum(a.map((v, i) => v * b[i]));

// The worst delta in the box with a . delta + score >= 0: from the corner that hurts most back towards the line, the
// coordinates that cost least for their gain first. Nothing where the box does not reach that side.
function knapsack(cost, a, score, eps) {
  if (score + eps * sum(a.map(Math.abs)) < 0) return null;
  const toward = a.map((v) => Math.sign(v) || 1), delta = cost.map((v, i) => eps * (v === 0 ? toward[i] : -Math.sign(v)));
  let lacking = -(score + dot(delta, a));
  const ratio = cost.map((v, i) => Math.abs(v) / Math.abs(a[i]));
  const against = delta.map((_, i) => i).filter((i) => delta[i] * a[i] < 0).sort((i, j) => ratio[i] - ratio[j]);
  for (const i of against) {
    const gain = 2 * eps * Math.abs(a[i]), share = Math.min(1, Math.max(0, lacking / gain));
    delta[i] += share * 2 * eps * toward[i];
    lacking -= gain;
  }
  return delta;
}

// f = w_e . x + b_e, e = 1 where a . x + c >= 0, else 0; experts are [...w, b]. The smallest y f on each side of the line.
function exactMargin(x, y, eps, a, c, experts) {
  const score = dot(a, x) + c, route = score >= 0 ? 1 : 0, worst = [], margins = [];
  for (const [e, side] of [[0, -1], [1, 1]]) {
    const w = experts[e].slice(0, -1), cost = w.map((v) => y * v), value = y * (dot(w, x) + experts[e].at(-1));
    const delta = knapsack(cost, a.map((v) => side * v), side * score, eps);
    margins.push(delta ? value + dot(cost, delta) : Infinity);
    worst.push(delta ? x.map((v, i) => v + delta[i]) : []);
  }
  const own = experts[route], w = own.slice(0, -1), clean = y * (dot(w, x) + own.at(-1));
  const frozen = clean - eps * sum(w.map(Math.abs)), margin = Math.min(...margins);
  const beaten = margins[route] <= 0, flip = margin <= 0 && !beaten;
  return { margin, margins, worst, route, clean, frozen, score, beaten, flip };
}

// The router (a, c) and the experts of the sliders.
function network(s, offsets, lines) {
  const angle = (s.angle * Math.PI) / 180;
  return { a: [Math.cos(angle), Math.sin(angle)], c: -offsets[s.router], experts: lines[s.experts] };
}

function compute(s, { a, c, experts }) {
  const at = (x) => exactMargin(x, s.label, s.eps, a, c, experts), one = at(s.point);
  const centre = (i) => SPAN * ((2 * i + 1) / GRID - 1);
  let cells = "", reported = 0;
  for (let r = 0; r < GRID; r++) {
    for (let i = 0; i < GRID; i++) {
      const here = at([centre(i), -centre(r)]);
      cells += here.clean <= 0 ? 3 : here.beaten ? 1 : here.flip ? 2 : 0;
      reported += here.frozen > 0;
    }
  }
  const right = cells.length - (cells.split("3").length - 1), safe = one.margins[1 - one.route] < Infinity ? "agree" : "steady";
  return {
    kind: one.clean <= 0 ? "wrong" : one.beaten ? "own" : one.flip ? "flip" : safe,
    route: one.route, margin: one.margin,
    by_expert: one.margins.map((v) => (v < Infinity ? v : "not reached")),
    worst: one.worst.map((p) => (p.length ? p : "not reached")), clean: one.clean, frozen: one.frozen,
    slack: Math.abs(one.score) - s.eps * sum(a.map(Math.abs)),
    cells, safe: (cells.split("0").length - 1) / right, reported: reported / right,
  };
}

// Where (u, v, w): u x + v y + w = 0 enters and leaves the plane and the sides where forms are not negative.
function ends([u, v, w], ...sides) {
  const size = u * u + v * v;
  let low = -9, high = 9;
  for (const [p, q, r] of [[1, 0, SPAN], [-1, 0, SPAN], [0, 1, SPAN], [0, -1, SPAN], ...sides]) {
    const start = r - ((p * u + q * v) * w) / size, slope = q * u - p * v;
    if (Math.abs(slope) < 1e-12) high = start >= 0 ? high : low;
    else if (slope > 0) low = Math.max(low, -start / slope);
    else high = Math.min(high, -start / slope);
  }
  return low < high ? [low, high].map((t) => [(-u * w) / size - v * t, (-v * w) / size + u * t]) : [];
}

// The part of a polygon where the side's form is not negative.
function clip(corners, [u, v, w]) {
  const kept = [], heights = corners.map(([x, y]) => u * x + v * y + w);
  corners.forEach(([x, y], i) => {
    const last = (i + corners.length - 1) % corners.length, [before, behind] = corners[last], h = heights[i], g = heights[last];
    if ((h >= 0) !== (g >= 0)) kept.push([before + (g / (g - h)) * (x - before), behind + (g / (g - h)) * (y - behind)]);
    if (h >= 0) kept.push([x, y]);
  });
  return kept;
}

const size = (v) => Math.abs(v).toFixed(2), signed = (v) => (v < 0 ? "−" : "+") + size(v);
const margin = (v) => (typeof v === "string" ? "out of reach" : signed(v));
const error = (gap) => (Math.abs(gap) < 0.005 ? "none" : `${size(gap)} too ${gap > 0 ? "high" : "low"}`);
const percent = (share) => `${(100 * share).toFixed(0)} %`;

function render({ model, el }) {
  const keys = ["point", "eps", "angle", "router", "experts", "label"];
  const fig = figure({ model, el }, { name: "plane", keys, draw, say });
  const plane = fig.one("[data-x]"), atX = scale(plane), atY = scale(fig.one("[data-y]")), colours = model.get("colours");
  const [tiles, names, parts, worst] = ["tile", "name", "part", "worst"].map((name) => fig.all(`[data-${name}]`));
  const lines = fig.all("[data-line]"), router = fig.one("[data-router]"), handle = fig.one("[data-handle]");
  const badge = fig.one("[data-badge]"), lamp = fig.one("[data-lamp]");
  const left = atX(-SPAN), top = atY(SPAN), cell = (atX(SPAN) - left) / GRID;
  const place = ([x, y], between = " ") => atX(x).toFixed(2) + between + atY(y).toFixed(2);
  const path = (line) => "M" + (line.length ? line : [[-SPAN, SPAN]]).map((end) => place(end)).join("L");

  // For the three kinds that are not safe, a path of all their cells, run by run.
  function paths(cells) {
    const out = ["", "", ""];
    for (let r = 0; r < GRID; r++) {
      for (let i = 1, start = 0; i <= GRID; i++) {
        const now = cells[r * GRID + start];
        if (i < GRID && cells[r * GRID + i] === now) continue;
        const width = cell * (i - start);
        if (now !== "0") out[now - 1] += `M${left + cell * start} ${top + cell * r}h${width}v${cell}h-${width}z`;
        start = i;
      }
    }
    return out.map((d) => d || "M0 0");
  }

  function draw() {
    const s = Object.fromEntries(keys.map((key) => [key, model.get(key)])), net = network(s, model.get("offsets"), model.get("lines"));
    const v = compute(s, net), line = [...net.a, net.c], other = line.map((u) => -u), [x, y] = s.point, { eps } = s;
    paths(v.cells).forEach((d, code) => put(tiles[code], { d }));
    net.experts.forEach((expert, e) => {
      const own = e ? line : other;
      put(lines[2 * e], { d: path(ends(expert, own)) });
      put(lines[2 * e + 1], { d: path(ends(expert, e ? other : line)) });
      const box = [[x - eps, y - eps], [x + eps, y - eps], [x + eps, y + eps], [x - eps, y + eps]];
      put(parts[e], { points: clip(box, own).map((corner) => place(corner, ",")).join(" ") });
    });
    const through = ends(line), inner = SPAN - 0.2, hold = (u) => Math.max(-inner, Math.min(inner, u));
    put(router, { d: path(through) });
    names.forEach((node, e) => {
      const k = e ? 0.25 : -0.25, [u, w] = net.a;
      put(node, { x: atX(hold(through[1][0] + 0.2 * w + k * u)), y: atY(hold(through[1][1] - 0.2 * u + k * w)) + 4 });
    });
    put(handle, { transform: `translate(${place(s.point)})` });
    put(handle.querySelector("circle"), { fill: colours[v.route] });
    handle.querySelector("text").textContent = s.label > 0 ? "+" : "−";
    worst.forEach((node, e) => {
      const there = typeof v.worst[e] !== "string";
      put(node, { transform: there ? `translate(${place(v.worst[e])})` : "translate(0.00 0.00)" });
      node.style.display = there ? "" : "none";
      node.style.pointerEvents = "none";
      put(node.querySelector("path"), { visibility: there && v.by_expert[e] <= 0 ? "visible" : "hidden" });
    });
    const [colour, verdict] = model.get("badges")[v.kind], stroke = colour === "none" ? "currentColor" : colour;
    put(badge, { stroke });
    put(lamp, { fill: colour, stroke });
    fig.one("[data-verdict]").textContent = verdict;
    fig.callout(v.kind, model.get("words"));
    fig.write("margin1", margin(v.by_expert[1]));
    fig.write("margin0", margin(v.by_expert[0]));
    fig.write("slack", signed(v.slack));
    fig.write("exact", signed(v.margin));
    fig.write("frozen", signed(v.frozen));
    fig.write("off", error(v.frozen - v.margin));
    fig.write("share", `${percent(v.safe)}, ${percent(v.reported)}`);
    return v;
  }

  function say(v) {
    const told = model.get("badges")[v.kind][1];
    return `${told}. Exact margin ${signed(v.margin)}; a frozen route reports ${signed(v.frozen)}. Of the right places, ${percent(v.safe)} are safe.`;
  }

  slider(fig, { key: "eps", label: "Box ε", min: 0, max: 0.6, step: 0.02, show: (v) => v.toFixed(2) });
  slider(fig, { key: "angle", label: "Router angle", min: -90, max: 90, step: 1, show: (v) => `${v}°`.replace("-", "−") });
  const kinds = (what) => ["standard", "robust"].map((kind) => [kind, `${kind} ${what}`]);
  choice(fig, { key: "router", label: "Router", options: kinds("router") });
  choice(fig, { key: "experts", label: "Experts", options: kinds("experts") });
  choice(fig, { key: "label", label: "Label of the point", options: [[1, "label y = +1"], [-1, "label y = −1"]] });
  const start = { point: [0.25, 0.65], eps: 0.4, angle: 0, router: "standard", experts: "standard", label: 1 };
  presets(fig, {
    label: "Examples",
    options: [
      ["only by a flip", start], ["wide router margin", { ...start, router: "robust" }],
      ["agreeing experts", { ...start, experts: "robust" }], ["own path", { ...start, point: [0.9, 0.1] }],
      ["frozen too low", { ...start, point: [0, 1.25] }],
    ],
  });

  // The point: dragged in two directions, or moved by the arrow keys.
  const svg = plane.ownerSVGElement, snap = (u) => +Math.max(-REACH, Math.min(REACH, u)).toFixed(2);
  put(svg, { role: "group" });
  put(handle, { role: "slider", tabindex: "0", "aria-label": "Point under attack", "aria-valuemin": String(-REACH), "aria-valuemax": String(REACH) });
  const move = (u, w) => fig.set({ point: [snap(u), snap(w)] });
  const follow = (event) => {
    const box = svg.getBoundingClientRect(), ratio = svg.viewBox.baseVal.width / box.width;
    move(atX.inverse((event.clientX - box.left) * ratio), atY.inverse((event.clientY - box.top) * ratio));
  };
  handle.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    handle.setPointerCapture(event.pointerId);
    handle.focus({ preventScroll: true });
  });
  still(handle);
  handle.addEventListener("pointermove", (event) => { if (handle.hasPointerCapture(event.pointerId)) follow(event); });
  handle.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-0.05, 0], ArrowRight: [0.05, 0], ArrowUp: [0, 0.05], ArrowDown: [0, -0.05] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [u, w] = model.get("point");
    move(u + step[0], w + step[1]);
  });
  fig.followers.push(() => {
    const [u, w] = model.get("point");
    put(handle, { "aria-valuenow": String(u), "aria-valuetext": `${u.toFixed(2)}, ${w.toFixed(2)}`.replaceAll("-", "−") });
  });
  fig.update();
  return fig.stop;
}

export default { render };
