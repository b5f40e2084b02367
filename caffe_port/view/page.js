"use strict";
// The page of a net. Its data is the JSON in #net; every text from it goes through textContent.
const data = JSON.parse(document.getElementById("net").textContent);
const layers = data.layers;
const $ = id => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
function svg(tag, attributes = {}, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
const count = n => (n == null ? "?" : n.toLocaleString("en"));
const short = x =>
  x == null
    ? "–"
    : x === 0
      ? "0"
      : Math.abs(x) >= 1e-3 && Math.abs(x) < 1e5
        ? String(+x.toPrecision(4))
        : x.toExponential(2);
const power = x => (x == null ? "∞" : x === 0 ? "0" : x.toExponential(1));
const shape = s => s.join(" × ") || "scalar";
const clip = (text, n) => (text.length > n ? text.slice(0, n - 1) + "…" : text);

// -- what a layer is

const FAMILIES = [
  ["loss", /Loss|Accuracy|Evaluat/],
  ["data", /Data|^Input$|^Parameter$|Python/],
  ["norm", /Norm|^BN$|^LRN$|^MVN$|^Scale$|^Bias/],
  ["weights", /[Cc]onv|InnerProduct|LSTM|RNN|Embed/],
  ["window", /Pool|Upsampl|Interp|Resize|Crop|Im2col|SPP/],
  ["neuron", /ReLU|LU$|Sigmoid|TanH|Power|Exp|Log|AbsVal|BNLL|Dropout|Threshold|Softmax|Clip|Swish|Eltwise/],
];
const family = type => (FAMILIES.find(([, pattern]) => pattern.test(type)) || ["shape"])[0];

// How a layer compares: over its bound, near ties (some values outside, as many as may be), ok, or null.
function verdict(layer) {
  if (!layer.rows) return null;
  const row = layer.rows[layer.worst];
  const state = row.verdict === "ok" ? "ok" : row.verdict === "near ties" ? "ties" : "over";
  return { state, row, mark: { ok: "✓", ties: "≈", over: "✕" }[state], text: power(row.error) };
}
layers.forEach((layer, i) => {
  layer.index = i;
  layer.judged = verdict(layer);
  layer.readers = [];
  layer.words = [layer.name, layer.type, ...layer.tops.map(t => t.blob)].join("\n").toLowerCase();
});
layers.forEach(layer =>
  layer.bottoms.forEach(b => {
    if (b.from != null) layers[b.from].readers.push(layer.index);
  }),
);
const bad = layers.filter(layer => layer.judged?.state === "over").map(layer => layer.index);

function fill(judged) {
  // the error as lightness; over and near ties have a colour, a mark and a border of their own
  if (judged.state === "over") return "var(--over-box)";
  if (judged.state === "ties") return "var(--ties-box)";
  const error = judged.row.error;
  return error < 1e-7 ? "var(--ok1)" : error < 1e-6 ? "var(--ok2)" : "var(--ok3)";
}

// -- the graph: only what is in view is in the document

const view = { x: 0, y: 0, scale: 1 };
let place,
  edges,
  bounds,
  chosen = -1,
  matching = [],
  drawn = new Map(),
  drawnEdges = new Map(),
  waiting = false;

function box(layer) {
  const { x, y } = place[layer.index],
    judged = layer.judged;
  const g = svg("g", {
    class: `node ${judged ? `judged ${judged.state}` : ""}`,
    transform: `translate(${x - BOX.width / 2} ${y - BOX.height / 2})`,
    style: `--family: var(--${family(layer.type)})${judged ? `; --fill: ${fill(judged)}` : ""}`,
    "data-index": layer.index,
  });
  if (layer.index === data.first) g.classList.add("first");
  g.append(
    svg("rect", { class: "ring", x: -5, y: -5, width: BOX.width + 10, height: BOX.height + 10, rx: 6 }),
    svg("rect", { class: "box", width: BOX.width, height: BOX.height, rx: 3 }),
    svg("rect", { class: "stripe", x: 1, y: 1, width: 4, height: BOX.height - 2 }),
    svg("text", { class: "name", x: 12, y: 15 }, clip(layer.name || layer.type, judged ? 21 : 26)),
    svg(
      "text",
      { class: "sub", x: 12, y: 30 },
      clip(`${layer.type}  ${layer.tops.length ? layer.tops[0].shape.join("×") : ""}`, 30),
    ),
  );
  if (judged)
    g.append(
      svg("text", { class: "flag", x: BOX.width - 6, y: 15, "text-anchor": "end" }, `${judged.mark} ${judged.text}`),
    );
  g.append(svg("title", {}, `${layer.name} (${layer.type})`));
  return g;
}

function draw() {
  waiting = false;
  const { width, height } = $("graph").getBoundingClientRect();
  $("world").setAttribute("transform", `translate(${view.x} ${view.y}) scale(${view.scale})`);
  $("canvas").classList.toggle("far", view.scale < 0.3);
  const left = -view.x / view.scale - BOX.width,
    right = (width - view.x) / view.scale + BOX.width;
  const top = -view.y / view.scale - 60,
    low = (height - view.y) / view.scale + 60;
  for (const layer of layers) {
    const { x, y } = place[layer.index],
      seen = x > left && x < right && y > top && y < low;
    sync(drawn, layer.index, seen, $("nodes"), () => box(layer));
  }
  edges.forEach((edge, i) => {
    const [x0, y0, x1, y1] = edge.box;
    sync(drawnEdges, i, x1 > left && x0 < right && y1 > top && y0 < low, $("edges"), () =>
      svg("path", { class: `edge${edge.long ? " long" : ""}`, d: edge.path }),
    );
  });
  const found = new Set(matching);
  $("canvas").classList.toggle("searching", found.size > 0);
  for (const [i, element] of drawn) {
    element.classList.toggle("match", found.has(i));
    element.classList.toggle("chosen", i === chosen);
  }
  for (const [i, element] of drawnEdges)
    element.classList.toggle("lit", edges[i].from === chosen || edges[i].to === chosen);
}
function sync(elements, key, seen, parent, build) {
  const there = elements.get(key);
  if (seen && !there) elements.set(key, parent.appendChild(build()));
  else if (!seen && there) {
    there.remove();
    elements.delete(key);
  }
}
function redraw() {
  if (!waiting) {
    waiting = true;
    requestAnimationFrame(draw);
  }
}
function zoom(factor, x, y) {
  const { width, height } = $("graph").getBoundingClientRect();
  const scale = Math.min(3, Math.max(Math.min(0.05, fitting()), view.scale * factor));
  [x, y] = [x ?? width / 2, y ?? height / 2];
  view.x = x - ((x - view.x) * scale) / view.scale;
  view.y = y - ((y - view.y) * scale) / view.scale;
  view.scale = scale;
  redraw();
}
function fitting() {
  const { width, height } = $("graph").getBoundingClientRect();
  return Math.min(1, (width - 40) / bounds.width, (height - 40) / bounds.height);
}
function fit() {
  const { width, height } = $("graph").getBoundingClientRect();
  view.scale = fitting();
  view.x = width / 2 - (bounds.left + bounds.width / 2) * view.scale;
  view.y = height / 2 - (bounds.top + bounds.height / 2) * view.scale;
  redraw();
}
function centre(i, scale = Math.max(view.scale, 0.7)) {
  const { width, height } = $("graph").getBoundingClientRect();
  view.scale = scale;
  view.x = width / 2 - place[i].x * scale;
  view.y = height / 2 - place[i].y * scale;
  redraw();
}
function visible(i) {
  const { width, height } = $("graph").getBoundingClientRect();
  const x = place[i].x * view.scale + view.x,
    y = place[i].y * view.scale + view.y;
  return x > 60 && x < width - 60 && y > 30 && y < height - 30 && view.scale > 0.3;
}

// -- the layer chosen

function choose(i, move = true) {
  if (i == null || i < 0 || i >= layers.length) return;
  const items = $("list").children;
  items[chosen]?.firstChild.removeAttribute("aria-current");
  chosen = i;
  items[i].firstChild.setAttribute("aria-current", "true");
  items[i].scrollIntoView({ block: "nearest" });
  if (move && !visible(i)) centre(i);
  show(layers[i]);
  redraw();
}
// -- search and keys

function search() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  matching = words.length
    ? layers.filter(layer => words.every(word => layer.words.includes(word))).map(l => l.index)
    : [];
  const found = new Set(matching);
  [...$("list").children].forEach((item, i) => {
    item.hidden = words.length > 0 && !found.has(i);
  });
  $("matches").textContent = words.length ? `${matching.length} of ${layers.length}` : "";
  redraw();
}
function step(among, by) {
  // the next of these layers in running order, around
  if (!among.length) return;
  const next =
    by > 0 ? (among.find(i => i > chosen) ?? among[0]) : (among.findLast(i => i < chosen) ?? among[among.length - 1]);
  choose(next);
}
const KEYS = {
  "/": () => $("search").focus(),
  b: () => step(bad, 1),
  B: () => step(bad, -1),
  f: fit,
  0: () => zoom(1 / view.scale),
  "+": () => zoom(1.25),
  "=": () => zoom(1.25),
  "-": () => zoom(0.8),
  j: () => step(matching.length ? matching : layers.map(l => l.index), 1),
  k: () => step(matching.length ? matching : layers.map(l => l.index), -1),
  ArrowDown: () => choose(chosen < 0 ? 0 : layers[chosen].readers[0]),
  ArrowUp: () => choose(chosen < 0 ? 0 : layers[chosen].bottoms.find(b => b.from != null)?.from),
  Escape: () => {
    $("search").value = "";
    search();
  },
};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target === $("search");
  if (typing && event.key === "Enter") {
    event.preventDefault();
    step(matching, event.shiftKey ? -1 : 1);
    return;
  }
  if (typing && event.key !== "Escape") return;
  if (event.target.closest?.("aside") && event.key.startsWith("Arrow")) return;
  const act = KEYS[event.key];
  if (act) {
    event.preventDefault();
    act();
    if (typing) $("graph").focus();
  }
});
$("search").addEventListener("input", search);
$("first").addEventListener("click", () => choose(data.first));
$("graph").addEventListener(
  "wheel",
  event => {
    event.preventDefault();
    const r = $("graph").getBoundingClientRect();
    if (event.shiftKey) {
      view.x -= event.deltaX + event.deltaY;
      redraw();
    } else
      zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX - r.left, event.clientY - r.top);
  },
  { passive: false },
);

const fingers = new Map();
let travelled = 0;
$("graph").addEventListener("pointerdown", event => {
  fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  travelled = 0;
});
$("graph").addEventListener("pointermove", event => {
  const was = fingers.get(event.pointerId);
  if (!was) return;
  const now = { x: event.clientX, y: event.clientY };
  const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
  if (other) {
    const apart = p => Math.hypot(p.x - other.x, p.y - other.y);
    const r = $("graph").getBoundingClientRect();
    if (apart(was) > 0) zoom(apart(now) / apart(was), (now.x + other.x) / 2 - r.left, (now.y + other.y) / 2 - r.top);
  } else {
    view.x += now.x - was.x;
    view.y += now.y - was.y;
  }
  travelled += Math.abs(now.x - was.x) + Math.abs(now.y - was.y);
  if (travelled > 4 && !$("graph").hasPointerCapture(event.pointerId)) $("graph").setPointerCapture(event.pointerId);
  $("graph").classList.toggle("moving", travelled > 4);
  fingers.set(event.pointerId, now);
  redraw();
});
for (const end of ["pointerup", "pointercancel"])
  $("graph").addEventListener(end, event => {
    fingers.delete(event.pointerId);
    $("graph").classList.remove("moving");
  });
$("nodes").addEventListener("click", event => {
  const node = event.target.closest(".node");
  if (node && travelled <= 4) choose(Number(node.dataset.index), false);
});

// -- start

function head() {
  $("title").textContent = data.title;
  const total = layers.reduce(
    (sum, layer) => (sum == null || layer.parameters == null ? null : sum + layer.parameters),
    0,
  );
  const told = [data.file, data.dialect, data.phase, `${count(layers.length)} layers`, `${count(total)} parameters`];
  if (data.run) told.push(`ran on ${data.run.source}`);
  $("about").textContent = told.join(" · ");
  $("verdict").textContent = data.verdict || "";
  $("notes").textContent = data.notes.join("; ");
  $("verdict").classList.toggle("over", bad.length > 0);
  $("told").hidden = !data.verdict && !data.notes.length;
  $("first").hidden = data.first == null;
  $("canvas").classList.toggle("compared", data.verdict != null);
  const entries =
    data.verdict == null
      ? [...FAMILIES.map(([name]) => name), "shape"].map(name => [
          `var(--${name})`,
          {
            weights: "weights",
            window: "windows",
            neuron: "by value",
            norm: "normalization",
            loss: "loss",
            data: "data",
            shape: "other",
          }[name],
        ])
      : [
          ["var(--ok1)", "✓ below 1e-7"],
          ["var(--ok2)", "below 1e-6"],
          ["var(--ok3)", "within its bound"],
          ["var(--ties-box)", "≈ near ties"],
          ["var(--over-box)", "✕ over its bound", "over"],
          ["var(--box)", "dashed: not in the reference"],
        ];
  for (const [colour, text, name] of entries)
    $("legend").append(make("span", { class: name }, make("i", { style: `--swatch: ${colour}` }), text));
}
function list() {
  const items = layers.map(layer => {
    const judged = layer.judged;
    return make(
      "li",
      {},
      make(
        "button",
        { class: judged?.state, style: `--family: var(--${family(layer.type)})`, onclick: () => choose(layer.index) },
        make("span", { class: "mark", text: judged?.mark || "" }),
        make("span", { text: layer.name || "(no name)" }),
        make("span", { class: "faint", text: layer.type }),
        make("span", { class: "number", text: judged?.text || "" }),
      ),
    );
  });
  $("list").append(...items);
}
function start() {
  const begin = performance.now();
  ({ place, edges } = arrange(layers));
  for (const edge of edges) edge.path = line(edge, place);
  const xs = place.map(p => p.x),
    ys = place.map(p => p.y);
  const most = (values, f) => values.reduce((a, b) => f(a, b), values[0] ?? 0);
  const left = most(xs, Math.min) - BOX.width / 2 - 10,
    top = most(ys, Math.min) - BOX.height;
  bounds = {
    left,
    top,
    width: most(xs, Math.max) + BOX.width / 2 + 10 - left,
    height: most(ys, Math.max) + BOX.height - top,
  };
  document.body.dataset.layoutMs = Math.round(performance.now() - begin);
  fit();
  if (layers.length) {
    const { width } = $("graph").getBoundingClientRect();
    if (data.first != null) centre(data.first, Math.max(view.scale, 0.8));
    else if (view.scale < 0.7) {
      view.scale = Math.min(0.9, Math.max(0.5, (width - 40) / bounds.width));
      view.x = width / 2 - place[0].x * view.scale;
      view.y = 20 - bounds.top * view.scale;
    }
    choose(data.first ?? 0, false);
  }
  document.body.dataset.ready = "yes";
}
head();
list();
start();
new ResizeObserver(redraw).observe($("graph"));
