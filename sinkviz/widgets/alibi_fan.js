// ALiBi's bias against distance, and two maps: scores as they are, and with the bias.

const FAN = 260; // height, pixels
const RIGHT = 128; // room for the names of the heads
const BESIDE = 200; // side of the maps below which their titles need the whole width

// As the authors' code: a geometric sequence, extended where the number is no power of two.
function alibiSlopes(n) {
  const power = 2 ** Math.floor(Math.log2(n));
  const slopes = Array.from({ length: power }, (_, i) => 2 ** ((-8 * (i + 1)) / power));
  const extra = Array.from({ length: n - power }, (_, i) => 2 ** ((-4 * (2 * i + 1)) / power));
  return [...slopes, ...extra];
}
const written = (slope) => (Math.abs(1 / slope - Math.round(1 / slope)) < 1e-4 ? `1/${Math.round(1 / slope)}` : slope.toPrecision(3));

// The triangle of one map: scores, minus infinity where a key is not seen.
function unpack(view, scales, index, n) {
  const size = (n * (n + 1)) / 2;
  const start = view.byteOffset + 2 * size * index;
  const levels = new Uint16Array(view.buffer.slice(start, start + 2 * size));
  const [least, step] = [scales[index], scales[scales.length / 2 + index]];
  return Array.from(levels, (level) => (level ? least + (level - 1) * step : -Infinity));
}
const row = (query) => (query * (query + 1)) / 2; // where a query's keys begin

function attention(scores, n, slope, nulls) {
  const found = new Float64Array(scores.length);
  for (let query = 0; query < n; query += 1) {
    const logits = Array.from({ length: query + 1 }, (_, key) => scores[row(query) + key] - slope * (query - key));
    const nullLogit = nulls ? nulls[query] : -Infinity;
    const top = Math.max(nullLogit, ...logits);
    const total = logits.reduce((sum, logit) => sum + Math.exp(logit - top), Math.exp(nullLogit - top));
    logits.forEach((logit, key) => (found[row(query) + key] = Math.exp(logit - top) / total));
  }
  return found;
}

// Of all queries but the first: what the first key gets, and how far they look on average.
function summary(map, n) {
  let [first, far] = [0, 0];
  for (let query = 1; query < n; query += 1) {
    first += map[row(query)] / (n - 1);
    let [sum, total] = [0, 0];
    for (let key = 0; key <= query; key += 1) {
      total += map[row(query) + key];
      sum += map[row(query) + key] * (query - key);
    }
    far += sum / Math.max(total, 1e-12) / (n - 1);
  }
  return { first, far };
}

function render({ model, el }) {
  const get = (name) => model.get(name);
  const put = writer(model);
  const tokens = get("tokens");
  const [n, longest, pairs] = [tokens.length, get("longest"), get("pairs")];
  const scales = floats(get("scales"));
  const nulls = get("nulls")?.byteLength ? floats(get("nulls")) : null;
  const sliders = {
    n_heads: range({ name: "Heads", low: 1, high: 32, say: (i) => `${i}` }, (value) => {
      model.set("head", Math.min(get("head"), value - 1));
      put("n_heads", value);
    }),
    head: range({ name: "Head", role: "sink", low: 0, high: get("n_heads") - 1, say: (i) => `${i}: ${written(alibiSlopes(get("n_heads"))[i])}` }, (value) => put("head", value)),
    distance: range({ name: "Distance", hint: "to the key", role: "evicted", low: 0, high: longest, say: (i) => `${i} tokens` }, (value) => put("distance", value)),
  };
  const toggle = button("Add the bias", () => put("biasing", !get("biasing")));
  const which = choice("Scores of", pairs.map(([layer, head], i) => [i, `layer ${layer}, head ${head}`]), (value) => put("pair", Number(value)));
  const fan = svg("svg", { role: "img" });
  const maps = svg("svg", { role: "img" });
  const live = html("div", { "aria-live": "polite" });
  const root = frame(`ALiBi fan${get("model_name") ? `, scores of ${get("model_name")}` : ""}`,
    html("div", { class: "bench" }, ...Object.values(sliders).map((one) => one.row)), fan,
    html("div", { class: "controls" }, toggle, ...(pairs.length ? [which.row] : [html("span", { class: "soft" }, "All scores are equal: what you see is the bias alone.")])),
    maps, live);
  root.classList.add("teach");

  function drawFan(slopes) {
    const width = Math.max(420, fan.clientWidth || 860);
    const [head, distance] = [get("head"), get("distance")];
    const low = -Math.max(...slopes) * longest;
    const { x, y, parts, floor, top } = chart({ width, height: FAN, right: RIGHT, xs: [0, longest], ys: [low, 0], xname: "distance to the key (tokens)", yname: "bias on the score (nats) = \u2212slope \u00d7 distance" });
    const order = slopes.map((_, i) => i).sort((a, b) => (a === head) - (b === head));
    for (const i of order) {
      const now = i === head;
      parts.push(svg("path", { class: `line ${now ? "thick" : "thin"}`, style: `--stroke: var(--sinkviz-${now ? "sink" : "recent"})`, d: `M${x(0)} ${y(0)}L${x(longest)} ${y(-slopes[i] * longest)}`, "data-slope": slopes[i] }));
    }
    const most = Math.floor((floor - top) / 14);
    const step = Math.ceil(slopes.length / most);
    const named = slopes.map((_, i) => i).filter((i) => i === head || (i % step === 0 && Math.abs(i - head) >= step));
    const ends = named.map((i) => y(-slopes[i] * longest));
    const places = spread(ends, 14, top + 4, floor);
    named.forEach((i, at) => {
      parts.push(svg("path", { class: "axis", d: `M${x(longest) + 2} ${ends[at]}L${x(longest) + 12} ${places[at]}h6` }));
      parts.push(svg("text", { x: x(longest) + 22, y: places[at] + 4, class: i === head ? "strong" : null }, `head ${i}: ${written(slopes[i])}`));
    });
    const bias = -slopes[head] * distance;
    parts.push(svg("path", { class: "now-line", d: `M${x(distance)} ${top}V${floor}`, "stroke-dasharray": "3 3" }));
    parts.push(svg("circle", { cx: x(distance), cy: y(bias), r: 5, class: "is-sink" }));
    const side = distance > longest / 2 ? "end" : "start";
    parts.push(svg("text", { x: x(distance) + (side === "end" ? -9 : 9), y: clamp(y(bias) + 18, top + 30, floor - 8), "text-anchor": side, class: "strong haloed" }, `${signed(bias, 2)} nats: weight \u00d7 ${Math.exp(bias).toPrecision(2)}`));
    fan.setAttribute("height", FAN);
    fan.setAttribute("viewBox", `0 0 ${width} ${FAN}`);
    fan.setAttribute("aria-label", `Bias of ${slopes.length} heads against distance`);
    fan.replaceChildren(...parts);
    return bias;
  }

  function drawMaps(slope) {
    const width = Math.max(420, maps.clientWidth || 860);
    const pair = get("pair");
    const scores = unpack(get("scores"), scales, pair, n);
    const null0 = nulls && nulls.slice(pair * n, (pair + 1) * n);
    const label = Math.min(84, Math.max(22, ...tokens.map((one) => 6 + 6 * Math.min(one.length, 12))));
    const beside = (width - 2 * label - 40) / 2;
    const stacked = beside < BESIDE;
    const side = Math.min(330, stacked ? width - label - 6 : beside);
    const size = side / n;
    const named = size >= 8 && tokens.some((one) => one);
    const parts = [];
    const found = [0, get("biasing") ? slope : 0].map((by, i) => {
      const map = attention(scores, n, by, null0);
      const [left, top] = stacked ? [label, i * (side + 68)] : [label + i * (side + label + 34), 0];
      const title = i === 0 ? (pairs.length ? `layer ${pairs[pair][0]}, head ${pairs[pair][1]}` : "all scores equal") : by ? `with the bias of head ${get("head")}` : "no bias added";
      const { first, far } = summary(map, n);
      parts.push(svg("text", { x: left, y: top + 14, class: "big" }, title));
      parts.push(svg("text", { x: left, y: top + 30 }, `first token ${percent(first)}, ${far.toFixed(1)} tokens back`));
      // The square root of the share, as in the figures: a sink saturates a linear scale.
      parts.push(...triangle(n, size, left, top + 40, "attention", (query, key) => Math.sqrt(map[row(query) + key])));
      for (let at = 0; at < n; at += named ? 1 : 8) {
        const text = named ? (tokens[at].length > 12 ? `${tokens[at].slice(0, 11)}\u2026` : tokens[at]) : at;
        parts.push(svg("text", { x: left - 4, y: top + 40 + (at + 0.5) * size + 3, "text-anchor": "end", class: "small", style: named ? `font-size: ${Math.min(10, size * 1.1)}px` : null }, text));
      }
      parts.push(svg("text", { x: left + side / 2, y: top + 40 + side + 14, "text-anchor": "middle" }, "key \u2192 (queries from top to bottom)"));
      return { first, far };
    });
    const labels = [0, 0.05, 0.2, 0.5, 1].map((share) => [Math.sqrt(share), share]);
    const below = side + (stacked ? side + 68 : 0); // the last map
    parts.push(...colourBar(label, 40 + below + 26, Math.min(220, side, width - label - 212), "attention", labels, "attention (share, square-root scale)"));
    const high = below + 96;
    maps.setAttribute("height", high);
    maps.setAttribute("viewBox", `0 0 ${width} ${high}`);
    maps.setAttribute("aria-label", `Attention without and with the bias: the first token gets ${percent(found[0].first)} and ${percent(found[1].first)}`);
    maps.replaceChildren(...parts);
    return found;
  }

  function draw() {
    const slopes = alibiSlopes(get("n_heads"));
    sliders.head.input.max = slopes.length - 1;
    for (const [name, one] of Object.entries(sliders)) one.show(get(name));
    toggle.setAttribute("aria-pressed", get("biasing"));
    which.select.value = get("pair");
    const head = Math.min(get("head"), slopes.length - 1);
    const bias = drawFan(slopes);
    const [before, after] = drawMaps(slopes[head]);
    live.textContent = `Head ${head}, slope ${written(slopes[head])}: at distance ${get("distance")} the bias is ${signed(bias, 2)} nats. ` +
      `The first token gets ${percent(before.first)} as it is` + (get("biasing") ? `, ${percent(after.first)} with the bias.` : "; no bias is added.");
    root.dataset.first = [before.first, after.first].map((one) => one.toFixed(6)).join(" ");
    root.dataset.far = [before.far, after.far].map((one) => one.toFixed(6)).join(" ");
    root.dataset.drawn = [get("n_heads"), head, get("distance"), get("biasing"), get("pair")].join(" ");
  }
  el.append(root);
  return drawn(model, ["n_heads", "head", "distance", "biasing", "pair"], root, draw);
}

export default { render };
