// Puts grid, map and text together. What is pinned and chosen lives in traits; what is under the
// pointer lives here, in each view.

const LEAST_SPAN = 8;

export default () => {
  let store = null;

  function initialize({ model }) {
    store = mapStore(model);
  }

  function render({ model, el }) {
    const get = (name) => model.get(name);
    const put = (values) => {
      for (const [name, value] of Object.entries(values)) model.set(name, value);
      soon();
      model.save_changes();
    };
    const push = (text, act, attributes = {}) => {
      const made = control("button", { type: "button", ...attributes }, text);
      made.addEventListener("click", act);
      return made;
    };
    const n = get("n_tokens");
    const colours = bytesOf(get("colours"));
    const shares = floats(get("shares"));
    let palette = null;
    let pointed = null; // the cell of the map under the pointer or the keyboard's cross
    let hovered = null; // the token under the pointer
    let box = null;
    let frame_ = 0;
    let found = [];
    let at = -1;
    let spoken = "";

    // The parts ---------------------------------------------------------------------------------
    const pin = (token) => {
      put({ token });
      if (token !== null) follow(token);
    };
    const grid = headGrid(store, get, (layer, head) => put({ layer, head }));
    const map = mapView(store, get);
    const text = tokenLine(store, get, { pin, hover: (token) => ((hovered = token), soon()) });
    const ids = [unique("sink"), unique("gamma"), unique("search")];
    const sink = control("input", { id: ids[0], type: "checkbox" });
    const gamma = control("input", { id: ids[1], type: "range", min: 0.2, max: 1, step: 0.05 });
    const gammaSaid = html("output", { for: ids[1] });
    const query = control("input", { id: ids[2], type: "search", placeholder: "token or words", autocomplete: "off", spellcheck: "false" });
    const hits = html("span", { class: "soft hits" });
    const ways = [["keys", "what it reads"], ["queries", "who reads it"]].map(([way, said]) => [way, push(said, () => put({ way }))]);
    const zooms = [push("\u2212", () => zoom(2), { "aria-label": "Zoom out" }), push("+", () => zoom(0.5), { "aria-label": "Zoom in" }), push("Whole text", () => put({ view: [0, 0, n] }))];
    const title = html("h4");
    const verdict = html("p", { class: "verdict-line" });
    const caption = html("small");
    const readout = html("div", { class: "readout" });
    const about = html("span", { class: "about" });
    const error = html("div", { class: "error", role: "alert" });
    const live = html("div", { "aria-live": "polite", class: "live" });
    const root = frame(
      `Attention explorer: ${get("name")}, ${count(n)} tokens, ${get("n_layers")} layers by ${get("n_heads")} heads`,
      html("div", { class: "controls tools" },
        html("label", { for: ids[0], class: "check" }, sink, "Sink column"),
        html("label", { for: ids[1] }, "Scale", gamma, gammaSaid),
        html("label", { for: ids[2] }, "Search", query), hits,
        html("span", { class: "zooms", role: "group", "aria-label": "Zoom" }, ...zooms)),
      error,
      html("div", { class: "panes" },
        html("div", { class: "pane small" }, html("h4", {}, "Layers (down) and heads (across)"), grid.root, html("small", {}, "orange bar: share of the sink"),
          html("div", { class: "who" }, about,
            html("span", { class: "zooms", role: "group", "aria-label": "Direction" }, ...ways.map(([, one]) => one))),
          text.strongest),
        html("div", { class: "pane large" }, title, verdict, map.root, readout, caption)),
      html("div", { class: "reading" }, html("h4", {}, "Text"), text.where, text.box),
      live,
    );
    root.classList.add("explorer");

    // Moving ------------------------------------------------------------------------------------
    const clampView = ([q, k, span]) => {
      const size = Math.min(Math.max(span, Math.min(LEAST_SPAN, n)), n);
      return [q, k].map((from) => Math.min(Math.max(from, 0), n - size)).concat(size);
    };
    function zoom(factor, about_) {
      const [q, k, span] = get("view");
      const token = get("token");
      const centre = about_ ?? pointed ?? { query: token ?? q + span / 2, key: token ?? k + span / 2 };
      const [row, column] = [Math.min(Math.max(centre.query, q), q + span), Math.min(Math.max(centre.key, k), k + span)];
      put({ view: clampView([row - (row - q) * factor, column - (column - k) * factor, span * factor]) });
    }
    // Bring a token into the window: its row, or its column.
    function follow(token) {
      const [q, k, span] = get("view");
      const inside = (from) => token >= from && token < from + span;
      const from = get("way") === "keys" ? q : k;
      if (!inside(from)) {
        const moved = token - span / 2;
        put({ view: clampView(get("way") === "keys" ? [moved, Math.min(k, moved), span] : [Math.max(q, moved), moved, span]) });
      }
    }
    map.root.addEventListener("keydown", (event) => {
      const step = map.level(get("layer"), get("head")) || 1;
      const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      const [q, k, span] = get("view");
      const bound = (value) => Math.min(Math.max(value, 0), n - 1);
      if (moves[event.key]) {
        const from = pointed ?? { query: get("token") ?? Math.floor(q + span / 2), key: get("token") ?? Math.floor(k) };
        const by = event.shiftKey ? 10 * step : step;
        pointed = { query: bound(from.query + by * moves[event.key][0]), key: bound(from.key + by * moves[event.key][1]), byKey: true };
        const moved = [[pointed.query, q], [pointed.key, k]].map(([one, first]) => (one < first ? one : one >= first + span ? one - span + step : first));
        if (moved[0] !== q || moved[1] !== k) put({ view: clampView([...moved, span]) });
      } else if (event.key === "+" || event.key === "=") zoom(0.5);
      else if (event.key === "-") zoom(2);
      else if (event.key === "0") put({ view: [0, 0, n] });
      else if (event.key === "Escape") {
        pointed = null;
        pin(null);
      } else if ((event.key === "Enter" || event.key === " ") && pointed) pin(get("way") === "keys" ? pointed.query : pointed.key);
      else return;
      event.preventDefault();
      soon();
    });
    let from = null;
    map.root.addEventListener("pointerdown", (event) => {
      if (event.button || !map.at(event)) return;
      from = { x: event.clientX, y: event.clientY, at: map.at(event) };
      map.root.setPointerCapture(event.pointerId);
    });
    map.root.addEventListener("pointermove", (event) => {
      const here = map.at(event);
      pointed = here && { query: Math.floor(here.query), key: Math.floor(here.key) };
      if (from) {
        const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
        const size = Math.max(Math.abs(dx), Math.abs(dy));
        const bounds = map.root.getBoundingClientRect();
        const corner = [dx < 0 ? from.x - size : from.x, dy < 0 ? from.y - size : from.y];
        box = size > 6 ? [corner[0] - bounds.left, corner[1] - bounds.top, size, size] : null;
      }
      soon();
    });
    map.root.addEventListener("pointerup", () => {
      if (!from) return;
      if (box) {
        const scale = get("view")[2] / map.side();
        const [q, k] = get("view");
        put({ view: clampView([q + (box[1] - OVER_MAP) * scale, k + (box[0] - LEFT_OF_MAP) * scale, box[2] * scale]) });
      } else {
        const token = Math.floor(get("way") === "keys" ? from.at.query : from.at.key);
        put({ token: token === get("token") ? null : token });
      }
      from = box = null;
    });
    map.root.addEventListener("pointercancel", () => (from = box = null));
    map.root.addEventListener("pointerleave", () => ((pointed = null), soon()));
    map.root.addEventListener("dblclick", () => put({ view: [0, 0, n], token: null }));
    // Only where the page would not scroll: with the key that zooms, or by pinching.
    map.root.addEventListener("wheel", (event) => {
      const here = map.at(event);
      if (!here || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      zoom(1.0015 ** event.deltaY, here);
    }, { passive: false });

    sink.addEventListener("change", () => put({ sink: sink.checked }));
    gamma.addEventListener("input", () => put({ gamma: Number(gamma.value) }));
    function seek() {
      found = search(store.tokens() ?? [], query.value);
      at = -1;
      text.matches = found.flat();
      hits.textContent = query.value ? `${count(found.length)} found` : "";
      soon();
    }
    query.addEventListener("input", seek);
    query.addEventListener("keydown", (event) => {
      if (event.key === "Escape") query.value = "";
      if (event.key !== "Enter") return;
      if (!found.length) seek();
      if (!found.length) return;
      at = (at + (event.shiftKey ? -1 : 1) + found.length) % found.length;
      hits.textContent = `${count(at + 1)} of ${count(found.length)}`;
      pin(found[at][0]);
    });

    // Drawing -----------------------------------------------------------------------------------
    const named = (token) => {
      const tokens = store.tokens();
      return tokens ? `${count(token)} \u201c${tokens[token].trim() || tokens[token]}\u201d` : `${count(token)}`;
    };
    const whom = () => (get("n_sink") === 1 ? "the first token takes" : `the first ${get("n_sink")} tokens take`);
    function words(token, line, rest) {
      const value = shares[get("layer") * get("n_heads") + get("head")];
      title.textContent = `Layer ${get("layer")}, head ${get("head")}`;
      verdict.textContent = !Number.isFinite(value) ? "" : rest
        ? `${whom()} ${share(value)}; this is the other ${share(1 - value)}, each row rescaled to one`
        : `${whom()} ${share(value)} of the attention, mean over queries`;
      const cell = map.level(get("layer"), get("head"));
      const finest = store.finest(get("layer"), get("head"));
      const [alone, held] = [store.silent(), get("thumb_cell")];
      const notes = [];
      const cellOf = (size) => `a cell is the largest of ${size} \u00d7 ${size} tokens`;
      if (!finest) notes.push("The trace kept no map of this head.");
      else if (alone === "page" && held > 1) notes.push(`In this page ${cellOf(held)}.`);
      else if (finest > 1) notes.push(`The trace kept pooled maps: ${cellOf(finest)}${rest ? ", the sink\u2019s cells taken out" : ""}.`);
      else if (cell > 1) notes.push(`Seen from here ${cellOf(cell)}; zoom in for each.`);
      if (alone === "silent") notes.push("No kernel answers: a coarse picture.");
      caption.textContent = notes.join(" ") + (notes.length ? " " : "") + "Drag a box to zoom, click to pin, double-click for the whole.";
      const pinned = get("token");
      about.textContent = token === null ? "Point at a token or a cell, or pin one, to see what it reads." : `Token ${named(token)}${token === pinned ? ", pinned" : ""}: `;
      if (pointed && pointed.key <= pointed.query) {
        const row = store.line(get("layer"), get("head"), pointed.query, "keys", rest);
        const [coarse, size] = row?.exact && row.cell === 1 ? [row.values[pointed.key], 1] : store.share(get("layer"), get("head"), rest, pointed.query, pointed.key);
        readout.textContent = `query ${named(pointed.query)} reads key ${named(pointed.key)}: ${coarse === null ? "\u2013" : percents(coarse)}${size > 1 ? ` at most (${size} \u00d7 ${size} tokens)` : ""}`;
      } else readout.textContent = pointed ? `query ${named(pointed.query)} comes before key ${named(pointed.key)} and cannot see it` : "\u00a0";
      speak(pinned, line, value, rest);
    }
    // A screen reader hears of what was chosen or pinned, and of the cross that keys move.
    function speak(pinned, line, value, rest) {
      const here = `Layer ${get("layer")}, head ${get("head")}${rest ? " without the sink" : ""}${Number.isFinite(value) ? `, ${whom()} ${share(value)}` : ""}.`;
      let more = "";
      if (pointed?.byKey) more = ` ${readout.textContent}.`;
      else if (pinned !== null && line && hovered === null) {
        const best = [...line.values.keys()].sort((a, b) => line.values[b] - line.values[a]).slice(0, 3).filter((i) => line.values[i] > 0.0005);
        const list = best.map((i) => `${named(i * line.cell)} ${percents(line.values[i])}`).join(", ");
        more = ` Token ${named(pinned)} ${get("way") === "keys" ? "reads" : "is read by"} ${list || "nobody"}.`;
      } else if (pinned !== null && spoken) return;
      if (here + more !== spoken) live.textContent = spoken = here + more;
    }
    function draw() {
      frame_ = 0;
      if (!root.isConnected) return; // it has no width and no colours yet; the observer will tell
      const rest = !get("sink");
      const dark = isDark(root);
      const id = `${get("gamma")}${dark}`;
      if (palette?.id !== id) palette = paletteOf(colours, get("gamma"), dark);
      root.style.setProperty("--sinkviz-paper-ink", dark ? "#111" : "#fff");
      const unknown = !Number.isFinite(shares[0]);
      sink.checked = get("sink");
      sink.disabled = unknown;
      gamma.value = get("gamma");
      gammaSaid.textContent = `share^${get("gamma").toFixed(2)}`;
      gamma.setAttribute("aria-valuetext", `power ${get("gamma").toFixed(2)}`);
      for (const [way, one] of ways) one.setAttribute("aria-pressed", way === get("way"));
      zooms[0].disabled = get("view")[2] >= n;
      zooms[1].disabled = get("view")[2] <= Math.min(LEAST_SPAN, n);
      error.textContent = get("error");
      grid.draw(palette);
      grid.frameOf(get("view"), n);
      const state = map.draw(palette);
      const way = get("way");
      const token = hovered ?? (pointed && pointed.key <= pointed.query ? (way === "keys" ? pointed.query : pointed.key) : null) ?? get("token");
      const line = token === null ? null : store.line(get("layer"), get("head"), token, way, rest);
      map.mark({ token, way, cell: pointed, box });
      text.draw({ token, line, way, palette, from: get("view")[1] });
      words(token, line, rest);
      map.root.setAttribute("aria-label", `${title.textContent}: ${verdict.textContent}`);
      root.dataset.cell = state;
      root.dataset.line = line?.exact ? `${token}` : "";
      root.dataset.drawn = `${get("layer")}.${get("head")}`;
    }
    const soon = () => (frame_ ||= requestAnimationFrame(draw));
    const listened = "layer head sink gamma token way view error".split(" ").map((name) => `change:${name}`);
    for (const event of listened) model.on(event, soon);
    store.views.add(soon);
    el.append(root);
    soon();
    const away = onTheme(() => setTimeout(soon, 60));
    const resized = new ResizeObserver(soon);
    resized.observe(root);
    return () => {
      resized.disconnect();
      away();
      cancelAnimationFrame(frame_);
      store.views.delete(soon);
      for (const event of listened) model.off(event, soon);
    };
  }
  return { initialize, render };
};
