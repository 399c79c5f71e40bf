// Puts grid, map and text together. What is pinned and chosen lives in traits; what is under the
// pointer lives here, in each view.

const QUIET = 250; // milliseconds without a move, then neighbours are fetched
const DWELL = 60; // milliseconds of the pointer on a head, then that one is

export default () => {
  let store = null;

  function initialize({ model }) {
    store = mapStore(model);
  }

  function render({ model, el }) {
    const get = (name) => model.get(name);
    const without = () => (get("show_sinks") ? [] : get("sinks"));
    const put = (values) => {
      for (const [name, value] of Object.entries(values)) model.set(name, value);
      soon();
      // Tiles first: the kernel answers in order, and the new setting can wait for the picture.
      if (map.side()) map.expect(get("layer"), get("head"), without());
      model.save_changes();
    };
    const push = (text, act, attributes = {}) => {
      const made = control("button", { type: "button", ...attributes }, text);
      made.addEventListener("click", act);
      return made;
    };
    const n = get("n_tokens");
    const colours = bytesOf(get("colours"));
    let palette = null;
    let hovered = null; // the token under the pointer
    let frame_ = 0;
    let [dwelling, resting] = [0, 0];
    let found = [];
    let at = -1;
    let spoken = "";

    // The parts ---------------------------------------------------------------------------------
    const pin = (token) => {
      put({ token });
      if (token !== null) moves.follow(token);
    };
    // Whatever may be wanted next, one head at a time: what is wanted now never waits for more.
    const ahead = () => grid.neighbours().find(([layer, head]) => map.expect(layer, head, without()));
    const map = mapView(store, get);
    const grid = headGrid(store, get, {
      choose: (layer, head) => put({ layer, head }),
      expect(layer, head) {
        clearTimeout(dwelling);
        dwelling = setTimeout(() => map.expect(layer, head, without()), DWELL);
      },
    });
    const text = tokenLine(store, get, { pin, hover: (token) => ((hovered = token), soon()) });
    const words = explorerWords(store, get, map);
    const moves = mapMoves(map, get, put, pin, () => soon());
    const ids = [unique("sink"), unique("gamma"), unique("search")];
    const shown = control("input", { id: ids[0], type: "checkbox" });
    const shownName = html("span");
    const gamma = control("input", { id: ids[1], type: "range", min: 0.2, max: 1, step: 0.05 });
    const gammaSaid = html("output", { for: ids[1] });
    const query = control("input", { id: ids[2], type: "search", placeholder: "token or words", autocomplete: "off", spellcheck: "false" });
    const hits = html("span", { class: "soft hits" });
    const ways = [["keys", "what it reads"], ["queries", "who reads it"]].map(([way, said]) => [way, push(said, () => put({ way }))]);
    const call = push("is a sink", () => {
      const [token, sinks] = [get("token"), get("sinks")];
      const others = sinks.filter((one) => one !== token);
      put({ sinks: others.length < sinks.length ? others : [...sinks, token].sort((a, b) => a - b) });
    });
    const zooms = [push("\u2212", () => moves.zoom(2), { "aria-label": "Zoom out" }), push("+", () => moves.zoom(0.5), { "aria-label": "Zoom in" }), push("Whole text", () => put({ view: [0, 0, n] }))];
    const title = html("h4");
    const verdict = html("p", { class: "verdict-line" });
    const caption = html("small");
    const readout = html("div", { class: "readout" });
    const about = html("span", { class: "about" });
    const error = html("div", { class: "error", role: "alert" });
    const live = html("div", { "aria-live": "polite", class: "live" });
    const small = html("div", { class: "pane small" }, html("h4", {}, "Layers (down) and heads (across)"), grid.root, html("small", {}, "orange bar: share of the sink"),
      html("div", { class: "who" }, about,
        html("span", { class: "zooms", role: "group", "aria-label": "Direction" }, ...ways.map(([, one]) => one)), call),
      text.strongest);
    const large = html("div", { class: "pane large" }, title, verdict, map.root, readout, caption);
    const root = frame(
      `Attention explorer: ${get("name")}, ${count(n)} tokens, ${get("n_layers")} layers by ${get("n_heads")} heads`,
      html("div", { class: "controls tools" },
        html("label", { for: ids[0], class: "check" }, shown, shownName),
        html("label", { for: ids[1] }, "Scale", gamma, gammaSaid),
        html("label", { for: ids[2] }, "Search", query), hits,
        html("span", { class: "zooms", role: "group", "aria-label": "Zoom" }, ...zooms)),
      error,
      html("div", { class: "panes" }, small, large),
      html("div", { class: "reading" }, html("h4", {}, "Text"), text.where, text.box),
      live,
    );
    root.classList.add("explorer");

    shown.addEventListener("change", () => put({ show_sinks: shown.checked }));
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
    // What did not change is not written again: a page of cells would be laid out anew for nothing.
    const write = (node, text) => node.textContent === text || (node.textContent = text);
    const mark = (node, name, value) => node.getAttribute(name) === `${value}` || node.setAttribute(name, value);

    // A screen reader hears of what was chosen or pinned, and of the cross that keys move.
    function speak(line, value, rest) {
      const here = words.where(value, rest);
      const pinned = get("token");
      let more = "";
      if (moves.pointed?.byKey) more = ` ${readout.textContent}.`;
      else if (pinned !== null && line && hovered === null) more = words.strongest(pinned, line);
      else if (pinned !== null && spoken) return;
      if (here + more !== spoken) live.textContent = spoken = here + more;
    }
    function controls(value) {
      const [token, sinks, view] = [get("token"), get("sinks"), get("view")];
      shown.checked = get("show_sinks");
      shown.disabled = !Number.isFinite(value);
      write(shownName, sinks.length > 1 ? "Sink columns" : "Sink column");
      gamma.value = get("gamma");
      write(gammaSaid, `share^${get("gamma").toFixed(2)}`);
      mark(gamma, "aria-valuetext", `power ${get("gamma").toFixed(2)}`);
      for (const [way, one] of ways) mark(one, "aria-pressed", way === get("way"));
      call.hidden = get("settled") || store.silent() === "page";
      mark(call, "aria-pressed", sinks.includes(token));
      call.disabled = token === null || (sinks.length === 1 && sinks[0] === token);
      call.title = token === null ? "Pin a token to call it a sink" : call.disabled ? "The only sink" : "";
      zooms[0].disabled = view[2] >= n;
      zooms[1].disabled = view[2] <= Math.min(LEAST_SPAN, n);
      write(error, get("error"));
    }
    function draw() {
      frame_ = 0;
      if (!root.isConnected) return; // it has no width and no colours yet; the observer will tell
      // All that is read from the page stands here, before anything is written to it.
      const style = getComputedStyle(root);
      const dark = isDark(root);
      const look = { ink: style.color, font: style.fontFamily, sink: style.getPropertyValue("--sinkviz-sink"), halo: dark ? "#111" : "#fff" };
      const rooms = [small.clientWidth || 340, large.clientWidth || 600];
      if (palette?.id !== `${get("gamma")}${dark}`) palette = paletteOf(colours, get("gamma"), dark);
      const [rest, gone, way, pointed] = [!get("show_sinks"), without(), get("way"), moves.pointed];
      grid.draw(palette, gone, look, rooms[0]);
      grid.frameOf(get("view"), n);
      const state = map.draw(palette, gone, look, rooms[1]);
      const value = grid.share();
      const token = hovered ?? (pointed && pointed.key <= pointed.query ? (way === "keys" ? pointed.query : pointed.key) : null) ?? get("token");
      const line = token === null ? null : store.line(get("layer"), get("head"), token, way, gone);
      map.mark({ token, way, cell: pointed, box: moves.box }, look);
      text.draw({ token, line, way, palette, from: get("view")[1] });
      controls(value);
      write(title, words.title());
      write(verdict, words.verdict(value, rest));
      write(caption, words.caption(rest));
      write(about, words.about(token));
      write(readout, words.readout(pointed, gone));
      speak(line, value, rest);
      mark(map.root, "aria-label", `${title.textContent}: ${verdict.textContent}`);
      root.dataset.cell = state;
      root.dataset.line = line?.exact ? `${token}` : "";
      root.dataset.drawn = `${get("layer")}.${get("head")}`;
      clearTimeout(resting);
      if (state !== "coarse") resting = setTimeout(ahead, QUIET);
    }
    const soon = () => (frame_ ||= requestAnimationFrame(draw));
    // Tiles of this head are drawn at once, unless a frame is awaited anyway; others are for later.
    const came = (what, whose) => {
      if (what !== "tiles") soon();
      else if (whose !== root.dataset.drawn) resting = setTimeout(ahead);
      else if (!frame_) draw();
    };
    const listened = "layer head show_sinks sinks shares gamma token way view error".split(" ").map((name) => `change:${name}`);
    for (const event of listened) model.on(event, soon);
    store.views.add(came);
    el.append(root);
    soon();
    const away = onTheme(() => setTimeout(soon, 60));
    const resized = new ResizeObserver(soon);
    resized.observe(root);
    return () => {
      resized.disconnect();
      away();
      cancelAnimationFrame(frame_);
      clearTimeout(dwelling);
      clearTimeout(resting);
      store.views.delete(came);
      for (const event of listened) model.off(event, soon);
    };
  }
  return { initialize, render };
};
