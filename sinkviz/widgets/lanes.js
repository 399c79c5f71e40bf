// One lane of SideBySide in one view. Python puts this between the shared functions and the widget.

const TAIL = 400; // tokens per lane in the page
const SPARK = 64;
const bytes = (n) => (n < 1e6 ? `${(n / 1e3).toFixed(0)} kB` : `${(n / 1e6).toFixed(1)} MB`);

// What stays where no first token is sure to.
function rule({ kind, by_attention: byAttention }) {
  if (byAttention) return "kept by attention; struck out: gone from all heads";
  return { dense: "never evicted: everything", other: "what stays is up to its keep(n)" }[kind]
    ?? "never evicted: nothing";
}

// Tokens of a state with their text positions; the last one is at `end - 1`.
function items(state) {
  const nll = floats(state.nll);
  const first = state.end - state.tokens.length;
  return state.tokens.map((text, i) => ({ position: first + i, text, nll: nll[i] }));
}

// Limits are shared by the lanes, so that their curves compare.
function drawSpark(plot, lane, [low, high], width) {
  const points = floats(lane.points);
  const left = 30;
  const x = (i) => left + ((width - left - 4) * (i + 1)) / Math.max(points.length, 24);
  const y = (v) => SPARK - 5 - ((SPARK - 12) * (v - low)) / (high - low);
  const parts = [svg("path", { class: "axis", d: `M${left} 2V${SPARK - 2}H${width}` })];
  if (Number.isFinite(low)) {
    parts.push(svg("text", { x: left - 5, y: y(high) + 4, "text-anchor": "end" }, high.toFixed(1)));
    parts.push(svg("text", { x: left - 5, y: y(low) + 4, "text-anchor": "end" }, low.toFixed(1)));
  }
  const eviction = lane.evicts === null ? -1 : (lane.evicts - lane.start) / lane.bin - 1;
  if (eviction >= 0 && eviction < points.length) {
    parts.push(svg("path", { class: "event", d: `M${x(eviction)} 2V${SPARK - 2}` }));
  }
  parts.push(svg("path", { class: `curve ${lane.kind}`, d: path(points, x, y) }));
  const last = points.length - 1;
  if (last >= 0 && Number.isFinite(points[last])) {
    parts.push(svg("circle", { cx: x(last), cy: y(points[last]), r: 3, fill: "var(--lane)" }));
  }
  plot.setAttribute("height", SPARK);
  plot.replaceChildren(...parts);
}

// One lane in one view: builds its part of the page once, then adds only what is new.
function laneView(lane, reading) {
  const stats = ["perplexity", "nll, last 32", "time per token", "cache", "memory", "to the sinks", "just evicted"].map((name, i) => {
    const value = html("b", { class: i ? null : "big" });
    return [html("div", { class: "stat" }, html("span", {}, name), value), value];
  });
  const toSinks = stats[5][0];
  const spark = svg("svg", { "aria-hidden": "true" });
  const kept = html("div", { class: "kept" });
  const [gap, body] = [html("span", { class: "gap" }), html("span")];
  const text = control("div",
    { class: "text", tabindex: 0, role: "region", "aria-label": `Text of ${lane.name}` }, gap, body);
  const root = html("section", { class: `lane ${lane.kind}`, "aria-label": lane.name },
    html("h4", {}, lane.name), ...stats.map(([row]) => row), spark, kept, text);
  let [nodes, next, follow] = [[], 0, true];
  text.addEventListener("scroll", () => {
    follow = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
  });

  function clear() {
    [nodes, next] = [[], 0];
    body.replaceChildren();
  }

  function addText(now) {
    if (nodes.length) nodes[nodes.length - 1].node.classList.remove("new");
    for (const item of now.items) {
      if (item.position < Math.max(next, now.n_sink)) continue;
      const node = html("span", {}, item.text);
      if (reading && Number.isFinite(item.nll)) {
        // No darker than its letters can bear.
        node.style.setProperty("--surprise", `${Math.min(36, 4 * item.nll).toFixed(0)}%`);
      }
      nodes.push({ position: item.position, node });
      body.append(node);
    }
    next = now.end;
    const gone = now.evicted; // a byte per token, back to TAIL tokens
    const first = now.end - gone.byteLength;
    const extra = nodes.findIndex(({ position }) => position >= first);
    nodes.splice(0, extra).forEach(({ node }) => node.remove());
    for (const { position, node } of nodes) {
      const left = gone.getUint8(position - first);
      if (left) node.classList.add("evicted");
      node.classList.toggle("just", left === 2);
    }
    if (nodes.length && now.span) nodes[nodes.length - 1].node.classList.add("new");
    const away = nodes.length ? nodes[0].position - now.n_sink : 0;
    gap.textContent = away > 0 ? `\u2026 ${count(away)} tokens further back \u2026` : "";
    if (follow) text.scrollTop = text.scrollHeight;
  }

  function leaving({ left, newest, items }) {
    if (!left) return "none";
    if (left > 1) return `${count(left)} tokens`;
    const token = items.find(({ position }) => position === newest);
    return token ? `\u201c${token.text.trim() || token.text}\u201d` : `token ${count(newest)}`;
  }

  function draw(now, limits) {
    if (now.end < next) clear();
    addText(now);
    const sinks = now.head.map((token) => html("span", { class: "sink" }, token));
    kept.replaceChildren(...(now.n_sink ? ["never evicted: ", ...sinks] : [rule(now)]));
    toSinks.hidden = !Number.isFinite(now.sink ?? NaN);
    const said = [
      number(now.perplexity ?? NaN),
      Number.isFinite(now.mean ?? NaN) ? `${now.mean.toFixed(2)} nats` : "\u2013",
      `${now.milliseconds.toFixed(1)} ms`,
      `${count(now.cache_size)} tokens`,
      now.kind === "recompute" ? "none" : bytes(now.cache_bytes),
      percent(now.sink ?? 0),
      leaving(now),
    ];
    stats.forEach(([, value], i) => (value.textContent = now.span ? said[i] : "\u2013"));
    drawSpark(spark, now, limits, Math.max(120, spark.clientWidth));
  }
  return { root, draw, clear };
}

