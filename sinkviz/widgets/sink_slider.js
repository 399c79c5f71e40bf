// Two native range inputs, and the answer to their setting. Everything is drawn from traits.

const RIGHT = 128; // room for the names of the curves
const LEFT = 44;
const HEIGHT = 230;
const NAMES = { sink: "sinks", recent: "recent", self: "the token itself", middle: "middle", null: "nowhere (null)" };
const tokens = (n) => `${n} token${n === 1 ? "" : "s"}`;
const kind = (nSink) => (nSink ? "sinkwindow" : "window");
const label = ([nSink, nRecent]) => (nSink ? `${nSink}+${nRecent}` : `window ${nRecent}`);

// A page carries the answers to some settings; its slider moves from one of these stops to the next.
function slider(model, name, role, title, hint, low, high, stops = null) {
  const id = unique(name);
  const [first, last] = stops ? [0, stops.length - 1] : [low, high];
  const input = control("input", { id, type: "range", min: first, max: last, step: 1 });
  input.disabled = first === last;
  const output = html("output", { for: id });
  const value = () => (stops ? stops[input.value] : Number(input.value));
  const show = () => {
    output.textContent = value();
    input.style.setProperty("--fill", `${(100 * (input.value - first)) / Math.max(1, last - first)}%`);
    input.setAttribute("aria-valuetext", tokens(value()));
  };
  const read = () => {
    input.value = stops ? stops.indexOf(model.get(name)) : model.get(name);
    show();
  };
  const row = html(
    "div",
    { class: "slider", style: `--role: var(--sinkviz-${role})` },
    html("label", { for: id }, html("b", {}, title), html("span", { class: "soft" }, ` ${hint}`)),
    input,
    output,
  );
  return { row, input, read, show, value };
}

// The nll curves. Fixed limits, so that a curve that rises is a curve that rises.
function drawCurves(plot, get) {
  const width = Math.max(360, plot.clientWidth || 720);
  const n = get("n_tokens");
  const [low, high] = get("limits");
  const room = Math.max(high - low, 0.1);
  const bottom = HEIGHT - 34;
  const x = (i) => LEFT + ((width - LEFT - RIGHT) * i) / n;
  const y = (v) => 26 + ((bottom - 26) * (high + 0.06 * room - v)) / (1.12 * room);
  const inside = (v) => y(Math.min(Math.max(v, low - 0.06 * room), high + 0.06 * room));
  const parts = [svg("path", { class: "axis", d: `M${LEFT} 26V${bottom}H${width - RIGHT}` })];
  for (const [at, text] of ticks(0, n, 6)) {
    parts.push(svg("text", { x: x(at), y: bottom + 15, "text-anchor": "middle" }, text));
  }
  for (const [at, text] of ticks(low, high, 5)) {
    parts.push(svg("path", { class: "axis", d: `M${LEFT - 4} ${y(at)}h4` }));
    parts.push(svg("text", { x: LEFT - 7, y: y(at) + 4, "text-anchor": "end" }, text));
  }
  parts.push(svg("text", { x: x(n / 2), y: HEIGHT - 3, "text-anchor": "middle" }, "text position (tokens)"));
  parts.push(svg("text", { x: 2, y: 11 }, `nll (nats per token), mean of the last ${get("window")} tokens`));
  const size = get("shown")[0] + get("shown")[1];
  const events = [[size, `first eviction (${size})`], [get("train_length"), `training length (${get("train_length")})`]];
  events.filter(([at]) => at > 0 && at < n).sort((a, b) => a[0] - b[0]).forEach(([at, text], row) => {
    parts.push(svg("path", { class: "event", d: `M${x(at)} 18V${bottom}` }));
    parts.push(svg("text", { x: x(at) + 4, y: 28 + 14 * row }, text));
  });
  const isFirst = String(get("shown")) === String(get("first"));
  const curves = [
    ["dense", floats(get("dense_curve")), "Dense"],
    [`${kind(get("first")[0])} ghost`, isFirst ? [] : floats(get("first_curve")), `${label(get("first"))} (start)`],
    [`${kind(get("shown")[0])} now`, floats(get("curve")), label(get("shown"))],
  ].filter(([, values]) => values.length);
  const ends = curves.map(([, values]) => inside(values[values.length - 1]));
  const places = spread(ends, 15, 20, bottom);
  curves.forEach(([name, values, text], i) => {
    const at = (i) => x(n - 1 - (values.length - 1 - i) * get("every"));
    parts.push(svg("path", { class: `curve ${name}`, d: path(values, at, inside) }));
    const end = x(n - 1);
    parts.push(svg("path", { class: `curve ${name}`, d: `M${end + 1} ${ends[i]}L${end + 10} ${places[i]}h8` }));
    const weight = name.includes("now") ? "strong" : null;
    parts.push(svg("text", { x: end + 22, y: places[i] + 4, class: weight }, text));
  });
  plot.setAttribute("height", HEIGHT);
  plot.setAttribute("aria-label", `nll along the text: ${curves.map((c) => c[2]).join(", ")}`);
  plot.replaceChildren(...parts);
}

function drawSeen(plot, get) {
  const values = [...floats(get("seen"))];
  const width = Math.max(260, plot.clientWidth || 340);
  const step = width / values.length;
  const most = Math.max(...values.filter(Number.isFinite));
  const now = get("shown")[0];
  const parts = values.flatMap((value, nSink) => {
    const known = Number.isFinite(value);
    const height = known ? Math.max(2, (58 * value) / most) : 58;
    const middle = (nSink + 0.5) * step;
    const box = { x: middle - 0.36 * step, width: 0.72 * step, y: 74 - height, height };
    const mark = nSink === now ? "strong" : null;
    return [
      svg("rect", { ...box, class: known ? `bar ${kind(nSink)}${mark ? " now" : ""}` : "slot" }),
      svg("text", { x: middle, y: 70 - height, "text-anchor": "middle", class: mark }, known ? number(value) : ""),
      svg("text", { x: middle, y: 89, "text-anchor": "middle", class: mark }, nSink),
    ];
  });
  const said = values.map((v, i) => [v, i]).filter(([v]) => Number.isFinite(v));
  plot.setAttribute("height", 94);
  plot.setAttribute("aria-label", said.map(([v, i]) => `${tokens(i)}: ${number(v)}`).join("; "));
  plot.replaceChildren(...parts);
}

function drawMass(stack, legend, get) {
  const shares = [...floats(get("mass"))];
  const roles = get("roles").map((role, i) => [role, shares[i]]).filter(([, share]) => share >= 0.0005);
  const fill = ([role, share]) => html("div", { class: `fill-${role}`, style: `width: ${100 * share}%` });
  stack.replaceChildren(...roles.map(fill));
  stack.setAttribute("aria-label", roles.map(([role, share]) => `${NAMES[role]} ${percent(share)}`).join(", "));
  legend.replaceChildren(
    ...roles.map(([role, share]) => html("li", {}, html("i", { class: `fill-${role}` }), `${NAMES[role]} ${percent(share)}`)),
  );
  return shares[get("roles").indexOf("sink")];
}

// Stands in for the kernel in a page: the answers were computed before.
function answerByHeart(model) {
  const answer = () => {
    const setting = [model.get("n_sink"), model.get("n_recent")];
    for (const [name, value] of Object.entries(model.get("frames")[setting.join("+")])) model.set(name, value);
    model.set("shown", setting);
  };
  model.on("change:n_sink", answer);
  model.on("change:n_recent", answer);
}

function render({ model, el }) {
  const get = (name) => model.get(name);
  const stops = get("stops");
  if (get("offline")) answerByHeart(model);
  const sliders = [
    slider(model, "n_sink", "sink", "Sinks", "first tokens, never evicted", 0, get("max_sink")),
    slider(model, "n_recent", "recent", "Recent", "latest tokens kept, the current one included", 1, get("max_recent"), stops),
  ];
  const figure = html("strong");
  const caption = html("span");
  const hint = html("small");
  const curves = svg("svg", { role: "img" });
  const stack = html("div", { class: "stack", role: "img" });
  const legend = html("ul", { class: "legend", "aria-hidden": "true" });
  const seen = svg("svg", { role: "img" });
  const seenTitle = html("h4");
  const error = html("div", { class: "error", role: "alert" });
  const live = html("div", { "aria-live": "polite" });
  const body = html(
    "div",
    {},
    html("div", { class: "top" },
      html("div", { class: "sliders" }, ...sliders.map((one) => one.row)),
      html("div", { class: "verdict" }, caption, figure, hint)),
    error,
    html("div", { class: "plot" }, curves),
    html("div", { class: "below" },
      html("div", {}, html("h4", {}, "Where the attention goes"), stack, legend),
      html("div", {}, seenTitle, seen)),
    ...(stops ? [html("small", {}, `Computed beforehand: every number of sinks, for ${stops.join(", ")} recent tokens.`)] : []),
    live,
  );
  const root = frame(`Sink slider: ${get("lm_name")}, a text of ${tokens(get("n_tokens"))}`, body);

  const settled = () => get("shown")[0] === get("n_sink") && get("shown")[1] === get("n_recent");
  function draw() {
    const [nSink, nRecent] = get("shown");
    error.textContent = get("error");
    figure.textContent = number(get("perplexity") ?? NaN);
    caption.textContent = get("start") ? "Perplexity after eviction" : "Perplexity of the whole text";
    hint.textContent = get("start")
      ? `from token ${get("start")} on \u00b7 ${tokens(nSink + nRecent)} in the cache`
      : "the text is too short for eviction";
    seenTitle.textContent = `Perplexity by number of sinks, recent = ${nRecent}`;
    drawCurves(curves, get);
    drawSeen(seen, get);
    const share = drawMass(stack, legend, get);
    live.textContent =
      `${tokens(nSink)} as sinks, ${count(nRecent)} recent: perplexity ${number(get("perplexity") ?? NaN)}` +
      (nSink ? `, the sinks take ${percent(share)} of the attention.` : ", nothing is kept but the window.");
    body.classList.toggle("busy", !settled() && !get("error"));
    root.dataset.drawn = `${nSink}+${nRecent}`;
  }
  // The widget manager itself holds further settings back while the kernel works on one, and
  // then sends the newest.
  for (const { input, show, value } of sliders) {
    input.addEventListener("input", () => {
      show();
      model.set(input === sliders[0].input ? "n_sink" : "n_recent", value());
      body.classList.toggle("busy", !settled());
      model.save_changes();
    });
  }
  sliders.forEach((one) => one.read());
  const listeners = [["change:n_sink", sliders[0].read], ["change:n_recent", sliders[1].read], ["change:shown", draw], ["change:error", draw]];
  for (const [event, act] of listeners) model.on(event, act);
  el.append(root);
  draw();
  const resized = new ResizeObserver(draw);
  resized.observe(root);
  return () => {
    resized.disconnect();
    for (const [event, act] of listeners) model.off(event, act);
  };
}

export default { render };
