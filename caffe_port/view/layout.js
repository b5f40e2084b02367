// Where the boxes and edges lie. dagre places the layers of each piece of the net; pieces end where a single layer
// carries everything. Part of the page's script, after which page.js stands.
"use strict";
const BOX = { width: 190, height: 38, gap: 16, between: 26 };

// The middle of each layer's box, and the edges with the points between which dagre led them.
function arrange(layers) {
  const edges = [];
  const seen = new Set();
  for (const layer of layers)
    for (const { from } of layer.bottoms)
      if (from != null && !seen.has(from * layers.length + layer.index)) {
        seen.add(from * layers.length + layer.index);
        edges.push({ from, to: layer.index, points: null });
      }
  // A run of layers, each the only reader of the one before, which is its only bottom, is one tall box to dagre.
  const out = layers.map(() => []),
    into = layers.map(() => []);
  for (const edge of edges) {
    out[edge.from].push(edge);
    into[edge.to].push(edge);
  }
  const runs = [],
    runOf = [];
  layers.forEach((layer, i) => {
    const above = into[i].length === 1 ? into[i][0].from : -1;
    if (above >= 0 && out[above].length === 1) runs[(runOf[i] = runOf[above])].push(i);
    else runOf[i] = runs.push([i]) - 1;
  });
  const between = edges.filter(edge => runOf[edge.from] !== runOf[edge.to]);
  leaveOutLong(between, runs.length, runOf);
  const laid = between.filter(edge => !edge.long);
  // Runs in running order; after run i a piece ends if every edge over that place comes from i itself.
  let reach = -1,
    over = 0;
  const ends = runs.map(() => []),
    pieces = [[]];
  for (const edge of laid) ends[runOf[edge.from]].push(runOf[edge.to]);
  runs.forEach((run, i) => {
    over = reach;
    pieces[pieces.length - 1].push(i);
    reach = Math.max(reach, ...ends[i]);
    if (over <= i && i + 1 < runs.length) pieces.push([]);
  });
  const place = layers.map(() => null);
  let y = 0,
    entry = null; // the run that the next piece hangs on, and where its middle is
  for (const piece of pieces) {
    const inside = new Set(piece);
    const g = new dagre.graphlib.Graph({ multigraph: true });
    g.setGraph({
      rankdir: "TB",
      nodesep: BOX.gap,
      ranksep: BOX.between,
      edgesep: 12,
      ranker: piece.length > 60 ? "tight-tree" : "network-simplex",
    });
    if (entry) g.setNode("entry", { width: 1, height: 1 });
    for (const r of piece)
      g.setNode(String(r), { width: BOX.width, height: runs[r].length * BOX.height + (runs[r].length - 1) * BOX.gap });
    for (const edge of laid) {
      if (!inside.has(runOf[edge.to])) continue;
      const from = inside.has(runOf[edge.from]) ? String(runOf[edge.from]) : entry ? "entry" : null;
      if (from) g.setEdge(from, String(runOf[edge.to]), { edge }, `${edge.from} ${edge.to}`);
    }
    if (piece.length + (entry ? 1 : 0) === 1)
      Object.assign(g.node(String(piece[0])), { x: 0, y: g.node(String(piece[0])).height / 2 });
    else dagre.layout(g);
    const shift = entry ? entry.x - g.node("entry").x : 0;
    let bottom = 0;
    for (const r of piece) {
      const node = g.node(String(r));
      runs[r].forEach((i, k) => {
        place[i] = { x: node.x + shift, y: y + node.y - node.height / 2 + BOX.height / 2 + k * (BOX.height + BOX.gap) };
      });
      bottom = Math.max(bottom, node.y + node.height / 2);
    }
    for (const id of g.edges()) {
      const found = g.edge(id);
      if (found.edge && found.points) found.edge.points = found.points.map(p => ({ x: p.x + shift, y: p.y + y }));
    }
    y += bottom + BOX.between;
    const last = piece[piece.length - 1];
    entry = { x: place[runs[last][0]].x };
  }
  return { place, edges };
}

// dagre's time grows with the ranks that edges cross: of a net with very many crossings the longest are drawn apart.
function leaveOutLong(edges, n, runOf, most = 1500) {
  const rank = new Array(n).fill(0);
  for (const edge of edges) rank[runOf[edge.to]] = Math.max(rank[runOf[edge.to]], rank[runOf[edge.from]] + 1);
  const span = edge => rank[runOf[edge.to]] - rank[runOf[edge.from]];
  let total = edges.reduce((sum, edge) => sum + span(edge), 0);
  const readers = new Map();
  for (const edge of edges) readers.set(runOf[edge.to], (readers.get(runOf[edge.to]) || 0) + 1);
  for (const edge of [...edges].sort((a, b) => span(b) - span(a))) {
    if (total <= most || span(edge) < 3) return;
    if (readers.get(runOf[edge.to]) < 2) continue;
    readers.set(runOf[edge.to], readers.get(runOf[edge.to]) - 1);
    total -= span(edge);
    edge.long = true;
  }
}

function line(edge, place) {
  const a = place[edge.from],
    b = place[edge.to];
  const start = { x: a.x, y: a.y + BOX.height / 2 },
    end = { x: b.x, y: b.y - BOX.height / 2 - 1 };
  if (edge.long) {
    // beside the boxes, in a lane to the right
    const side = Math.max(a.x, b.x) + BOX.width;
    edge.box = [Math.min(a.x, b.x) - BOX.width, start.y, side + BOX.width, end.y];
    return (
      `M${start.x} ${start.y}C${side} ${start.y + 40} ${side} ${start.y + 40} ${side} ${start.y + 80}` +
      `L${side} ${end.y - 80}C${side} ${end.y - 40} ${side} ${end.y - 40} ${end.x} ${end.y}`
    );
  }
  const inner = (edge.points || []).slice(1, -1).filter(p => p.y > start.y && p.y < end.y);
  const points = [start, ...inner, end];
  edge.box = [Math.min(...points.map(p => p.x)), start.y, Math.max(...points.map(p => p.x)), end.y];
  let path = `M${start.x} ${start.y}`;
  for (let k = 1; k < points.length; k++) {
    // vertical at every point
    const p = points[k - 1],
      q = points[k],
      middle = (p.y + q.y) / 2;
    path += p.x === q.x ? `L${q.x} ${q.y}` : `C${p.x} ${middle} ${q.x} ${middle} ${q.x} ${q.y}`;
  }
  return path;
}
