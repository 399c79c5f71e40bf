// Perplexity against length for each position scheme, and the bias or rotation behind one of them.

const PLOT = 300; // height of a chart, pixels
const DASHES = [null, "7 4", "2 3", "8 3 2 3", "8 3 2 3 2 3", "14 4"];
const NAMES = { rope: "RoPE", alibi: "ALiBi", sinusoidal: "Sinusoidal", learned: "Learned", t5: "T5", none: "None" };
const perplexity = (nll) => number(Math.exp(nll));

function render({ model, el }) {
  const get = (name) => model.get(name);
  const put = writer(model);
  const [lengths, frequencies, slopes, edges] = [get("lengths"), get("frequencies"), get("slopes"), get("buckets")];
  const raw = floats(get("points"));
  const curves = get("curves").map((one) => ({ ...one, points: [] }));
  for (let i = 0; i < raw.length; i += 3) curves[raw[i]].points.push([raw[i + 1], raw[i + 2]]);
  const present = new Set(curves.map((one) => one.position));
  const trained = (position) => (curves.find((one) => one.position === position) ?? { train_length: get("train_length") }).train_length;
  const mean = (position, length) => {
    const found = curves.filter((one) => one.position === position).flatMap(({ points }) => points.filter(([n]) => n === length).map(([, nll]) => nll));
    return found.length ? found.reduce((sum, nll) => sum + nll, 0) / found.length : NaN;
  };
  const chosen = pressed("Position scheme", get("schemes").map((one) => [one, NAMES[one] ?? one]), (one) => put("position", one));
  const slider = range({ name: "Test length", role: "sink", low: 0, high: lengths.length - 1, say: (i) => `${count(lengths[i])} tokens` }, (i) => put("length", lengths[i]));
  const left = svg("svg", { role: "img" });
  const right = svg("svg", { role: "img" });
  const title = html("div", { class: "heading" });
  const words = html("small");
  const live = html("div", { "aria-live": "polite" });
  const root = frame("Position lab", html("div", { class: "notice" }, get("notice")), chosen.row,
    html("div", { class: "bench" }, slider.row),
    html("div", { class: "pair" }, ...(curves.length ? [html("div", {}, html("div", { class: "heading" }, "Train short, test long"), left)] : []),
      html("div", {}, title, right, words)), live);
  root.classList.add("teach");

  function drawCurves() {
    const [position, length] = [get("position"), get("length")];
    const width = Math.max(320, left.clientWidth || 460);
    const all = curves.flatMap(({ points }) => points.map(([, nll]) => nll));
    const room = 0.06 * (Math.max(...all) - Math.min(...all) || 1);
    const ys = [Math.min(...all) - room, Math.max(...all) + room];
    const side = 110;
    const { x, y, parts, floor, top } = chart({ width, height: PLOT, right: side, xs: [lengths[0], lengths[lengths.length - 1]], ys, log: true,
      xname: "length of the text (tokens)", yname: "perplexity (log scale)", yticks: levels(ys) });
    for (const n of new Set(curves.map((one) => one.train_length))) {
      if (n < lengths[0] || n > lengths[lengths.length - 1]) continue;
      parts.push(svg("path", { class: "event", d: `M${x(n)} ${top}V${floor}` }));
      parts.push(svg("text", { x: x(n) + 4, y: top + 8, class: "small haloed" }, `training length (${n})`));
    }
    const order = [...curves].sort((a, b) => (a.position === position) - (b.position === position));
    const several = present.size < curves.length;
    const named = [];
    const longest = Math.max(...curves.map((one) => one.points[one.points.length - 1][0]));
    for (const one of order) {
      const now = one.position === position;
      const look = { class: `line ${now ? "thick" : "thin"}`, style: `--stroke: var(--sinkviz-${now ? "sink" : "recent"})`, "stroke-dasharray": DASHES[get("schemes").indexOf(one.position) % DASHES.length] };
      parts.push(svg("path", { ...look, d: path(one.points.map(([, nll]) => nll), (i) => x(one.points[i][0]), y) }));
      const here = one.points.find(([n]) => n === length);
      if (here && now) parts.push(svg("circle", { cx: x(here[0]), cy: y(here[1]), r: 5, class: "is-sink" }));
      const last = one.points[one.points.length - 1];
      const name = several ? `${NAMES[one.position]}, ${one.model}` : NAMES[one.position];
      // A curve that ends early is only pointed at, lest the pointer be taken for a curve.
      const ends = last[0] < longest;
      named.push({ look: ends ? { class: "event" } : look, now, last, text: ends ? `${name} (to ${last[0]})` : name });
    }
    const wanted = named.map(({ last }) => y(last[1]));
    spread(wanted, 14, top + 4, floor).forEach((place, i) => {
      const { look, now, last, text } = named[i];
      parts.push(svg("path", { ...look, d: `M${x(last[0]) + 2} ${wanted[i]}L${width - side + 8} ${place}h14` }));
      parts.push(svg("text", { x: width - side + 26, y: place + 4, class: now ? "strong" : null }, text.length > 18 ? `${text.slice(0, 17)}\u2026` : text));
    });
    parts.push(svg("path", { class: "now-line", d: `M${x(length)} ${top}V${floor}`, "stroke-dasharray": "3 3" }));
    left.setAttribute("height", PLOT);
    left.setAttribute("viewBox", `0 0 ${width} ${PLOT}`);
    left.setAttribute("aria-label", [...present].map((one) => `${NAMES[one]} ${perplexity(mean(one, length))}`).join(", "));
    left.replaceChildren(...parts);
  }

  // Nice perplexities on an axis of nats.
  function levels([low, high]) {
    const found = [];
    for (let ten = -2; ten < 12; ten += 1) {
      for (const digit of high - low > 6 ? [1] : high - low > 2.5 ? [1, 3] : [1, 1.5, 2, 3, 4, 5, 7]) {
        const at = Math.log(digit * 10 ** ten);
        if (at >= low && at <= high) found.push([at, short(digit * 10 ** ten)]);
      }
    }
    return found;
  }

  // Each scheme draws into the right picture and says in words what a text of this length meets.
  const behind = {
    rope(width, length, train) {
      const n = frequencies.length;
      const shown = Math.min(8, n);
      const pairs = Array.from({ length: shown }, (_, i) => Math.round((i * (n - 1)) / (shown - 1)));
      const [across, full] = [4, 2 * Math.PI];
      const each = Math.min(width / across, 120);
      const radius = 0.33 * each;
      const parts = pairs.flatMap((pair, i) => {
        const [cx, cy] = [(i % across + 0.5) * each, Math.floor(i / across) * (each + 16) + 0.42 * each];
        const [known, reached] = [train - 1, length - 1].map((d) => d * frequencies[pair]);
        const at = (angle, r) => `${(cx + r * Math.sin(angle)).toFixed(1)} ${(cy - r * Math.cos(angle)).toFixed(1)}`;
        const arc = (from, to) => `M${at(from, radius)}A${radius} ${radius} 0 ${to - from > Math.PI ? 1 : 0} 1 ${at(to, radius)}`;
        const inside = Math.min(known, reached, full - 0.03);
        const beyond = Math.min(reached, full - 0.03);
        return [
          svg("circle", { cx, cy, r: radius, class: "axis" }),
          svg("path", { class: "line", style: "--stroke: var(--sinkviz-recent); stroke-width: 5", d: arc(0, inside) }),
          svg("path", { class: "line", style: "--stroke: var(--sinkviz-paper); stroke-width: 1", d: `M${at(0, radius - 4)}L${at(0, radius + 4)}` }),
          known < full && beyond > inside ? svg("path", { class: "line", style: "--stroke: var(--sinkviz-sink); stroke-width: 5", "stroke-dasharray": "4 2", d: arc(inside, beyond) }) : "",
          svg("path", { class: "now-line", d: `M${cx} ${cy}L${at(reached, radius)}` }),
          svg("text", { x: cx, y: cy + radius + 16, "text-anchor": "middle" }, `pair ${pair}: ${turns(reached)}`),
        ];
      });
      const fresh = frequencies.filter((f) => (train - 1) * f < full && length > train).length;
      return { parts, high: 2 * (each + 16), title: "RoPE: the angle between a query and the first key",
        words: `Blue: angles that training has shown; dashed orange: new ones. ${fresh} of ${n} pairs reach angles never seen. ` };
    },
    alibi(width, length, train) {
      const { x, y, parts } = chart({ width, height: PLOT, right: 86, xs: [0, length - 1], ys: [-Math.max(...slopes) * (length - 1), 0], xname: "distance to the key (tokens)", yname: "bias on the score (nats)" });
      const ends = slopes.map((slope) => y(-slope * (length - 1)));
      spread(ends, 14, 28, PLOT - 36).forEach((place, i) => {
        parts.push(svg("path", { class: "line", style: "--stroke: var(--sinkviz-recent)", d: `M${x(0)} ${y(0)}L${x(length - 1)} ${ends[i]}` }));
        parts.push(svg("text", { x: x(length - 1) + 8, y: place + 4 }, `head ${i}: 1/${Math.round(1 / slopes[i])}`));
      });
      return { parts, x, high: PLOT, label: PLOT - 44, title: "ALiBi: the further, the less", words: `At distance ${count(length - 1)} the bias goes from ${signed(-Math.max(...slopes) * (length - 1))} to ${signed(-Math.min(...slopes) * (length - 1), 2)} nats: the same straight lines, only longer. ` };
    },
    sinusoidal(width, length) {
      const five = [0, 1, 2, 3, 4].map((i) => Math.round((i * (frequencies.length - 1)) / 4));
      const { x, y, parts } = chart({ width, height: PLOT, xs: [0, length - 1], ys: [-4.6, 0.6], xname: "text position (tokens)", yname: "sine of a pair, added to the token", yticks: five.map((pair, row) => [-row, `${pair}`]) });
      five.forEach((pair, row) => {
        // Eight points a wave: fewer would draw waves that are not there.
        const most = Math.ceil(60 + (8 * length * frequencies[pair]) / (2 * Math.PI));
        const points = Array.from({ length: most + 1 }, (_, i) => (i * (length - 1)) / most);
        parts.push(svg("path", { class: "line thin", style: "--stroke: var(--sinkviz-recent)", d: path(points.map((at) => 0.42 * Math.sin(at * frequencies[pair]) - row), (i) => x(points[i]), y) }));
      });
      return { parts, x, high: PLOT, title: "Sinusoidal: every position its own waves", words: "Beyond the training length the slow waves take values in combinations never seen. " };
    },
    learned(width, length, train) {
      const { x, parts, floor, top } = chart({ width, height: 150, xs: [0, length - 1], ys: [0, 1], yticks: [], xname: "text position (tokens)", yname: "rows of the table of positions" });
      const edge = Math.min(train, length - 1);
      parts.push(svg("rect", { x: x(0), y: top + 8, width: x(edge) - x(0), height: floor - top - 16, class: "is-kept" }));
      if (length > train) {
        const beyond = [x(edge), top + 8, x(length - 1) - x(edge), floor - top - 16];
        const [left, up, wide, high] = beyond;
        parts.push(svg("rect", { x: left, y: up, width: wide, height: high, class: "is-gone" }), hatched(...beyond));
      }
      return { parts, x, high: 150, title: "Learned: one row per position", words: length > train ? `Rows 0 to ${count(train - 1)} were trained; positions ${count(train)} to ${count(length - 1)} have none. ` : "Every position has a trained row. " };
    },
    t5(width, length) {
      const { x, y, parts } = chart({ width, height: PLOT, xs: [0, length - 1], ys: [0, edges.length], xname: "distance to the key (tokens)", yname: "bucket, each with a learned bias" });
      const steps = edges.filter((edge) => edge < length);
      const d = steps.map((edge, i) => `${i ? "H" : "M"}${x(edge)}${i ? "V" : " "}${y(i)}`).join("");
      parts.push(svg("path", { class: "line", style: "--stroke: var(--sinkviz-recent)", d: `${d}H${x(length - 1)}` }));
      return { parts, x, high: PLOT, title: "T5: far distances share a bucket", words: `Distance ${count(length - 1)} falls into bucket ${steps.length - 1} of ${edges.length}; from ${count(edges[edges.length - 1])} tokens on all share the last. ` };
    },
    none(width, length) {
      const { x, y, parts } = chart({ width, height: PLOT, xs: [0, length - 1], ys: [0, length], xname: "text position (tokens)", yname: "keys that the query sees" });
      parts.push(svg("path", { class: "line", style: "--stroke: var(--sinkviz-recent)", d: `M${x(0)} ${y(1)}L${x(length - 1)} ${y(length)}` }));
      return { parts, x, high: PLOT, title: "None: only the causal mask tells", words: `The last query sees ${count(length)} keys; more than ever in training where the text is longer. ` };
    },
  };
  const turns = (angle) => (angle > 0.95 * 2 * Math.PI ? `${short(Math.round((10 * angle) / (2 * Math.PI)) / 10)} turns` : `${Math.round((180 * angle) / Math.PI)}\u00b0`);

  function drawBehind() {
    const [position, length] = [get("position"), get("length")];
    const train = trained(position);
    const width = Math.max(320, right.clientWidth || 460);
    const found = behind[position](width, Math.max(2, length), train);
    if (found.x && train < length) {
      found.parts.push(svg("path", { class: "event", d: `M${found.x(train)} 20V${found.high - 36}` }));
      found.parts.push(svg("text", { x: found.x(train) + 4, y: found.label ?? 30, class: "small haloed" }, `training length (${train})`));
    }
    title.textContent = found.title;
    words.textContent = found.words;
    right.setAttribute("height", found.high);
    right.setAttribute("viewBox", `0 0 ${width} ${found.high}`);
    right.setAttribute("aria-label", `${found.title}. ${found.words}`);
    right.replaceChildren(...found.parts);
  }

  function draw() {
    const [position, length] = [get("position"), get("length")];
    chosen.show(position);
    slider.show(lengths.indexOf(length));
    if (curves.length) drawCurves();
    drawBehind();
    const nll = mean(position, length);
    const times = (length / trained(position)).toPrecision(2);
    const measured = Number.isFinite(nll) ? `perplexity ${perplexity(nll)}` : curves.length ? "not measured" : "no table";
    live.textContent = `${NAMES[position]}, ${count(length)} tokens (${+times} \u00d7 the training length): ${measured}.`;
    root.dataset.nll = Number.isFinite(nll) ? nll.toFixed(5) : "";
    root.dataset.drawn = `${position} ${length}`;
  }
  el.append(root);
  return drawn(model, ["position", "length"], root, draw);
}

export default { render };
