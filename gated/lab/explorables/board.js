// Who hears whom on a board with a prey. The numbers are those of gated.commformer; tests hold the two together.

const SIZE = 5, LIMIT = 20, AGENTS = 6, DRAWS = 20, STRONGEST = 4, DEAREST = 3, FLAGS = 0.25;
const BLUE = "var(--gx-blue, #0072b2)", ORANGE = "var(--gx-orange, #c46a00)", GREEN = "var(--gx-green, #00805b)";
const RED = "var(--gx-red, #c8430a)", GREY = "var(--gx-grey, #77808a)", PAGE = "var(--pst-color-background, Canvas)";
const FILLS = [PAGE, BLUE, GREEN], INK = ["currentColor", PAGE, PAGE];
const CELL = 60, LEFT = 20, TOP = 28, ROW = 34, HEAD = 44, SIDE = 62, WIDE = 42, LANE = 19, BAR = 19, SLOT = 50;
const row = (cell) => Math.floor(cell / SIZE), column = (cell) => cell % SIZE;
const range = (n) => Array.from({ length: n }, (_, i) => i), total = (list) => list.reduce((a, b) => a + b, 0);
const apart = (a, b) => Math.max(Math.abs(row(a) - row(b)), Math.abs(column(a) - column(b)));
const pays = (value, penalty) => penalty === 0 || value > penalty;

// The corners of a way to and fro on which windows of `reach` cover the board.
function lanes(reach) {
  const near = Math.min(reach, Math.floor((SIZE - 1) / 2)), last = SIZE - 1 - near, rows = [];
  for (let r = near; r < last; r += 2 * near + 1) rows.push(r);
  rows.push(last);
  const corners = rows.flatMap((r, n) => (n % 2 ? [r * SIZE + last, r * SIZE + near] : [r * SIZE + near, r * SIZE + last]));
  return [...new Set(corners)];
}

// One episode of the script: search along lanes, then go to the prey. `senders[i]` lists whom agent i hears; `see` is
// shown each step before its moves. Gives steps, and for each agent the steps unfinished and those in the dark.
function rollout({ n, seers, vision }, senders, start, see) {
  const prey = start[AGENTS], cells = start.slice(0, n), ways = [lanes(vision), lanes(0)];
  const lane = cells.map((_, i) => ways[i < seers ? 0 : 1]), known = new Array(n).fill(false), caught = new Array(n).fill(false);
  const cost = new Array(n).fill(0), dark = new Array(n).fill(0), finished = new Array(n).fill(false), sees = new Array(n);
  const next = cells.map((cell, i) => {
    const far = lane[i].map((at) => Math.abs(row(at) - row(cell)) + Math.abs(column(at) - column(cell)));
    return far.indexOf(Math.min(...far));
  });
  let steps = 0;
  const look = () => { for (let i = 0; i < n; i++) sees[i] = i < seers && apart(cells[i], prey) <= vision; };
  while (steps < LIMIT && !finished.every(Boolean)) {
    look();
    const knew = see ? [...known] : null;
    for (let i = 0; i < n; i++) known[i] ||= sees[i] || senders[i].some((j) => sees[j]);
    see?.({ cells: [...cells], sees: [...sees], knew, known: [...known], finished: [...finished] });
    steps++;
    for (let i = 0; i < n; i++) {
      if (!sees[i] && !finished[i]) dark[i]++;
      if (cells[i] === lane[i][next[i]]) next[i] = (next[i] + 1) % lane[i].length;
      const goal = known[i] ? prey : lane[i][next[i]], down = row(goal) - row(cells[i]), right = column(goal) - column(cells[i]);
      if (cells[i] === prey) caught[i] = true;
      else if (down) cells[i] += SIZE * Math.sign(down);
      else cells[i] += Math.sign(right);
      finished[i] = cells[i] === prey && (i < seers || caught[i]);
      if (!finished[i]) cost[i]++;
    }
  }
  look();
  see?.({ cells: [...cells], sees: [...sees], knew: [...known], known: [...known], finished: [...finished] });
  return { steps, solved: finished.every(Boolean), cost, dark };
}

// Each row's k largest, ties to the lower index, without the agent itself.
function largest(values, own, k) {
  const order = values.map((_, j) => j).filter((j) => j !== own).sort((a, b) => values[b] - values[a] || a - b);
  return order.slice(0, k).sort((a, b) => a - b);
}

// Over all boards: the worth of each agent's row, in steps saved for each step in the dark.
function worths(kind, senders, boards) {
  const all = (rows) => boards.map((board) => rollout(kind, rows, board)), open = all(senders);
  const sum = (runs, key, i) => total(runs.map((run) => run[key][i]));
  return senders.map((_, i) => {
    const without = all(senders.map((list, j) => (i === j ? [] : list)));
    return (sum(without, "cost", i) - sum(open, "cost", i)) / Math.max(1, sum(open, "dark", i));
  });
}

function means(kind, senders, k, free, listens, boards, bounds) {
  const runs = boards.map((board) => rollout(kind, senders.map((list, i) => (listens[i] ? list : [])), board));
  const steps = total(runs.map((run) => run.steps)), count = boards.length;
  const sent = free ? kind.n * k * steps : k * total(runs.map((run) => total(run.dark.filter((_, i) => listens[i]))));
  return { steps: [steps / count, ...bounds], solved: runs.filter((run) => run.solved).length / count, messages: sent / count };
}

// One board, step by step.
function played(world, senders, start, listens, free) {
  const frames = [], moments = [], run = rollout(world, senders.map((list, i) => (listens[i] ? list : [])), start, (m) => moments.push(m));
  let messages = 0, carried = 0, news = 0;
  moments.forEach(({ cells, sees, knew, known, finished }, t) => {
    const end = t === moments.length - 1;
    const open = cells.map((_, i) => +(!end && (free || (listens[i] && !sees[i] && !finished[i]))));
    const kind = (i, j) => (open[i] ? 1 + sees[j] + (sees[j] && !knew[i] && !sees[i]) : 0);
    const arrows = senders.map((list, i) => (end ? [] : list).map((j) => kind(i, j)).join("")), kinds = [...arrows.join("")];
    messages += kinds.filter((a) => a > 0).length;
    carried += kinds.filter((a) => a > 1).length;
    news += kinds.filter((a) => a > 2).length;
    frames.push({ cells, sees: sees.map(Number), open, arrows, state: finished.map((done, i) => (done ? 2 : +known[i])) });
  });
  const lines = (key) => range(world.n).map((i) => frames.map((frame) => frame[key][i]).join(""));
  return { steps: run.steps, solved: +run.solved, messages, carried, news, states: lines("state"), opened: lines("open"), frames };
}

function softmax(logits) {
  const top = Math.max(...logits), e = logits.map((z) => Math.exp(z - top)), all = total(e);
  return e.map((u) => u / all);
}

function kindOf(told, listens, free) {
  const { heard, open } = told;
  if (!heard.some(Boolean)) return "deaf";
  if (!listens.some(Boolean)) return "silent";
  if (!heard.every(Boolean)) return "wrong";
  if (free) return "open";
  return open.every(Boolean) ? "thrifty" : "dear";
}

const parse = (letters) => [...letters].map((letter) => letter.charCodeAt(0) - 97);
const name = (i, seers) => `${i} ${i < seers ? "sees" : "blind"}`;
const sizes = (kind) => ({ n: kind.seers + kind.blind, seers: kind.seers, vision: kind.vision });
const marked = (edge, n) => {
  const [i, j] = [Math.floor(edge / AGENTS), edge % AGENTS];
  return Math.max(i, j) < n ? [i, j] : [n - 1, 0];
};

// All that is shown. What hangs on the graph alone is kept in `memo`, as most hands leave it as it is.
function compute(s, g, memo = new Map()) {
  const kind = sizes(g.kinds[s.world]), { n, seers } = kind, k = Math.min(s.k, n - 1), free = s.penalty === 0;
  const edges = range(n).map((i) => s.logits.slice(AGENTS * i, AGENTS * i + n)), [i, j] = marked(s.edge, n);
  const senders = edges.map((line, r) => largest(line, r, k));
  const keep = (key, make) => {
    if (!memo.has(key)) memo.set(key, make());
    return memo.get(key);
  };
  const boards = keep("boards", () => g.boards.map(parse)), graph = senders.map((list) => range(n).map((c) => +list.includes(c)).join(""));
  const told = senders.map((list) => +list.some((c) => c < seers)), mark = s.world + graph.join();
  const worth = keep("worth" + mark, () => worths(kind, senders, boards)), listens = worth.map((w) => +pays(w, s.penalty));
  const bounds = keep("bounds" + s.world, () => [range(n).map(() => []), range(n).map((r) => range(n).filter((c) => c !== r))].map(
    (rows) => total(boards.map((board) => rollout(kind, rows, board).steps)) / boards.length));
  const mean = keep("mean" + mark + free + listens.join(), () => means(kind, senders, k, free, listens, boards, bounds));
  const here = played(kind, senders, [...s.cells, s.prey], listens, free), t = Math.min(s.step, here.steps);
  const own = edges[i].map((z, c) => (c === i ? -Infinity : z)), noisy = own.map((z, c) => z + g.noise[s.draw][c]);
  const first = softmax(own), two = [...first];
  first.forEach((p, gone) => {
    if (gone !== i) softmax(own.map((z, c) => (c === gone ? -Infinity : z))).forEach((q, c) => { two[c] += p * q; });
  });
  const soft = softmax(noisy.map((z) => z / s.temperature)), drawn = largest(noisy, i, k), order = own.slice().sort((a, b) => b - a);
  const threshold = 1 - 1 / s.symbols, low = s.penalty < threshold ? FLAGS : 0;
  return {
    ...here, graph, k, told, worth, listens, t, now: here.frames[t], mean, row: i, marked: j, logit: edges[i][j],
    gap: k < n - 1 ? order[k - 1] - order[k] : "none", first, two, soft, drawn: range(n).map((c) => +drawn.includes(c)),
    slope: (soft[j] * (1 - soft[j])) / s.temperature, threshold,
    rate: [low, free ? 1 : s.penalty <= threshold ? FLAGS : 0], reward: Math.max(1 - s.penalty * FLAGS, 1 - FLAGS * threshold),
    kind: kindOf({ heard: told.slice(seers), open: listens.slice(seers) }, listens, free),
  };
}

// The row's logits when entry j is let in or out: it changes places with the weakest that is kept, or the strongest that
// is not. Equal logits at the border are parted.
function exchanged(logits, i, j, k, n) {
  const line = logits.slice(AGENTS * i, AGENTS * i + n), order = largest(line, i, n).sort((a, b) => line[b] - line[a] || a - b);
  const values = order.map((c) => line[c]), from = order.indexOf(j), to = from < k ? k : k - 1, out = [...logits];
  if (to >= order.length) return out;
  [order[from], order[to]] = [order[to], order[from]];
  if (values[k - 1] === values[k]) {
    const moved = (u, by) => Math.round(10 * Math.max(-STRONGEST, Math.min(STRONGEST, u + by))) / 10, top = values[k] === STRONGEST;
    values.forEach((u, at) => { if (at < k !== top) values[at] = moved(u, top ? -0.1 : 0.1); });
  }
  order.forEach((c, at) => { out[AGENTS * i + c] = values[at]; });
  return out;
}

const centre = (cell) => [LEFT + CELL * column(cell) + CELL / 2, TOP + CELL * row(cell) + CELL / 2];
function spots(cells) {
  return cells.map((cell, i) => {
    const here = range(cells.length).filter((j) => cells[j] === cell), rank = here.indexOf(i), m = here.length;
    const wide = m <= 3 ? m : Math.ceil(m / 2), [x, y] = centre(cell);
    return [x + 19 * ((rank % wide) - (wide - 1) / 2), y + (m > 3 ? 22 * Math.floor(rank / wide) - 11 : 0)];
  });
}

const point = (x, y) => `${x.toFixed(2)} ${y.toFixed(2)}`;
function arrow([x, y], [a, b]) {
  const dx = a - x, dy = b - y, far = Math.sqrt(dx * dx + dy * dy), u = dx / far, w = dy / far, bend = Math.min(30, 0.2 * far);
  const leave = Math.min(12, 0.3 * far), land = Math.min(14, 0.35 * far);
  const ax = x + u * leave, ay = y + w * leave, bx = a - u * land, by = b - w * land;
  const cx = (ax + bx) / 2 - w * bend, cy = (ay + by) / 2 + u * bend, ex = bx - cx, ey = by - cy, size = Math.sqrt(ex * ex + ey * ey);
  const p = (6 * ex) / size, q = (6 * ey) / size;
  return `M${point(ax, ay)}Q${point(cx, cy)} ${point(bx, by)}L${point(bx - p - q, by - q + p)}M${point(bx, by)}L${point(bx - p + q, by - q - p)}`;
}

const seen = (there) => (there ? "visible" : "hidden");
const place = ([x, y]) => `translate(${x.toFixed(2)} ${y.toFixed(2)})`;
function status(v) {
  return `Step ${v.t} of ${v.steps}: ${v.solved ? `solved in ${v.steps}` : `not solved in ${LIMIT}`}`;
}

function written(v) {
  const [low, high] = v.rate, chance = (v.k === 1 ? v.first : v.two)[v.marked].toFixed(3) + (v.k > 2 ? " (first two)" : "");
  return {
    here: v.solved ? `${v.steps}` : `${LIMIT}, not solved`, sent: `${v.messages}; ${v.carried}; ${v.news}`,
    means: `${v.mean.steps[0].toFixed(2)}; ${(100 * v.mean.solved).toFixed(0)} %`,
    bounds: `${v.mean.steps[1].toFixed(2)}; ${v.mean.steps[2].toFixed(2)}`, cost: v.mean.messages.toFixed(1),
    gap: v.gap === "none" ? v.gap : v.gap.toFixed(1), kept: chance,
    slope: `${v.soft[v.marked].toFixed(3)}; ${v.slope.toFixed(3)}`,
    lookup: `${low.toFixed(2)}${low === high ? "" : ` to ${high.toFixed(2)}`}; ${v.reward.toFixed(3)}`,
  };
}

function render({ model, el }) {
  const keys = ["world", "k", "logits", "edge", "penalty", "step", "temperature", "draw", "symbols", "cells", "prey"];
  const g = Object.fromEntries(["boards", "noise", "kinds"].map((key) => [key, model.get(key)]));
  const fig = figure({ model, el }, { name: "board", keys, draw, say });
  const at = Object.fromEntries(["time", "value", "chance"].map((key) => [key, scale(fig.one(`[data-${key}]`))]));
  const kinds = ["view", "trail", "arrow", "handle", "lane", "run", "column", "row", "check", "pick", "holder", "worth"];
  const marks = Object.fromEntries([...kinds, "first", "second", "soft", "sender"].map((kind) => [kind, fig.all(`[data-${kind}]`)]));
  const holders = Object.fromEntries(marks.handle.map((node) => [node.dataset.handle, node]));
  const one = Object.fromEntries(["status", "now", "marked", "price", "title"].map((kind) => [kind, fig.one(`[data-${kind}]`)]));
  const world = () => sizes(g.kinds[model.get("world")]), memo = new Map();
  let board = 1;

  // A path of the stretches at which a line of digits holds `mark`.
  function stretch(line, mark, y) {
    let d = "", start = -1;
    for (let t = 0; t <= line.length; t++) {
      const on = line[t] === mark;
      if (on && start < 0) start = t;
      if (on || start < 0) continue;
      d += `M${at.time(start).toFixed(2)} ${y.toFixed(2)}H${at.time(t).toFixed(2)}`;
      start = -1;
    }
    return d;
  }

  function draw() {
    const s = Object.fromEntries(keys.map((key) => [key, model.get(key)])), { n, seers, vision } = world();
    if (memo.size > 300) memo.clear();
    const v = compute(s, g, memo), { now } = v, places = spots(now.cells);
    one.status.textContent = status(v);
    marks.view.forEach((node, cell) => {
      put(node, { "fill-opacity": now.cells.slice(0, seers).some((c) => apart(c, cell) <= vision) ? 0.14 : 0 });
    });
    put(holders[AGENTS], { transform: place(centre(s.prey)) });
    const paths = ["", "", "", ""];
    now.arrows.forEach((list, i) => {
      const senders = range(n).filter((j) => v.graph[i][j] === "1");
      [...list].forEach((kind, c) => { paths[kind] += arrow(places[senders[c]], places[i]); });
    });
    marks.arrow.forEach((node, kind) => put(node, { d: paths[kind] || "M0 0" }));
    for (const i of range(AGENTS)) {
      const there = i < n, state = there ? now.state[i] : 0, shift = 3 * i - 7, node = holders[i];
      const way = v.frames.slice(0, v.t + 1).map(({ cells }) => centre(cells[i] ?? 0).map((u) => u + shift).join(" "));
      put(marks.trail[i], { d: there ? `M${way.join("L")}L${point(...places[i])}` : "M0 0" });
      put(node, { transform: place(there ? places[i] : [0, 0]), visibility: seen(there) });
      node.querySelectorAll("[data-body]").forEach((body, blind) => {
        put(body, { fill: FILLS[state], visibility: seen(there && (blind === 1) === (i >= seers)) });
      });
      node.querySelector("text").style.fill = INK[state];
      for (const label of [marks.lane[i], marks.row[i]]) {
        label.textContent = name(i, seers);
        put(label, { visibility: seen(there) });
      }
      put(marks.column[i], { visibility: seen(there) });
      marks.check[i].textContent = there && v.told[i] ? "✓" : "✗";
      marks.check[i].style.fill = there && v.told[i] ? GREEN : RED;
      put(marks.check[i], { visibility: seen(i >= seers && there) });
    }
    [[v.states, "1", 29], [v.states, "2", 29], [v.opened, "1", 36.5]].forEach(([lines, mark, y], which) => {
      put(marks.run[which], { d: lines.map((line, i) => stretch(line, mark, y + LANE * i)).join("") || "M0 0" });
    });
    put(one.now, { x: at.time(v.t) });
    for (const node of marks.pick) {
      const [i, j] = [Math.floor(node.dataset.pick / AGENTS), node.dataset.pick % AGENTS], there = i < n && j < n;
      const [, box, ring] = node.querySelectorAll("rect"), logit = s.logits[node.dataset.pick], kept = there && v.graph[i][j] === "1";
      put(node, { visibility: seen(there) });
      put(box, { "fill-opacity": (0.6 * (logit + STRONGEST)) / (2 * STRONGEST) });
      put(ring, { visibility: seen(kept) });
      node.querySelector("text").textContent = logit.toFixed(1).replace("-", "−");
      const here = i === v.row && j === v.marked;
      put(node, {
        "aria-pressed": String(kept), tabindex: here ? "0" : "-1",
        "aria-label": `Agent ${i} hears agent ${j}: ${kept ? "yes" : "no"}, logit ${logit.toFixed(1)}`,
      });
    }
    put(one.marked, { x: SIDE + WIDE * v.marked + 1, y: HEAD + ROW * v.row + 1 });
    marks.worth.forEach((node, r) => {
      const value = r < n ? v.worth[r] : r === AGENTS + 1 ? v.threshold : 0, there = r < n || r >= AGENTS;
      put(node, { width: at.value(value) - at.value(0), fill: pays(value, s.penalty) ? BLUE : GREY, visibility: seen(there) });
      if (r < AGENTS) marks.holder[r].textContent = name(r, seers);
      put(marks.holder[r], { visibility: seen(there) });
    });
    put(one.price, { x1: at.value(s.penalty), x2: at.value(s.penalty) });
    one.title.textContent = `Draws of row ${v.row}: who is kept`;
    for (const j of range(AGENTS)) {
      const there = j < n && j !== v.row, visibility = seen(there), [first, two, soft] = [v.first, v.two, v.soft].map((list) => (there ? list[j] : 0));
      bar(marks.first[j], at.chance, first);
      bar(marks.second[j], at.chance, two, first);
      put(marks.first[j], { visibility });
      put(marks.second[j], { visibility, "fill-opacity": v.k > 1 ? "0.45" : "0.12" });
      put(marks.soft[j], { cy: at.chance(soft), fill: there && v.drawn[j] ? ORANGE : PAGE, visibility });
      put(marks.sender[j], { visibility });
    }
    fig.callout(v.kind, model.get("words"));
    for (const [slot, number] of Object.entries(written(v))) fig.write(slot, number);
    const { frames, ...values } = v;
    return values;
  }

  function say(v) {
    const ends = v.solved ? `Solved in ${v.steps} steps` : `Not solved in ${LIMIT} steps`;
    return `${model.get("words")[v.kind][0]}. ${ends}, ${v.messages} messages, ${v.news} of them news. ` +
      `Over 100 boards ${v.mean.steps[0].toFixed(2)} steps, ${(100 * v.mean.solved).toFixed(0)} percent solved.`;
  }

  const part = (which) => ({ ...fig, controls: fig.one(`[data-for="${which}"]`) });
  const [first, second, third, fourth] = ["board", "graph", "price", "draw"].map(part);
  slider(first, { key: "step", label: "Step", min: 0, max: LIMIT, step: 1 });
  const [play] = buttons(first, "The run", [
    ["▶ run"],
    ["another board", () => {
      board = (board + 1) % g.boards.length;
      const cells = parse(g.boards[board]);
      fig.set({ cells: cells.slice(0, AGENTS), prey: cells[AGENTS], step: 0 });
    }],
  ]);
  player(fig, play, { key: "step", end: () => JSON.parse(el.dataset.values).steps, ms: 450, running: "❚❚ stop" });
  const index = () => {
    const [i, j] = marked(model.get("edge"), world().n);
    return AGENTS * i + j;
  };
  slider(second, {
    key: "logits", label: "Marked logit", min: -STRONGEST, max: STRONGEST, step: 0.1,
    decode: (u) => model.get("logits").map((old, e) => (e === index() ? u : old)), encode: (list) => list[index()],
    show: (list) => list[index()].toFixed(1).replace("-", "−"),
  });
  slider(second, { key: "k", label: "Senders k", min: 1, max: AGENTS - 1, step: 1 });
  choice(second, { key: "world", label: "World", options: Object.entries(model.get("names")) });
  presets(second, { label: "Examples", options: Object.entries(model.get("examples")) });
  slider(third, { key: "penalty", label: "Gate price λ", min: 0, max: DEAREST, step: 0.05, show: (u) => u.toFixed(2) });
  slider(third, { key: "symbols", label: "Symbols K", min: 2, max: 8, step: 1 });
  const power = { decode: (u) => +(10 ** u).toPrecision(3), encode: Math.log10 };
  slider(fourth, { key: "temperature", label: "Temperature T", min: -1, max: 1, step: 0.02, show: (u) => u.toPrecision(2), ...power });
  buttons(fourth, "Noise", [["another draw", () => fig.set({ draw: (model.get("draw") + 1) % DRAWS })]]);

  // The matrix: a click, Enter or space lets an edge in or out; arrow keys walk, + and - change the logit.
  put(marks.pick[0].ownerSVGElement, { role: "group" });
  const enter = (node) => {
    const edge = +node.dataset.pick, { n } = world();
    fig.set({ edge, logits: exchanged(model.get("logits"), Math.floor(edge / AGENTS), edge % AGENTS, Math.min(model.get("k"), n - 1), n) });
  };
  for (const node of marks.pick) {
    put(node, { role: "button" });
    node.addEventListener("click", () => enter(node));
    node.addEventListener("focus", () => { if (index() !== +node.dataset.pick) fig.set({ edge: +node.dataset.pick }); });
    node.addEventListener("keydown", (event) => {
      const edge = +node.dataset.pick, { n } = world(), by = { "+": 0.1, "-": -0.1 }[event.key];
      const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
      if (event.key === "Enter" || event.key === " ") enter(node);
      else if (by) {
        const raise = (u) => Math.round(10 * Math.max(-STRONGEST, Math.min(STRONGEST, u + by))) / 10;
        fig.set({ edge, logits: model.get("logits").map((u, e) => (e === edge ? raise(u) : u)) });
      } else if (down || right) {
        let [i, j] = [Math.floor(edge / AGENTS), edge % AGENTS];
        do [i, j] = [(i + down + n) % n, (j + right + n) % n]; while (i === j);
        fig.one(`[data-pick="${AGENTS * i + j}"]`).focus();
      } else return;
      event.preventDefault();
    });
  }

  // Agents and prey: dragged, or moved by arrow keys, from cell to cell; on one that is taken they change places.
  const svg = marks.view[0].ownerSVGElement;
  put(svg, { role: "group" });
  const starts = () => [...model.get("cells"), model.get("prey")];
  const move = (which, cell) => {
    const all = starts(), other = all.indexOf(cell);
    if (all[which] === cell) return;
    if (other >= 0) all[other] = all[which];
    all[which] = cell;
    fig.set({ cells: all.slice(0, AGENTS), prey: all[AGENTS], step: 0 });
  };
  for (const node of marks.handle) {
    const which = +node.dataset.handle, what = which < AGENTS ? `Start of agent ${which}` : "Place of the prey";
    put(node, { role: "slider", tabindex: "0", "aria-label": what, "aria-valuemin": "0", "aria-valuemax": String(SIZE * SIZE - 1) });
    node.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      node.setPointerCapture(event.pointerId);
      node.focus({ preventScroll: true });
      if (model.get("step")) fig.set({ step: 0 });
    });
    still(node);
    node.addEventListener("pointermove", (event) => {
      if (!node.hasPointerCapture(event.pointerId)) return;
      const box = svg.getBoundingClientRect(), ratio = svg.viewBox.baseVal.width / box.width;
      const inside = (u) => Math.max(0, Math.min(SIZE - 1, Math.floor(u / CELL)));
      move(which, SIZE * inside((event.clientY - box.top) * ratio - TOP) + inside((event.clientX - box.left) * ratio - LEFT));
    });
    node.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!by) return;
      event.preventDefault();
      const cell = starts()[which], hold = (u) => Math.max(0, Math.min(SIZE - 1, u));
      move(which, SIZE * hold(row(cell) + by[0]) + hold(column(cell) + by[1]));
    });
    fig.followers.push(() => {
      const cell = starts()[which];
      put(node, { "aria-valuenow": String(cell), "aria-valuetext": `row ${row(cell) + 1}, column ${column(cell) + 1}` });
    });
  }
  fig.update();
  return fig.stop;
}

export default { render };
