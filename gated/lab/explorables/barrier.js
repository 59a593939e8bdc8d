// A barrier in three views. The numbers are those of gated.online_cbf; tests hold the two together.

const RADIUS = 0.15, OBSTACLE = 0.4, WIDE = 1.45, HIGH = 0.95, TOUCH = 1e-6, STEPS = 200, POSTS = 10, STILL = 0.03;
const JAM = -1, SLOW = -2, TICK = 0.005, SHOT = 6, FINE = 10000, TOLERANCE = 1e-9, CELL = 16, SHADES = [105, 130, 160, 200];
const SECOND = Array.from({ length: 76 }, (_, i) => 0.08 * i);
const SHOWN = Array.from({ length: 41 }, (_, i) => 0.04 * i), BOX = [[1, 0, -1], [-1, 0, -1], [0, 1, -1], [0, -1, -1]];
const minus = ([a, b], [c, d]) => [a - c, b - d], norm = ([a, b]) => Math.sqrt(a * a + b * b);

// min |u - w|^2 + xi max(0, c.u + d)^2 with n.u >= b for rows [n_x, n_y, b], |n| = 1, and u in the box; null for none.
// It is the optimum without rows, or it lies on the line of a row, within what all other rows leave of that line.
function solve(rows, { w, c, d, xi }) {
  const over = (x, y) => Math.max(0, c[0] * x + c[1] * y + d), all = [...rows, ...BOX];
  const push = (xi * over(w[0], w[1])) / (1 + xi * (c[0] * c[0] + c[1] * c[1])), free = [w[0] - push * c[0], w[1] - push * c[1]];
  if (all.every(([x, y, b]) => x * free[0] + y * free[1] >= b)) return free;
  for (const slack of [0, TOLERANCE / 4]) {
    let best = null, least = Infinity;
    for (const line of all) {
      const [nx, ny, b] = line, px = b * nx, py = b * ny;
      let low = -4, high = 4;
      for (const other of all) {
        if (other === line) continue;
        const slope = other[1] * nx - other[0] * ny, lack = other[2] - other[0] * px - other[1] * py - slack;
        if (Math.abs(slope) < 1e-12) high = lack > TOLERANCE ? -Infinity : high;
        else if (slope > 0) low = Math.max(low, lack / slope);
        else high = Math.min(high, lack / slope);
      }
      if (low > high) continue;
      let t = (w[1] - py) * nx - (w[0] - px) * ny;
      const rise = c[1] * nx - c[0] * ny;
      t -= (xi * rise * over(px - t * ny, py + t * nx)) / (1 + xi * rise * rise);
      t = Math.min(high, Math.max(low, t));
      const x = px - t * ny, y = py + t * nx, cost = (x - w[0]) ** 2 + (y - w[1]) ** 2 + xi * over(x, y) ** 2;
      if (cost < least) [best, least] = [[x, y], cost];
    }
    if (best) return best;
  }
  return null;
}

// How fast h may shrink, and the row that says so for a disc at `other`: kappa 1/2 for a share, 1 for all of it.
const classK = (h, zeta, eta, dt) => Math.min(zeta * (eta === 1 ? h : h * h * h), h / dt);
function barrierRow(me, other, reach, zeta, eta, kappa, dt) {
  const away = minus(me, other), square = away[0] * away[0] + away[1] * away[1], d = Math.sqrt(square);
  const bound = (-kappa * classK(square - reach * reach, zeta, eta, dt)) / (2 * d);
  return [away[0] / d, away[1] / d, bound];
}
function objective(kind, way, g) {
  if (kind === "clf") return { w: [0, 0], c: [2 * way[0], 2 * way[1]], d: g.epsilon * (way[0] * way[0] + way[1] * way[1]), xi: g.xi };
  return { w: way.map((v) => Math.min(1, Math.max(-1, -g.gain * v))), c: [0, 0], d: 0, xi: 1 };
}

// What rows n.u >= b leave of the box.
function polygon(rows) {
  let corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]];
  for (const [x, y, b] of rows) {
    const heights = corners.map(([p, q]) => x * p + y * q - b), kept = [];
    corners.forEach(([p, q], i) => {
      const last = (i + corners.length - 1) % corners.length, [before, behind] = corners[last], h = heights[i], g = heights[last];
      if ((h >= 0) !== (g >= 0)) kept.push([before + (g / (g - h)) * (p - before), behind + (g / (g - h)) * (q - behind)]);
      if (h >= 0) kept.push([p, q]);
    });
    corners = kept;
  }
  return corners;
}

function choose(s, g) {
  const share = s.mode === "share", kappa = share ? 0.5 : 1, comes = share ? 0 : s.speed, me = s.agent;
  const rows = [barrierRow(me, s.neighbour, 2 * RADIUS, s.zeta, s.eta, kappa, g.dt), barrierRow(me, s.obstacle, RADIUS + OBSTACLE, s.zeta_o, s.eta, 1, g.dt)];
  const away = minus(me, s.neighbour), d = norm(away), velocity = away.map((v) => (comes * v) / d);
  rows[0][2] += rows[0][0] * velocity[0] + rows[0][1] * velocity[1];
  const goal = objective(s.objective, minus(me, s.goal), g), answer = solve(rows, goal), u = answer ?? [0, 0];
  const tight = rows.map(([x, y, b]) => +(answer !== null && Math.abs(x * u[0] + y * u[1] - b) < 1e-9));
  const sides = [[2 * RADIUS, s.zeta, kappa, s.neighbour], [RADIUS + OBSTACLE, s.zeta_o, 1, s.obstacle]];
  const limit = (far, [reach, zeta, k]) => (k * classK(far * far - reach * reach, zeta, s.eta, g.dt)) / (2 * far);
  const far = sides.map((side) => norm(minus(me, side[3])));
  return {
    kind: answer ? ["open", "line", "corner"][tight[0] + tight[1]] : "infeasible",
    normals: rows.map(([x, y]) => [x, y]), bounds: rows.map((row) => row[2]), wish: solve([], goal), u,
    polygon: answer ? polygon(rows) : [], tight, gaps: far.map((v, i) => v - sides[i][0]), allowed: far.map((v, i) => limit(v, sides[i])),
    closing: rows.map(([x, y], i) => (i ? 0 : norm(velocity)) - (x * u[0] + y * u[1])),
    curves: sides.map((side) => SHOWN.map((gap) => limit(gap + side[0], side))), comes: velocity,
  };
}

// Places [x_1, y_1, x_2, y_2] of two agents at the door, step by step until both have arrived.
function drive(zetas, sigma, g) {
  const start = g.door.start, at = [[start[0][0] + sigma, start[0][1]], start[1]], path = [at.flat()], here = [false, false];
  const look = () => at.forEach((p, i) => { here[i] ||= norm(minus(p, g.door.goal[i])) <= g.tolerance; });
  look();
  for (let step = 0; step < STEPS && !(here[0] && here[1]); step++) {
    const next = at.map((me, i) => {
      const rows = [barrierRow(me, at[1 - i], 2 * RADIUS, zetas[i], 1, 0.5, g.dt)];
      for (const post of g.door.posts) rows.push(barrierRow(me, post, RADIUS + 1, POSTS, 1, 1, g.dt));
      const u = solve(rows, objective("clf", minus(me, g.door.goal[i]), g)) ?? [0, 0];
      return [me[0] + g.dt * u[0], me[1] + g.dt * u[1]];
    });
    [at[0], at[1]] = next;
    path.push(at.flat());
    look();
  }
  return path;
}

function passage(path, zetas, g) {
  const places = [0, 1].map((i) => path.map((p) => p.slice(2 * i, 2 * i + 2))), end = path.length - 1;
  const arrival = places.map((all, i) => all.findIndex((p) => norm(minus(p, g.door.goal[i])) <= g.tolerance));
  const through = places.map((all) => all.findIndex((p) => p[0] > 0)).map((k) => (k < 0 ? STEPS + 1 : k));
  const speed = Math.max(...path[end].map((v, i) => Math.abs(v - path[end - 1][i]))) / g.dt;
  const done = Math.min(...arrival) >= 0, steps = done ? Math.max(...arrival) : speed < STILL ? JAM : SLOW;
  const pair = path.map((p) => norm([p[0] - p[2], p[1] - p[3]]) - 2 * RADIUS);
  const post = places.map((all) => all.map((p) => Math.min(...g.door.posts.map((o) => norm(minus(p, o)))) - 1 - RADIUS));
  const equal = zetas && zetas[0] === zetas[1];
  return {
    kind: !zetas ? "run" : done ? (equal ? "even" : "order") : steps === SLOW ? "slow" : equal ? "jam" : "wedge", steps, arrival,
    first: Math.min(...through) > STEPS ? 0 : 1 + (through[1] < through[0]), least: Math.min(...pair, ...post[0], ...post[1]), path, pair, post,
  };
}

function braking({ alpha, v0, brake }) {
  const peak = v0 * alpha * Math.exp(-1), threshold = (Math.E * brake) / v0, start = v0 * (1 / alpha + 1 / alpha);
  const wanted = [], gap = [], count = Math.ceil((8 / alpha + v0 / brake) / TICK);
  let x = start, v = v0, least = start, hit = 0;
  for (let step = 0; step < count; step++) {
    const demand = Math.min(alpha * alpha * x - 2 * alpha * v, 0), u = Math.max(demand, -brake), before = x;
    if (step % 16 === 0 && step * TICK <= SHOT && !hit) wanted.push(-demand), gap.push(x);
    [x, v] = [x - TICK * v - 0.5 * TICK * TICK * u, v + TICK * u];
    least = Math.min(least, x);
    if (x < 0 && before >= 0) hit = v;
  }
  return { kind: peak <= brake ? "brakes" : least >= 0 ? "beyond" : "hit", peak, threshold, start, least, hit, wanted, gap, ideal: SECOND.map((t) => alpha * alpha * v0 * t * Math.exp(-alpha * t)) };
}

function compute(s, g) {
  if (s.view === "barrier") return { view: s.view, ...choose(s, g) };
  if (s.view === "braking") return { view: s.view, ...braking(s) };
  const zetas = [s.zeta_1, s.zeta_2], run = g.runs[s.run];
  const path = run ? Array.from({ length: run.length / 4 }, (_, t) => run.slice(4 * t, 4 * t + 4).map((v) => v / FINE)) : drive(zetas, s.sigma, g);
  return { view: s.view, ...passage(path, run ? null : zetas, g), places: path[Math.min(s.time, path.length - 1)] };
}

const fixed = (v, digits = 2) => (Math.abs(v) < 0.5 * 10 ** -digits ? 0 : v).toFixed(digits).replace("-", "−");
const pair = (numbers) => numbers.map((v) => fixed(v)).join("; ");
const outcome = ({ steps }) => (steps >= 0 ? `through in ${steps}` : steps === JAM ? "jam" : "too slow");
const shade = (steps) => (steps >= 0 ? SHADES.findIndex((most) => steps <= most) : steps === JAM ? 4 : 5);
const pathOf = (points, close = "") => (points.length ? "M" + points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L") + close : "M0 0");

function arrow([x, y], [dx, dy]) {
  const size = Math.hypot(dx, dy), tip = [x + dx, y + dy], p = (7 * dx) / size, q = (7 * dy) / size;
  if (size < 5) return "M0 0";
  return pathOf([[x, y], tip]) + pathOf([[tip[0] - p + 0.5 * q, tip[1] - q - 0.5 * p], tip, [tip[0] - p - 0.5 * q, tip[1] - q + 0.5 * p]]);
}

// Whether the places of the first view can be, discs apart and the goal free.
function fits(s) {
  const { agent, neighbour, goal, obstacle } = s, far = (a, b) => norm(minus(a, b));
  const wide = RADIUS + OBSTACLE + TOUCH, inside = (p) => Math.abs(p[0]) <= WIDE && Math.abs(p[1]) <= HIGH;
  return [agent, neighbour, goal, obstacle].every(inside) && far(agent, neighbour) >= 2 * RADIUS + TOUCH &&
    far(agent, obstacle) >= wide && far(neighbour, obstacle) >= wide && far(goal, obstacle) >= wide;
}

function render({ model, el }) {
  const first = model.get("view"); // markup and controls of this view stand first in the page
  const keys = [
    "view", "agent", "neighbour", "goal", "obstacle", "zeta", "zeta_o", "eta", "mode", "objective", "speed",
    "zeta_1", "zeta_2", "sigma", "time", "run", "alpha", "v0", "brake",
  ];
  const g = { ...model.get("rule"), door: model.get("door"), runs: model.get("runs") };
  const [sigmas, zetas, maps, names] = ["sigmas", "zetas", "maps", "names"].map((key) => model.get(key));
  const state = () => Object.fromEntries(keys.map((key) => [key, model.get(key)]));
  const fig = figure({ model, el }, { name: "barrier", keys, draw, say });
  const axes = ["x", "y", "gap", "speed", "u", "v", "dx", "dy", "time", "clear", "one", "two", "seconds", "decel", "room", "alpha", "peak"];
  const at = Object.fromEntries(axes.map((name) => [name, scale(fig.one(`[data-axis="${name}"]`))]));
  const mark = (kind, name) => fig.one(`[data-${kind}="${name}"]`);
  const curve = (x, xs, y, ys, every = 1) =>
    pathOf(ys.map((v, i) => [x(xs[i]), y(v)]).filter((_, i) => i % every === 0 || i === ys.length - 1));
  const seen = (there) => ({ visibility: there ? "visible" : "hidden" });
  const spot = ([x, y]) => `translate(${x.toFixed(2)} ${y.toFixed(2)})`;
  const groups = {};
  let halt = () => {}, made = "", kept;

  function drawBarrier(s, v) {
    const place = ([x, y]) => [at.x(x), at.y(y)], control = ([x, y]) => [at.u(x), at.v(y)], none = v.kind === "infeasible";
    for (const key of ["agent", "neighbour", "goal", "obstacle"]) put(mark("handle", key), { transform: spot(place(s[key])) });
    for (const [name, from, by] of [["comes", s.neighbour, v.comes], ["wish", s.agent, v.wish], ["u", s.agent, v.u]]) {
      put(mark("arrow", name), { d: arrow(place(from), [0.6 * 97.5 * by[0], -0.6 * 97.5 * by[1]]) });
    }
    v.bounds.forEach((bound, i) => {
      const [p, q] = v.normals[i], ends = [];
      put(mark("forbidden", i), { d: pathOf(polygon([[-p, -q, -bound]]).map(control), "Z") });
      for (const side of [-1, 1]) {
        const y = (bound - p * side) / q, x = (bound - q * side) / p;
        if (Math.abs(q) > 1e-9 && Math.abs(y) <= 1) ends.push([side, y]);
        if (Math.abs(p) > 1e-9 && Math.abs(x) < 1) ends.push([x, side]);
      }
      put(mark("edge", i), { d: ends.length > 1 ? pathOf(ends.slice(0, 2).map(control)) : "M0 0" });
      put(mark("curve", i), { d: curve(at.gap, SHOWN, at.speed, v.curves[i]) });
      put(mark("allowed", i), { cx: at.gap(v.gaps[i]), cy: at.speed(v.allowed[i]) });
      put(mark("closing", i), { cx: at.gap(v.gaps[i]), cy: at.speed(v.closing[i]) });
    });
    put(fig.one("[data-polygon]"), { d: pathOf(v.polygon.map(control), "Z") });
    put(fig.one("[data-box]"), { stroke: none ? "var(--gx-red, #c8430a)" : "currentColor", "stroke-width": none ? "4" : "1.5" });
    put(fig.one("[data-cut]"), { d: pathOf([control(v.wish), control(v.u)]) });
    put(mark("dot", "wish"), { cx: at.u(v.wish[0]), cy: at.v(v.wish[1]) });
    put(mark("dot", "u"), { cx: at.u(v.u[0]), cy: at.v(v.u[1]), fill: none ? "var(--gx-red, #c8430a)" : "var(--gx-green, #00805b)" });
    put(fig.one("[data-empty]"), seen(none));
    fig.write("wish", pair(v.wish));
    fig.write("control", pair(v.u));
    fig.write("neighbour", pair([v.closing[0], v.allowed[0]]));
    fig.write("obstacle", pair([v.closing[1], v.allowed[1]]));
    fig.write("verdict", none ? "infeasible" : "feasible");
  }

  // A path for each kind of cell, run by run.
  function cells(steps) {
    const n = zetas.length, kinds = steps.map(shade), out = Array(6).fill(""), left = at.one(at.one.low), base = at.two(at.two.low);
    for (let j = 0; j < n; j++) {
      for (let i = 1, start = 0; i <= n; i++) {
        if (i < n && kinds[n * j + i] === kinds[n * j + start]) continue;
        const width = CELL * (i - start);
        out[kinds[n * j + start]] += `M${left + CELL * start} ${base - CELL * (j + 1)}h${width}v${CELL}h-${width}z`;
        start = i;
      }
    }
    return out.map((d) => d || "M0 0");
  }

  function drawDoorway(s, v) {
    const end = v.path.length - 1, now = Math.min(s.time, end), times = v.path.map((_, t) => t);
    [0, 1].forEach((i) => {
      const track = v.path.map((p) => [at.dx(p[2 * i]), at.dy(p[2 * i + 1])]);
      put(mark("track", i), { d: pathOf(track) });
      put(mark("past", i), { d: pathOf(track.slice(0, now + 1)) });
      put(mark("disc", i), { transform: spot(track[now]) });
    });
    const words = v.steps === JAM ? "jam" : v.steps === SLOW ? "too slow" : "both are through";
    fig.one("[data-status]").textContent = `Step ${now} of ${end}` + (now === end ? `: ${words}` : "");
    for (const [name, series] of [["pair", v.pair], ["one", v.post[0]], ["two", v.post[1]]]) {
      put(mark("series", name), { d: curve(at.time, times, at.clear, series, 4) });
    }
    put(fig.one("[data-now]"), { x1: at.time(now), x2: at.time(now) });
    cells(maps[sigmas.indexOf(s.sigma)]).forEach((d, i) => put(mark("cells", i), { d }));
    const place = [at.one(Math.log10(s.zeta_1)), at.two(Math.log10(s.zeta_2))];
    put(mark("handle", "map"), { transform: spot(place), ...seen(s.run === "") });
    fig.write("outcome", outcome(v));
    fig.write("first", v.first ? `agent ${v.first}` : "nobody");
    fig.write("arrival", v.arrival.map((k) => (k < 0 ? "never" : k)).join(", "));
    fig.write("least", fixed(v.least, 3));
    fig.write("collisions", String(model.get("collisions")[sigmas.indexOf(s.sigma)]));
  }

  function drawBraking(s, v) {
    const times = v.wanted.map((_, i) => 16 * TICK * i), good = v.kind === "brakes", red = "var(--gx-red, #c8430a)", blue = "var(--gx-blue, #0072b2)";
    const level = at.decel(s.brake), high = at.peak(s.brake), wall = at.alpha(v.threshold), steep = s.v0 / Math.E;
    put(fig.one("[data-wanted]"), { d: curve(at.seconds, times, at.decel, v.wanted), stroke: good ? blue : red });
    put(fig.one("[data-ideal]"), { d: curve(at.seconds, SECOND, at.decel, v.ideal) });
    put(fig.one("[data-room]"), { d: curve(at.seconds, times, at.room, v.gap), stroke: v.kind === "hit" ? red : blue });
    put(mark("over", "demand"), { height: level - 26, ...seen(!good) });
    put(mark("over", "peak"), { x: wall, width: 312 - wall });
    for (const [name, y] of [["demand", level], ["peak", high]]) {
      put(mark("level", name), { y1: y, y2: y });
      put(mark("name", name), { y: y - 4 });
    }
    const end = Math.min(at.alpha.high, at.peak.high / steep);
    put(fig.one("[data-ray]"), { d: pathOf([[at.alpha(0), at.peak(0)], [at.alpha(end), at.peak(steep * end)]]) });
    put(fig.one("[data-threshold]"), { x1: wall, x2: wall });
    put(fig.one("[data-beyond]"), { x: Math.min(wall + 5, 240), ...seen(v.threshold < at.alpha.high) });
    put(fig.one("[data-peak]"), { cx: at.alpha(s.alpha), cy: at.peak(v.peak), fill: good ? blue : red });
    fig.write("peak", v.peak.toFixed(3));
    fig.write("brake", s.brake.toFixed(2));
    fig.write("threshold", v.threshold.toFixed(2));
    fig.write("start", v.start.toFixed(2));
    fig.write("end", v.kind === "hit" ? `hits the wall at ${v.hit.toFixed(2)}` : "stops before the wall");
  }

  function draw() {
    const s = state(), settings = JSON.stringify({ ...s, time: 0 });
    if (settings !== made) [kept, made] = [compute(s, g), settings];
    const v = s.view === "doorway" ? { ...kept, places: kept.path[Math.min(s.time, kept.path.length - 1)] } : kept;
    ({ barrier: drawBarrier, doorway: drawDoorway, braking: drawBraking })[s.view](s, v);
    if (el.dataset.shown !== s.view) {
      el.dataset.shown = s.view;
      if (s.view !== "doorway") halt();
      for (const node of fig.all("[data-view]")) node.style.display = node.dataset.view === s.view ? "" : "none";
    }
    for (const view in groups) {
      for (const input of groups[view].querySelectorAll("input[type=range]")) input.disabled = view !== s.view || idle(input.dataset.key, s);
    }
    fig.one(".gx-note").style.borderColor = ["infeasible", "beyond", "hit"].includes(v.kind) ? "var(--gx-red)" : "";
    fig.callout(v.kind, model.get("words"));
    return v;
  }

  // Sliders that have no effect on what is shown.
  const idle = (key, s) => (key === "speed" && s.mode === "share") || (s.run !== "" && ["zeta_1", "zeta_2", "sigma"].includes(key));

  function say(v) {
    const s = state(), title = model.get("words")[v.kind][0];
    if (v.view === "barrier") return `${title}. Wish ${pair(v.wish)}, control ${pair(v.u)}.`;
    if (v.view === "braking") return `${title}. Demanded at most ${v.peak.toFixed(2)}, the brakes give ${s.brake.toFixed(2)}.`;
    return `${title}. Outcome: ${outcome(v)}, smallest gap ${fixed(v.least, 3)}. Step ${Math.min(s.time, v.path.length - 1)} is shown.`;
  }

  // Controls, in a group for each view.
  choice({ ...fig, controls: fig.one("[data-tabs]") }, { key: "view", label: "View", options: Object.entries(names.view) });
  const power = { decode: (u) => +(10 ** u).toPrecision(3), encode: Math.log10, show: (v) => `${+v.toPrecision(3)}` };
  const build = {
    barrier(part) {
      const wide = { min: -0.7, max: 1.3, step: 0.05, ...power };
      slider(part, { key: "zeta", label: "ζ to neighbour", ...wide });
      slider(part, { key: "zeta_o", label: "ζ to obstacle", ...wide });
      choice(part, { key: "eta", label: "Exponent", options: [[1, "η = 1"], [3, "η = 3"]] });
      choice(part, { key: "mode", label: "Part of the allowance", options: Object.entries(names.mode) });
      slider(part, { key: "speed", label: "Neighbour comes (full)", min: 0, max: 1, step: 0.05, show: (v) => v.toFixed(2) });
      choice(part, { key: "objective", label: "Objective", options: Object.entries(names.objective) });
      const wedged = { agent: [-0.35, -0.1], neighbour: [0.15, 0.3], goal: [1.2, -0.05], obstacle: [-1, -0.3], eta: 1, objective: "nominal" };
      presets(part, {
        label: "Examples",
        options: [
          ["squeezed, full", { ...wedged, zeta: 1, zeta_o: 1, mode: "full", speed: 1 }],
          ["squeezed, share", { ...wedged, zeta: 1, zeta_o: 1, mode: "share", speed: 1 }],
          ["nearly open", { ...start, zeta: 20, zeta_o: 20 }], ["nearly shut", { ...start, zeta: 0.2, zeta_o: 0.2 }],
        ],
      });
    },
    doorway(part) {
      const [play] = buttons(part, "Time", [["▶ play"]]);
      halt = player(fig, play, { key: "time", end: () => kept.path.length - 1, ms: 40, running: "❚❚ pause" }); // 25 steps in a second
      slider(part, { key: "time", label: "Time step", min: 0, max: STEPS, step: 1 });
      const stop = { min: 0, max: zetas.length - 1, step: 1, decode: (k) => zetas[k], show: String };
      const encode = (v) => zetas.reduce((best, z, k) => (Math.abs(Math.log(z / v)) < Math.abs(Math.log(zetas[best] / v)) ? k : best), 0);
      slider(part, { key: "zeta_1", label: "ζ₁, agent 1", ...stop, encode });
      slider(part, { key: "zeta_2", label: "ζ₂, agent 2", ...stop, encode });
      slider(part, { key: "sigma", label: "Head start δ", min: 0, max: sigmas.length - 1, step: 1, decode: (k) => sigmas[k], encode: (v) => sigmas.indexOf(v) });
      if (Object.keys(g.runs).length) {
        choice(part, { key: "run", label: "What drives", options: [["", "two constants"], ...Object.keys(g.runs).map((one) => [one, one])] });
      }
      const end = { time: STEPS, run: "", sigma: 0 };
      presets(part, {
        label: "Examples",
        options: [
          ["equal gates", { ...end, zeta_1: 3.16, zeta_2: 3.16 }], ["unequal gates", { ...end, zeta_1: 10, zeta_2: 3.16 }],
          ["both late", { ...end, zeta_1: 20, zeta_2: 12.6 }], ["both early", { ...end, zeta_1: 0.63, zeta_2: 0.5 }],
        ],
      });
    },
    braking(part) {
      const show = (v) => v.toFixed(2);
      slider(part, { key: "alpha", label: "Strength ζ", min: 0.5, max: 6, step: 0.05, show });
      slider(part, { key: "v0", label: "Speed v₀", min: 0.3, max: 2, step: 0.05, show });
      slider(part, { key: "brake", label: "Brakes uₘₐₓ", min: 0.3, max: 2, step: 0.05, show });
    },
  };
  const start = { agent: [-0.7, 0.1], neighbour: [0.05, 0.4], goal: [1.2, -0.05], obstacle: [0.1, -0.5], eta: 1, mode: "share", objective: "nominal" };
  for (const view of [first, ...Object.keys(build).filter((one) => one !== first)]) {
    groups[view] = element(fig.controls, "div", { class: "gx-controls", "data-view": view, role: "group", "aria-label": `Controls: ${names.view[view]}` });
    build[view]({ ...fig, controls: groups[view] });
  }

  // Two sliders in one: dragged over the drawing, or moved by the arrow keys.
  function movable(node, { label, where, place, to, by, tell }) {
    const svg = node.ownerSVGElement;
    put(svg, { role: "group" });
    put(node, { role: "slider", tabindex: "0", "aria-label": label, "aria-valuemin": String(where[0]), "aria-valuemax": String(where[1]) });
    node.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      node.setPointerCapture(event.pointerId);
      node.focus({ preventScroll: true });
    });
    still(node);
    node.addEventListener("pointermove", (event) => {
      if (!node.hasPointerCapture(event.pointerId)) return;
      const box = svg.getBoundingClientRect(), ratio = svg.viewBox.baseVal.width / box.width;
      to([(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio]);
    });
    node.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!step) return;
      event.preventDefault();
      by(step);
    });
    fig.followers.push(() => put(node, { "aria-valuenow": String(place()), "aria-valuetext": tell() }));
  }
  const hold = (v, most) => Math.max(-most, Math.min(most, +v.toFixed(2))) + 0;
  for (const key of ["agent", "neighbour", "goal", "obstacle"]) {
    // As far on the way as there is room.
    const go = (x, y) => {
      const s = state(), [a, b] = s[key];
      for (let part = 20; part > 0; part--) {
        const there = [hold(a + ((x - a) * part) / 20, WIDE), hold(b + ((y - b) * part) / 20, HIGH)];
        if (fits({ ...s, [key]: there })) return fig.set({ [key]: there });
      }
    };
    movable(mark("handle", key), {
      label: `Place of the ${key}`, where: [-WIDE, WIDE], place: () => model.get(key)[0],
      to: ([x, y]) => go(at.x.inverse(x), at.y.inverse(y)), by: ([x, y]) => go(model.get(key)[0] + 0.05 * x, model.get(key)[1] + 0.05 * y),
      tell: () => `x ${fixed(model.get(key)[0])}, y ${fixed(model.get(key)[1])}`,
    });
  }
  const nearest = (value) => zetas[Math.max(0, Math.min(zetas.length - 1, Math.round(10 * value) + 3))];
  const pick = ([x, y]) => fig.set({ zeta_1: nearest(at.one.inverse(x)), zeta_2: nearest(at.two.inverse(y)), run: "" });
  movable(mark("handle", "map"), {
    label: "Both strengths, on the map", where: [zetas[0], zetas.at(-1)], place: () => model.get("zeta_1"), to: pick,
    by: ([x, y]) => pick([at.one(Math.log10(model.get("zeta_1")) + 0.1 * x), at.two(Math.log10(model.get("zeta_2")) + 0.1 * y)]),
    tell: () => `ζ₁ ${model.get("zeta_1")}, ζ₂ ${model.get("zeta_2")}`,
  });
  mark("pick", "map").addEventListener("click", (event) => {
    const svg = event.currentTarget.ownerSVGElement, box = svg.getBoundingClientRect(), ratio = svg.viewBox.baseVal.width / box.width;
    pick([(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio]);
  });
  fig.update();
  return fig.stop;
}

export default { render };
