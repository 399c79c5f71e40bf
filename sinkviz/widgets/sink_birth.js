// A map of all heads and the curves of training, linked by one step and one head.

const DASHES = [null, "7 4", "2 3", "8 3 2 3", "8 3 2 3 2 3", "14 4"];
const PLOT = 210; // height of a chart, pixels
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function render({ model, el }) {
  const get = (name) => model.get(name);
  const put = writer(model);
  const epsilon = get("epsilon");
  const several = get("models").length > 1;
  const models = get("models").map((one, i) => {
    const raw = get("firsts")[i];
    const firsts = new Uint16Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength));
    const size = one.layers * one.heads;
    return {
      ...one, index: i, size, dash: DASHES[i % DASHES.length],
      loss: [...floats(get("losses")[i])],
      rate: [...floats(get("rates")[i])],
      share: (snapshot, layer, head) => firsts[snapshot * size + layer * one.heads + head] / 65535,
      // The newest snapshot that is not later than the step.
      at: (step) => Math.max(0, one.steps.findLastIndex((known) => known <= step)),
    };
  });
  const steps = [...new Set(models.flatMap((one) => one.steps))].sort((a, b) => a - b);
  const nearest = (step) => Math.max(0, steps.findLastIndex((known) => known <= step));
  const said = (i) => `step ${count(steps[i])}`;
  const slider = range({ name: "Training", hint: "snapshots are closer together at the beginning", role: "sink", low: 0, high: steps.length - 1, say: said }, (i) => put("step", steps[i]));
  const choose = (layer, head) => {
    if (layer === get("layer") && head === get("head")) return;
    model.set("layer", layer);
    put("head", head);
  };

  // One map per model: a grid that is one stop of the Tab key.
  const maps = models.map((one) => {
    const title = html("div", { class: "heading" });
    const note = html("small");
    const plot = svg("svg", { role: "grid", tabindex: 0, "data-lm-suppress-shortcuts": "true", "aria-label": `${one.name}: attention on the first token, layers down, heads across` });
    const names = unique("cell");
    plot.addEventListener("keydown", (event) => {
      if (!(event.key in ARROWS)) return;
      event.preventDefault();
      const [down, right] = ARROWS[event.key];
      choose(clamp(get("layer") + down, 0, one.layers - 1), clamp(get("head") + right, 0, one.heads - 1));
    });
    plot.addEventListener("click", (event) => {
      const cell = event.target.closest("[data-layer]");
      if (cell) choose(Number(cell.dataset.layer), Number(cell.dataset.head));
    });
    return { one, title, note, plot, names, box: html("div", {}, title, plot, note) };
  });
  const charts = ["loss", "share"].map(() => svg("svg", { role: "img" }));
  const live = html("div", { "aria-live": "polite" });
  const curves = charts.map((plot) => html("div", {}, plot));
  const rows = several // one map has the curves beside it, several have them below
    ? [html("div", { class: "pair maps" }, ...maps.map(({ box }) => box)), html("div", { class: "pair" }, ...curves)]
    : [html("div", { class: "pair" }, maps[0].box, html("div", {}, ...curves))];
  const root = frame(`Sink birth: ${models.map((one) => one.name).join(", ")}`,
    html("div", { class: "bench" }, slider.row), ...rows, live);
  root.classList.add("teach");
  for (const plot of charts) {
    plot.classList.add("scrub");
    const follow = (event) => {
      const box = plot.getBoundingClientRect();
      const { left, span, low, high } = plot.scale;
      const at = clamp((event.clientX - box.left - left) / span, 0, 1);
      const wanted = Math.exp(Math.log(low) + at * (Math.log(high) - Math.log(low)));
      const distance = (step) => Math.abs(Math.log(step / wanted));
      const found = steps.reduce((best, step) => (distance(step) < distance(best) ? step : best));
      if (found !== get("step")) put("step", found);
    };
    plot.addEventListener("pointerdown", (event) => {
      plot.setPointerCapture(event.pointerId);
      plot.onpointermove = follow;
      follow(event);
    });
    plot.addEventListener("lostpointercapture", () => (plot.onpointermove = null));
  }

  function drawMap({ one, title, note, plot, names }) {
    const snapshot = one.at(get("step"));
    const width = Math.max(150, plot.clientWidth || 400);
    const [left, top] = [44, 18];
    const cell = Math.min(96, (width - left - 4) / one.heads);
    const high = clamp((several ? 180 : 330) / one.layers, 14, 0.8 * cell);
    const lettered = cell > 26 && high > 14;
    const heading = (x, y, text) => svg("text", { x, y, "text-anchor": "middle", "aria-hidden": "true" }, text);
    const step = Math.ceil(16 / cell);
    const parts = [heading(left - 24, 12, "layer"), heading(left + (one.heads * cell) / 2, top + one.layers * high + 26, "head")];
    for (let head = 0; head < one.heads; head += step) parts.push(heading(left + (head + 0.5) * cell, top + one.layers * high + 13, head));
    let chosen = null;
    for (let layer = 0; layer < one.layers; layer += 1) {
      parts.push(heading(left - 10, top + (layer + 0.65) * high, layer));
      const cells = [];
      for (let head = 0; head < one.heads; head += 1) {
        const share = one.share(snapshot, layer, head);
        const place = Math.sqrt(share);
        const now = layer === get("layer") && head === get("head");
        const [x, y] = [left + head * cell, top + layer * high];
        const id = `${names}-${layer}-${head}`;
        const known = { role: "gridcell", id, "aria-label": `layer ${layer}, head ${head}: ${percent(share)}`, "aria-selected": now, "data-layer": layer, "data-head": head, "data-share": share };
        cells.push(svg("g", known,
          svg("rect", { x: x + 1, y: y + 1, width: cell - 2, height: high - 2, style: `fill: ${shade("attention", place)}` }),
          lettered ? svg("text", { x: x + cell / 2, y: y + high / 2 + 4, "text-anchor": "middle", style: `fill: ${inkOn("attention", place)}; font-weight: ${share > epsilon ? 700 : 400}` }, (100 * share).toFixed(0)) : ""));
        if (now) chosen = [id, x, y];
      }
      parts.push(svg("g", { role: "row" }, ...cells));
    }
    if (chosen) {
      plot.setAttribute("aria-activedescendant", chosen[0]);
      parts.push(svg("rect", { x: chosen[1], y: chosen[2], width: cell, height: high, class: "ring", rx: 2 }));
    }
    const size = top + one.layers * high + 32;
    plot.setAttribute("height", size);
    plot.setAttribute("viewBox", `0 0 ${width} ${size}`);
    plot.replaceChildren(...parts);
    title.textContent = several ? one.name : `${one.name}: late queries on the first token, per cent`;
    note.textContent = `step ${count(one.steps[snapshot])}${one.tokens[snapshot] ? `, ${short(one.tokens[snapshot])} tokens read` : ""}: sink rate ${percent(one.rate[snapshot])}, loss ${one.loss[snapshot].toFixed(2)}`;
  }

  function drawChart(plot, { yname, ys, curves }) {
    const width = Math.max(280, plot.clientWidth || 420);
    const right = 118;
    const xs = [Math.max(1, steps[0]), Math.max(2, steps[steps.length - 1])];
    const { x, y, parts, floor, top } = chart({ width, height: PLOT, right, xs, ys, log: true, xname: "training step", yname });
    plot.scale = { left: x(xs[0]), span: x(xs[1]) - x(xs[0]), low: xs[0], high: xs[1] };
    for (const { one, values, role, text, thin } of curves) {
      parts.push(svg("path", { class: `line ${thin ? "thin" : ""}`, style: `--stroke: ${role}`, "stroke-dasharray": one.dash,
        d: path(values, (i) => x(Math.max(1, one.steps[i])), y) }));
      const i = one.at(get("step"));
      if (text) parts.push(svg("circle", { cx: x(Math.max(1, one.steps[i])), cy: y(values[i]), r: 4, style: `fill: ${role}` }));
    }
    const named = curves.filter(({ text }) => text);
    const ends = named.map(({ values }) => y(values[values.length - 1]));
    spread(ends, 14, top + 4, floor).forEach((place, i) => {
      const { one, role, text } = named[i];
      const end = x(one.steps[one.steps.length - 1]);
      parts.push(svg("path", { class: "line thin", style: `--stroke: ${role}`, "stroke-dasharray": one.dash, d: `M${end + 2} ${ends[i]}L${width - right + 8} ${place}h14` }));
      parts.push(svg("text", { x: width - right + 26, y: place + 4 }, text.length > 16 ? `${text.slice(0, 15)}\u2026` : text));
    });
    const now = x(Math.max(1, steps[nearest(get("step"))]));
    parts.push(svg("path", { class: "now-line", d: `M${now} ${top}V${floor}`, "stroke-dasharray": "3 3" }));
    plot.setAttribute("height", PLOT);
    plot.setAttribute("viewBox", `0 0 ${width} ${PLOT}`);
    plot.setAttribute("aria-label", `${yname} over training`);
    plot.replaceChildren(...parts);
  }

  function draw() {
    const [step, layer, head] = [get("step"), get("layer"), get("head")];
    slider.show(nearest(step));
    maps.forEach(drawMap);
    const losses = models.flatMap((one) => one.loss);
    const room = 0.06 * (Math.max(...losses) - Math.min(...losses) || 1);
    drawChart(charts[0], {
      yname: "loss (nats per token)", ys: [Math.min(...losses) - room, Math.max(...losses) + room],
      curves: models.map((one) => ({ one, values: one.loss, role: "var(--sinkviz-ink)", text: several ? one.name : "loss" })),
    });
    const has = models.filter((one) => layer < one.layers && head < one.heads);
    const of = (one, l, h) => one.steps.map((_, i) => one.share(i, l, h));
    // With one model all its heads lie behind; with several they would hide each other.
    const behind = several ? [] : [...Array(models[0].size).keys()].map((i) => ({
      one: { ...models[0], dash: null }, values: of(models[0], Math.floor(i / models[0].heads), i % models[0].heads), role: "var(--sinkviz-line)", thin: true }));
    drawChart(charts[1], {
      yname: `share on the first token: layer ${layer}, head ${head}${several ? "" : "; sink rate dashed"}`, ys: [0, 1],
      curves: [...behind,
        ...(several ? [] : [{ one: { ...models[0], dash: "7 4" }, values: models[0].rate, role: "var(--sinkviz-ink)", text: "sink rate" }]),
        ...has.map((one) => ({ one, values: of(one, layer, head), role: "var(--sinkviz-sink)", text: several ? one.name : `layer ${layer}, head ${head}` }))],
    });
    const each = models.map((one) => {
      const i = one.at(step);
      const mine = layer < one.layers && head < one.heads ? `, this head ${percent(one.share(i, layer, head))}` : "";
      return `${several ? `${one.name} ` : ""}sink rate ${percent(one.rate[i])}, loss ${one.loss[i].toFixed(2)}${mine}`;
    });
    live.textContent = `Step ${count(steps[nearest(step)])}; layer ${layer}, head ${head}: ${each.join("; ")}.`;
    root.dataset.drawn = `${step} ${layer} ${head}`;
  }
  el.append(root);
  return drawn(model, ["step", "layer", "head"], root, draw);
}

export default { render };
