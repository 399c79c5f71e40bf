// Logits to drag, and the shares of four kinds of softmax below them, in the same columns.

const NAMES = 222; // room for the names of the rows
const [LOGITS, ROW] = [150, 66]; // heights, pixels
const WIDEST = 104; // of a column

// Shares of the keys, where a further logit may take mass to nowhere.
function softmax(logits, nullLogit = -Infinity) {
  const top = Math.max(nullLogit, ...logits);
  const weights = logits.map((logit) => Math.exp(logit - top));
  const total = weights.reduce((sum, weight) => sum + weight, Math.exp(nullLogit - top));
  return weights.map((weight) => weight / total);
}

const VARIANTS = [
  ["Standard", () => "exp l / \u03a3 exp l", (logits) => softmax(logits)],
  ["Off by one", () => "exp l / (1 + \u03a3 exp l)", (logits) => softmax(logits, 0)],
  ["Sink logit", ({ sink }) => `exp l / (exp b + \u03a3 exp l), b = ${signed(sink)}`, (logits, { sink }) => softmax(logits, sink)],
  ["Gated", ({ gate }) => `g \u00b7 standard, g = ${gate.toFixed(2)}`,
    (logits, { gate }) => softmax(logits).map((share) => gate * share)],
];

function render({ model, el }) {
  const get = (name) => model.get(name);
  const put = writer(model);
  const limit = get("limit");
  const sliders = [
    ["sink_logit", range({ name: "Sink logit b", hint: "learned, competes with the keys", role: "evicted", low: -limit, high: limit, step: 0.1, say: (value) => signed(value) }, (value) => put("sink_logit", value))],
    ["gate", range({ name: "Gate g", hint: "factor on what the head puts out", role: "evicted", low: 0, high: 1, step: 0.01, say: (value) => value.toFixed(2) }, (value) => put("gate", value))],
  ];
  const chosen = pressed("Presets", get("presets").map(([name]) => [name, name]), (wanted) => {
    const [, logits, sink, gate] = get("presets").find(([name]) => name === wanted);
    model.set("logits", [...logits]);
    model.set("sink_logit", sink);
    put("gate", gate);
  });
  const picture = svg("svg", { role: "group", "aria-label": "Logits of the keys" });
  const live = html("div", { "aria-live": "polite" });
  const root = frame("Softmax bench", chosen.row,
    html("div", { class: "bench" }, ...sliders.map(([, one]) => one.row)), picture, live);
  root.classList.add("teach");

  const zero = 24 + LOGITS / 2;
  const y = (logit) => zero - (logit / limit) * (LOGITS / 2 - 4);
  const move = (key, logit) => {
    const rounded = Math.round(10 * clamp(logit, -limit, limit)) / 10;
    if (get("logits")[key] !== rounded) put("logits", get("logits").map((old, i) => (i === key ? rounded : old)));
  };
  const KEYS = { ArrowUp: 0.1, ArrowRight: 0.1, ArrowDown: -0.1, ArrowLeft: -0.1, PageUp: 1, PageDown: -1, Home: -1e9, End: 1e9 };

  // The handles stay while all else is drawn anew: one has the focus, or is held by the mouse.
  let handles = [];
  function handle(key) {
    const parts = [svg("rect", { class: "halo", rx: 4 }), svg("rect", {}), svg("circle", { class: "thumb", r: 7 }), svg("text", { "text-anchor": "middle", class: "strong" })];
    const one = svg("g", { role: "slider", tabindex: 0, "aria-label": `Logit of key ${key}`, "aria-orientation": "vertical",
      "aria-valuemin": -limit, "aria-valuemax": limit, "data-lm-suppress-shortcuts": "true" }, ...parts);
    one.addEventListener("keydown", (event) => {
      if (!(event.key in KEYS)) return;
      event.preventDefault();
      move(key, get("logits")[key] + KEYS[event.key]);
    });
    const follow = (event) => {
      const box = picture.getBoundingClientRect();
      move(key, ((zero - (event.clientY - box.top)) / (LOGITS / 2 - 4)) * limit);
    };
    one.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      one.focus({ preventScroll: true });
      one.setPointerCapture(event.pointerId);
      follow(event);
      one.onpointermove = follow;
    });
    one.addEventListener("lostpointercapture", () => (one.onpointermove = null));
    const show = (left, wide, logit) => {
      const [halo, bar, thumb, text] = parts;
      fill(halo, { x: left + 2, y: 20, width: wide - 4, height: LOGITS + 6 }, []);
      fill(bar, { x: left + wide * 0.25, y: Math.min(y(logit), zero), width: wide * 0.5, height: Math.abs(y(logit) - zero), class: key ? "is-kept" : "is-sink" }, []);
      fill(thumb, { cx: left + wide / 2, cy: y(logit) }, []);
      fill(text, { x: left + wide / 2, y: 12 }, []).textContent = signed(logit);
      fill(one, { "aria-valuenow": logit, "aria-valuetext": signed(logit) }, []);
    };
    return { one, show };
  }
  const below = svg("g");

  function draw() {
    const [logits, sink, gate] = [get("logits"), get("sink_logit"), get("gate")];
    const n = logits.length;
    if (handles.length !== n) {
      handles = logits.map((_, key) => handle(key));
      picture.replaceChildren(below, ...handles.map(({ one }) => one));
    }
    const width = Math.max(420, picture.clientWidth || 860);
    const wide = Math.min(WIDEST, (width - NAMES - 24) / (n + 1));
    const at = (key) => NAMES + key * wide + (key === n ? 22 : 0); // a gap before "nowhere"
    handles.forEach(({ show }, key) => show(at(key), wide, logits[key]));
    const end = at(n) + wide;
    const named = (y0, title, formula) => [
      svg("text", { x: 0, y: y0, class: "big" }, title), svg("text", { x: 0, y: y0 + 16 }, formula)];
    const parts = [...named(zero, "Logits", "drag, or use the arrow keys"),
      svg("path", { class: "axis", d: `M${NAMES} ${zero}H${at(n - 1) + wide}` })];
    const floor0 = 24 + LOGITS + 10;
    logits.forEach((_, key) => parts.push(svg("text", { x: at(key) + wide / 2, y: floor0 + 4, "text-anchor": "middle" }, `key ${key}`)));
    parts.push(svg("text", { x: at(n) + wide / 2, y: floor0 + 4, "text-anchor": "middle" }, "nowhere"));
    const lost = VARIANTS.map(([title, formula, compute], row) => {
      const found = compute(logits, { sink, gate });
      const rest = Math.max(0, 1 - found.reduce((sum, share) => sum + share, 0));
      const floor = floor0 + 14 + (row + 1) * ROW;
      parts.push(...named(floor - 22, title, formula({ sink, gate })));
      parts.push(svg("path", { class: "axis", d: `M${NAMES} ${floor}H${end}` }));
      [...found, rest].forEach((share, key) => {
        const high = (ROW - 22) * share;
        const look = key === n ? { class: "is-gone" } : { class: key ? "is-kept" : "is-sink" };
        parts.push(svg("rect", { x: at(key) + wide * 0.16, y: floor - high, width: wide * 0.68, height: high, "data-variant": title, "data-share": share, ...look }));
        if (key === n) parts.push(hatched(at(key) + wide * 0.16, floor - high, wide * 0.68, high));
        parts.push(svg("text", { x: at(key) + wide / 2, y: floor - high - 4, "text-anchor": "middle", class: share >= 0.1 ? "strong" : null }, percent(share)));
      });
      return `${title.toLowerCase()} ${percent(rest)}`;
    });
    below.replaceChildren(...parts);
    const high = floor0 + 22 + VARIANTS.length * ROW;
    picture.setAttribute("height", high);
    picture.setAttribute("viewBox", `0 0 ${width} ${high}`);
    for (const [name, one] of sliders) one.show(get(name));
    const same = get("presets").find(([, ...values]) => String(values) === String([logits, sink, gate]));
    chosen.show(same?.[0]);
    live.textContent = `Goes nowhere: ${lost.join(", ")}.`;
    root.dataset.drawn = [...logits, sink, gate].join(" ");
  }
  el.append(root);
  return drawn(model, ["logits", "sink_logit", "gate"], root, draw);
}

export default { render };
