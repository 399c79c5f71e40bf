// Which tokens a policy holds, step by step. A token's step of eviction says all about it.

const MARGIN = 96; // room for the names of the rows
const [WIDEST, HIGH] = [44, 28]; // a cell, pixels
const SPEEDS = [[1, "1 step/s"], [2, "2 steps/s"], [5, "5 steps/s"], [10, "10 steps/s"]];

// Places of `n` things in a row: all of them, or the first few and those around `at`.
function places(n, at, first, most) {
  if (n <= most) return { x: (i) => i, shown: [...Array(n).keys()], gap: null };
  const head = Math.min(Math.max(first, 1), Math.floor(most / 3));
  const tail = most - head - 2;
  const start = clamp(at + 3 - tail, head, n - tail);
  const range = [...Array(tail).keys()].map((i) => start + i);
  const wide = start > head ? 2 : 0;
  return {
    x: (i) => (i < head ? i : i >= start && i < start + tail ? head + wide + i - start : null),
    shown: [...Array(head).keys(), ...range],
    gap: wide ? { at: head, from: head, to: start } : null,
  };
}

function render({ model, el }) {
  const get = (name) => model.get(name);
  const put = writer(model);
  const gone = floats(get("gone"));
  const [n, tokens, nSink] = [gone.length, get("tokens"), get("n_sink")];
  const [TEXT, CACHE] = tokens.some((one) => one) ? [74, 176] : [18, 120]; // where the rows lie
  const kept = (step) => [...Array(step).keys()].filter((i) => gone[i] > step);
  const named = (i) => (tokens[i] ? `${i} \u201c${tokens[i]}\u201d` : `${i}`);
  const go = (step) => put("step", clamp(step, 1, n));

  let timer = 0;
  let pace = 2;
  const play = button("Play", () => (timer ? pause() : start()), "play");
  const speed = choice("Speed", SPEEDS, (value) => {
    pace = Number(value);
    if (timer) start();
  });
  speed.select.value = pace;
  function pause() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  }
  function start() {
    pause();
    if (get("step") >= n) go(1);
    play.textContent = "Pause";
    timer = setInterval(() => (get("step") < n ? go(get("step") + 1) : pause()), 1000 / pace);
  }
  const by = (steps) => () => {
    pause();
    go(get("step") + steps);
  };
  const [back, next] = [button("Back", by(-1)), button("Step", by(1))];
  const scrub = range({ name: "Step", hint: "tokens read so far", low: 1, high: n, say: (i) => `${i} of ${n}` }, (step) => {
    pause();
    go(step);
  });
  const picture = svg("svg", { role: "img" });
  const facts = html("div", { class: "facts" });
  const live = html("div", { "aria-live": "polite" });
  const root = frame(`Cache player: ${get("name")}, a text of ${n} tokens`,
    html("div", { class: "heading" }, get("name")),
    html("div", { class: "controls" }, play, back, next, speed.row),
    html("div", { class: "bench" }, scrub.row), picture, legendOf(nSink), facts, live);
  root.classList.add("teach");

  function heading(top, title, ...more) {
    return [
      svg("text", { x: 0, y: top + 13, class: "big" }, title),
      ...more.map((text, i) => svg("text", { x: 0, y: top + 26 + 12 * i, class: "small" }, text)),
    ];
  }

  function draw() {
    const step = get("step");
    const held = kept(step);
    const width = Math.max(320, picture.clientWidth || 860);
    const slots = get("cache_size") || n;
    const room = width - MARGIN - 4;
    const cell = clamp(room / n, 6.5 * String(n - 1).length + 6, WIDEST); // as wide as its number
    const most = Math.floor(room / cell);
    const text = places(n, step - 1, nSink, most);
    const cache = places(Math.min(slots, n), held.length - 1, nSink, most);
    const at = (i) => MARGIN + i * cell;
    const seen = get("positions") === "text" ? (rank) => held[rank] : (rank) => rank;
    const letter = (x, y, label, down) => svg("text", {
      x: 0, y: 0, class: "small ink", transform: `translate(${x} ${y}) rotate(${down ? 48 : -48})`,
    }, label.length > 10 ? `${label.slice(0, 9)}\u2026` : label);
    const parts = [
      ...heading(TEXT, "Text", "its position", "in the text"),
      ...heading(CACHE, "Cache", "the position", "the model sees")];
    // Lines first, so that cells lie on top of them.
    held.forEach((position, rank) => {
      const [from, to] = [text.x(position), cache.x(rank)];
      if (from === null || to === null) return;
      const [a, b] = [at(from) + cell / 2, at(to) + cell / 2];
      parts.push(svg("path", { class: `link ${position < nSink ? "sink" : "kept"}`, d: `M${a} ${TEXT + HIGH}C${a} ${CACHE - 34} ${b} ${TEXT + HIGH + 34} ${b} ${CACHE}` }));
    });
    const box = (x, y, kind, more = {}) => svg("rect", { x: at(x) + 1, y, width: cell - 2, height: HIGH, rx: 2, class: kind, ...more });
    const numeral = (x, y, value, kind) => svg("text", { x: at(x) + cell / 2, y: y + 18, "text-anchor": "middle", class: `small ${kind}` }, value);
    for (const i of text.shown) {
      const x = text.x(i);
      const inside = i < step && gone[i] > step;
      const kind = i >= step ? "is-next" : !inside ? "is-gone" : i < nSink ? "is-sink" : "is-kept";
      parts.push(box(x, TEXT, kind, { "data-position": i }));
      if (kind === "is-gone") parts.push(hatched(at(x) + 1, TEXT, cell - 2, HIGH));
      parts.push(numeral(x, TEXT, i, { "is-sink": "on-sink", "is-kept": "on-recent" }[kind] ?? kind));
      if (tokens[i] && i < step) parts.push(letter(at(x) + cell / 2, TEXT - 7, tokens[i]));
      if (i === step - 1) parts.push(box(x, TEXT, "ring"), svg("text", { x: at(x) + cell / 2, y: TEXT + HIGH + 12, "text-anchor": "middle", class: "small strong" }, "new"));
      if (gone[i] === step) parts.push(box(x, TEXT, "ring leaves"), svg("text", { x: at(x) + cell / 2, y: TEXT + HIGH + 12, "text-anchor": "middle", class: "small strong" }, "leaves"));
    }
    for (const rank of cache.shown) {
      const [x, position] = [cache.x(rank), held[rank]];
      const filled = rank < held.length;
      parts.push(box(x, CACHE, !filled ? "is-free" : position < nSink ? "is-sink" : "is-kept", { "data-slot": filled ? position : null }));
      if (!filled) continue;
      parts.push(numeral(x, CACHE, seen(rank), position < nSink ? "on-sink" : "on-recent"));
      if (tokens[position]) parts.push(letter(at(x) + cell / 2 - 2, CACHE + HIGH + 12, tokens[position], true));
    }
    for (const [found, y, unit] of [[text.gap, TEXT, (i) => gone[i] > step], [cache.gap, CACHE, () => true]]) {
      if (!found) continue;
      const hidden = [...Array(found.to - found.from).keys()].map((i) => i + found.from);
      parts.push(svg("text", { x: at(found.at + 1), y: y + 12, "text-anchor": "middle" }, "\u2026"));
      parts.push(svg("text", { x: at(found.at + 1), y: y + 24, "text-anchor": "middle", class: "small" }, hidden.filter(unit).length ? `+${hidden.filter(unit).length}` : ""));
    }
    const high = CACHE + HIGH + (tokens.some((one) => one) ? 66 : 16);
    picture.setAttribute("height", high);
    picture.setAttribute("viewBox", `0 0 ${width} ${high}`);
    const leaves = [...gone.keys()].filter((i) => gone[i] === step);
    picture.setAttribute("aria-label", `Held: text positions ${held.join(", ")}`);
    picture.replaceChildren(...parts);
    const [first, far] = [held[0] === 0, held.length - 1];
    const fact = (value, what) => html("span", {}, html("b", {}, value), what);
    facts.replaceChildren(
      fact(get("cache_size") ? `${held.length} / ${slots}` : `${held.length}`, get("cache_size") ? "cache places filled" : "tokens held, without limit"),
      fact(step - held.length, "tokens evicted so far"),
      first ? fact(`${step - 1} \u2192 ${seen(far) - seen(0)}`, "tokens back to the first one: in the text \u2192 as the model sees it")
        : fact(DASH, "the first token is gone"));
    const into = get("recompute") ? "The window is run afresh, at positions from 0 on." : "";
    live.textContent = [`Step ${step}: token ${named(step - 1)} comes in`,
      leaves.length ? `; ${leaves.map(named).join(", ")} leaves. ` : "; nothing leaves. ",
      `${held.length} held. ${into}`].join("");
    scrub.show(step);
    back.disabled = step <= 1;
    next.disabled = step >= n;
    root.dataset.drawn = step;
  }
  el.append(root);
  const stop = drawn(model, ["step"], root, draw);
  return () => {
    pause();
    stop();
  };
}

function legendOf(nSink) {
  const known = [[nSink, "sink", "sink, never evicted"], [1, "recent", "held"], [1, "middle", "evicted"]];
  return html("ul", { class: "legend", "aria-hidden": "true" }, ...known.filter(([any]) => any).map(([, role, text]) =>
    html("li", {}, html("i", { class: `fill-${role}` }), text)));
}

export default { render };
