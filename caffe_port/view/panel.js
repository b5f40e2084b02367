// What the panel shows of the layer chosen. Part of the page's script, before page.js, whose helpers it calls.
const link = (i, text) => make("button", { class: "link", text, onclick: () => choose(i) });
const part = title => make("h3", { text: title });

function show(layer) {
  const parts = [
    make("h2", { text: layer.name || "(no name)" }),
    make("p", { class: "faint", text: `${layer.type}, layer ${layer.index} · ${layer.where}` }),
  ];
  if (layer.parameters || layer.macs)
    parts.push(make("p", { text: `${count(layer.parameters)} parameters, ${count(layer.macs)} multiply-adds` }));
  if (layer.rows) parts.push(part("beside the reference"), comparison(layer));
  const moving = layer.field && data.run.picture ? picture() : null;
  if (moving) parts.push(part(`the input, ${data.run.source}`), moving.element);
  parts.push(...blobs("tops", layer.tops, layer, moving));
  if (layer.bottoms.length) {
    parts.push(part("bottoms"));
    for (const b of layer.bottoms) {
      const row = make("p", {}, `${b.blob}  ${shape(b.shape)} `);
      if (b.from != null)
        row.append(
          make("span", { class: "faint", text: "from " }),
          link(b.from, layers[b.from].name || layers[b.from].type),
        );
      parts.push(row);
    }
  }
  if (layer.readers.length) {
    const row = make("p", {});
    new Set(layer.readers).forEach(i => row.append(link(i, layers[i].name || layers[i].type), " "));
    parts.push(part("read by"), row);
  }
  if (layer.params.length) parts.push(part("parameter blobs"), ...layer.params.flatMap(p => blob(p.name, p)));
  if (layer.text) parts.push(part("definition"), make("pre", { text: layer.text, tabindex: 0 }));
  $("panel").replaceChildren(...parts);
  $("panel").scrollTop = 0;
}
function comparison(layer) {
  const cell = text => make("td", { text });
  const rows = layer.rows.map(r =>
    make(
      "tr",
      { class: r.verdict === "ok" || r.verdict === "near ties" ? "" : "over" },
      ...[
        r.array,
        power(r.error),
        power(r.rms),
        power(r.bound),
        `${count(r.outside)} / ${count(r.values)}`,
        r.verdict,
      ].map(cell),
    ),
  );
  const head = ["array", "error", "rms", "bound", "outside", ""].map(text => make("th", { text }));
  return make("table", {}, make("tr", {}, ...head), ...rows);
}
function blobs(title, tops, layer, moving) {
  return tops.length ? [part(title), ...tops.flatMap(top => blob(top.blob, top, layer, moving))] : [];
}
function blob(name, b, layer, moving) {
  const parts = [make("h4", {}, `${name} `, make("span", { class: "faint", text: shape(b.shape) }))];
  if (b.url) parts.push(maps(b, layer, moving));
  if (b.largest)
    parts.push(make("p", { text: `largest: ${b.largest.map(([i, v]) => `${i}: ${short(v)}`).join(", ")}` }));
  if (b.stats) parts.push(...statistics(b.stats));
  return parts;
}
function statistics(s) {
  const parts = [
    make("p", {
      class: "number",
      text: `mean ${short(s.mean)}, std ${short(s.std)}, ${
        s.count ? ((100 * s.zeros) / s.count).toFixed(s.zeros && s.zeros < s.count ? 1 : 0) : 0
      } % zeros of ${count(s.count)}`,
    }),
  ];
  if (s.not_finite) parts.push(make("p", { class: "warn", text: `${count(s.not_finite)} values are not finite` }));
  if (s.counts.length > 1) {
    const n = s.counts.length,
      most = Math.max(...s.counts);
    const chart = svg("svg", {
      class: "bars",
      viewBox: `0 0 ${n} 100`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": "histogram",
    });
    s.counts.forEach((c, i) => {
      const height = 100 * Math.sqrt(c / most);
      const bar = svg("rect", { x: i + 0.05, y: 100 - height, width: 0.9, height });
      const step = (s.max - s.min) / n;
      bar.append(svg("title", {}, `${count(c)} from ${short(s.min + i * step)} to ${short(s.min + (i + 1) * step)}`));
      chart.append(bar);
    });
    if (s.min < 0 && s.max > 0) {
      const at = (-s.min / (s.max - s.min)) * n;
      chart.append(svg("line", { x1: at, x2: at, y1: 0, y2: 100, "vector-effect": "non-scaling-stroke" }));
    }
    parts.push(
      chart,
      make(
        "p",
        { class: "ends" },
        make("span", { text: short(s.min) }),
        make("span", { text: "bars: square root of the count" }),
        make("span", { text: short(s.max) }),
      ),
    );
  } else if (s.counts.length) parts.push(make("p", { class: "faint", text: `all are ${short(s.min)}` }));
  return parts;
}
function picture() {
  const mark = make("i"),
    told = make("p", { class: "faint", text: "hover over a channel: what of the input it depends on" });
  const [height, width] = data.run.size;
  return {
    element: make(
      "div",
      {},
      make("div", { id: "input" }, make("img", { src: data.run.picture, alt: "the net's input" }), mark),
      told,
    ),
    at(field, row, column) {
      const [[y0, y1], [x0, x1]] = [field[0][row], field[1][column]];
      mark.style.cssText =
        y1 < y0 || x1 < x0
          ? ""
          : `display: block; left: ${(100 * x0) / width}%; top: ${(100 * y0) / height}%; ` +
            `width: ${(100 * (x1 - x0 + 1)) / width}%; height: ${(100 * (y1 - y0 + 1)) / height}%`;
      told.textContent =
        y1 < y0 || x1 < x0
          ? "depends on padding alone"
          : `depends on rows ${y0} to ${y1}, columns ${x0} to ${x1}: ` + `${y1 - y0 + 1} × ${x1 - x0 + 1} pixels`;
    },
  };
}
function maps(b, layer, moving) {
  const n = b.ranges.length;
  const grid = make("div", { class: "maps", role: "img", "aria-label": `the first ${n} of ${b.channels} channels` });
  b.ranges.forEach(([low, high], k) => {
    const one = make("div", { class: "map", title: `channel ${k}: black ${short(low)}, white ${short(high)}` });
    one.style.cssText =
      `--ratio: ${b.width} / ${b.height}; --count: ${n}; background-image: url(${b.url}); ` +
      `background-position: ${n > 1 ? (100 * k) / (n - 1) : 0}% 0`;
    if (moving)
      one.addEventListener("pointermove", event => {
        const r = one.getBoundingClientRect();
        const at = (x, size, steps) => Math.min(steps - 1, Math.max(0, Math.floor((x / size) * steps)));
        const row = at(event.clientY - r.top, r.height, b.height),
          column = at(event.clientX - r.left, r.width, b.width);
        if (layer.field[0].length === b.height && layer.field[1].length === b.width)
          moving.at(layer.field, row, column);
      });
    grid.append(one);
  });
  return grid;
}
