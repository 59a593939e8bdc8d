// What every interactive figure shares. Python has drawn the picture already; the code here only moves its marks.

// The number-to-pixel map that Python wrote on an element: data-low and data-high lie at pixels data-from and data-to.
function scale(node) {
  const { low, high, from, to } = node.dataset;
  const slope = (to - from) / (high - low);
  const at = (value) => +from + (Math.min(+high, Math.max(+low, value)) - low) * slope;
  at.inverse = (pixel) => +low + (pixel - from) / slope;
  at.low = +low;
  at.high = +high;
  return at;
}

// erf as a series of terms of one sign: nothing cancels, and beyond 6 it is 1 in double precision.
function erf(x) {
  const far = Math.abs(x), square = 2 * x * x;
  if (far > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let odd = 3; Math.abs(term) > 1e-17 * Math.abs(sum); odd += 2) sum += (term *= square / odd);
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

function put(node, attributes) {
  for (const name in attributes) {
    const value = attributes[name];
    node.setAttribute(name, typeof value === "number" ? value.toFixed(2) : value);
  }
}

// A bar from the base to the value, whichever is higher.
function bar(node, at, value, base = 0) {
  const a = at(value), b = at(base);
  put(node, { y: Math.min(a, b), height: Math.abs(a - b) });
}

function element(parent, tag, attributes = {}, text = "") {
  const node = document.createElement(tag);
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  node.textContent = text;
  return parent.appendChild(node);
}

// Ties the model to the picture. `draw` returns the numbers shown, `say` a sentence for a screen reader.
function figure({ model, el }, { name, keys, draw, say }) {
  el.classList.add("gx");
  el.dataset.explorable = name;
  // Else JupyterLab takes the arrow keys for its own, and no slider moves. It looks at the element in focus first.
  el.addEventListener("focusin", ({ target }) => { target.dataset.lmSuppressShortcuts = ""; });
  if (!el.querySelector(".gx-grid")) el.innerHTML = model.get("markup");
  const controls = el.querySelector(".gx-controls");
  const live = element(el, "p", { class: "gx-aria", "aria-live": "polite" });
  let quiet = false, timer = 0, easing = 0;
  const self = {
    el, model, controls, followers: [],
    all: (query) => [...el.querySelectorAll(query)],
    one: (query) => el.querySelector(query),
    write(slot, text) { el.querySelector(`[data-slot="${slot}"]`).textContent = text; },
    // Title, equation and words for the case at hand; written anew only where it is another.
    callout(kind, words) {
      if (el.dataset.kind === kind) return;
      el.dataset.kind = kind;
      const [title, equation, text] = words[kind];
      self.write("title", title);
      self.one('[data-slot="equation"]').innerHTML = equation;
      self.write("words", text);
    },
    update() {
      const values = draw(self);
      el.dataset.values = JSON.stringify(values);
      for (const follow of self.followers) follow();
      clearTimeout(timer);
      return values;
    },
    set(patch) {
      quiet = true;
      for (const key in patch) model.set(key, patch[key]);
      quiet = false;
      model.save_changes();
      const values = self.update();
      timer = setTimeout(() => { live.textContent = say(values); }, 800); // one sentence once the hand rests
    },
    ease(patch) {
      el.classList.add("gx-ease");
      clearTimeout(easing);
      easing = setTimeout(() => el.classList.remove("gx-ease"), 400);
      self.set(patch);
    },
  };
  const changed = () => { if (!quiet) self.update(); };
  for (const key of keys) model.on("change:" + key, changed);
  self.stop = () => {
    clearTimeout(timer);
    clearTimeout(easing);
    for (const key of keys) model.off("change:" + key, changed);
  };
  return self;
}

// A slider whose position maps to the value by `decode` and back by `encode`.
function slider(fig, { key, label, min, max, step, show = String, decode = Number, encode = Number }) {
  const row = element(fig.controls, "label", { class: "gx-row" });
  element(row, "span", {}, label);
  const input = element(row, "input", { type: "range", min, max, step, "data-key": key, "aria-label": label });
  const value = element(row, "span", { class: "gx-value", "aria-hidden": "true" });
  input.addEventListener("input", () => fig.set({ [key]: decode(+input.value) }));
  fig.followers.push(() => {
    const now = fig.model.get(key);
    if (decode(+input.value) !== now) input.value = encode(now);
    input.setAttribute("aria-valuetext", value.textContent = show(now));
  });
  return input;
}

function choice(fig, { key, label, options }) {
  const group = element(fig.controls, "fieldset", { class: "gx-choice", "aria-label": label });
  const name = "gx-" + Math.random().toString(36).slice(2); // radio groups are named per page, figures are many
  for (const [value, text] of options) {
    const option = element(group, "label");
    const input = element(option, "input", { type: "radio", name, value, "data-key": key });
    option.append(text);
    input.addEventListener("change", () => fig.set({ [key]: value }));
    fig.followers.push(() => { input.checked = fig.model.get(key) === value; });
  }
}

// A row of buttons from pairs of words and what a click does.
function buttons(fig, label, pairs) {
  const group = element(fig.controls, "div", { class: "gx-presets", role: "group", "aria-label": label });
  return pairs.map(([text, act]) => {
    const node = element(group, "button", { type: "button" }, text);
    if (act) node.addEventListener("click", act);
    return node;
  });
}

function presets(fig, { label, options }) {
  buttons(fig, label, options.map(([text, patch]) => [text, () => fig.ease(patch)]));
}

// The button that lets `key` run on to `end()`, one more every `ms` milliseconds, until it is pressed again. Returns what halts it.
function player(fig, button, { key, end, ms, running }) {
  const resting = button.textContent, stop = fig.stop;
  let frame = 0;
  const halt = () => {
    cancelAnimationFrame(frame);
    frame = 0;
    button.textContent = resting;
  };
  button.addEventListener("click", () => {
    if (frame) return halt();
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return fig.set({ [key]: end() }); // no motion was asked for: the end at once
    let before = null, now = fig.model.get(key) < end() ? fig.model.get(key) : 0;
    const tick = (time) => {
      now = before === null ? now : Math.min(end(), now + (time - before) / ms);
      before = time;
      if (Math.floor(now) !== fig.model.get(key)) fig.set({ [key]: Math.floor(now) });
      if (now < end()) frame = requestAnimationFrame(tick);
      else halt();
    };
    frame = requestAnimationFrame(tick);
    button.textContent = running;
  });
  fig.stop = () => {
    halt();
    stop();
  };
  return halt;
}

// Keeps the page from scrolling under a finger that drags a part of a drawing: there browsers do not heed touch-action.
function still(node) {
  node.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
}

// Dots that are dragged up and down by pointer, or moved by arrow keys: one slider per entry of the list `key`.
function handles(fig, { strip, key, step, picked, label, show }) {
  const at = scale(strip), svg = strip.ownerSVGElement, nodes = [...strip.querySelectorAll("[data-handle]")];
  put(svg, { role: "group" }); // a static picture is an image; one with handles has parts
  const assign = (i, value) => {
    const snapped = +(Math.round(Math.min(at.high, Math.max(at.low, value)) / step) * step).toFixed(6);
    fig.set({ [key]: fig.model.get(key).map((old, j) => (i === j ? snapped : old)), [picked]: i });
  };
  const value = (event) => {
    const box = svg.getBoundingClientRect();
    return at.inverse((event.clientY - box.top) * (svg.viewBox.baseVal.height / box.height));
  };
  nodes.forEach((node, i) => {
    put(node, {
      role: "slider", "aria-orientation": "vertical", "aria-label": label(i),
      "aria-valuemin": String(at.low), "aria-valuemax": String(at.high),
    });
    node.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      node.setPointerCapture(event.pointerId);
      assign(i, value(event));
      node.focus({ preventScroll: true });
    });
    still(node);
    node.addEventListener("pointermove", (event) => {
      if (node.hasPointerCapture(event.pointerId)) assign(i, value(event));
    });
    node.addEventListener("focus", () => { if (fig.model.get(picked) !== i) fig.set({ [picked]: i }); });
    node.addEventListener("keydown", (event) => {
      const now = fig.model.get(key)[i], far = (at.high - at.low) / 8;
      const moves = { ArrowUp: now + step, ArrowDown: now - step, PageUp: now + far, PageDown: now - far, Home: at.low, End: at.high };
      const side = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key in moves) assign(i, moves[event.key]);
      else if (side) nodes[(i + side + nodes.length) % nodes.length].focus();
      else return;
      event.preventDefault();
    });
  });
  // One tab stop for the whole row: left and right walk along it.
  fig.followers.push(() => nodes.forEach((node, i) => {
    const now = fig.model.get(key)[i];
    put(node, {
      tabindex: i === fig.model.get(picked) ? "0" : "-1", "aria-valuenow": String(now), "aria-valuetext": show(now, i),
    });
  }));
}
