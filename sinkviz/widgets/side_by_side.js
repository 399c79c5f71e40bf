// Lanes of text that grow. What the lanes hold lives once per model, and each view draws from it;
// a lost or early message shows as a gap in the counting, and the whole tail is asked for again.

const SPEEDS = [1, 2, 5, 10, 20, 50, 0];
const MARKS = "Filled: the newest token; struck out: evicted; framed: evicted just now.";
const READING = "The stronger its shade, the more a token surprised the model.";
const WRITING = "Each lane is judged on its own words: one that only repeats itself has a low perplexity.";

export default () => {
  let lanes = [];
  let length = 0; // steps of a run that is over
  const views = new Set();

  function adopt(model) {
    const fixed = model.get("lanes");
    lanes = model.get("tail").map((state, i) => ({ ...fixed[i], ...state, items: items(state) }));
    for (const view of views) view.afresh();
  }

  function news(model) {
    const tick = model.get("tick");
    if (tick.some((state, i) => lanes[i].end + state.tokens.length !== state.end)) {
      model.send({ do: "resync" });
      return;
    }
    tick.forEach((state, i) => {
      const kept = [...lanes[i].items, ...items(state)].slice(-TAIL);
      lanes[i] = { ...lanes[i], ...state, items: kept };
    });
    for (const view of views) view.soon();
    // Nobody looks: no answer, and the kernel stops by itself.
    if (views.size) model.send({ do: "seen" });
  }

  function initialize({ model }) {
    if (model.get("offline")) replay(model);
    length = model.get("length");
    adopt(model);
    model.on("change:tail", () => adopt(model));
    model.on("change:tick", () => news(model));
    // What came while this module was still loading.
    const tick = model.get("tick");
    if (tick.length && tick[0].end !== lanes[0].end) model.send({ do: "resync" });
  }

  function render({ model, el }) {
    const get = (name) => model.get(name);
    const put = (name, value) => {
      model.set(name, value);
      model.save_changes();
    };
    const button = (name, act, kind = "") => {
      const made = control("button", { type: "button", class: kind }, name);
      made.addEventListener("click", act);
      return made;
    };
    const play = button("Play", () => put("playing", !get("playing")), "play");
    const step = button("Step", () => model.send({ do: "step" }));
    const reset = button("Reset", () => model.send({ do: "reset" }));
    const speeds = SPEEDS.includes(get("speed")) ? SPEEDS : [get("speed"), ...SPEEDS];
    const speed = control("select", {}, ...speeds.map((n) => html("option", { value: n }, n ? `${n} tokens/s` : "as fast as it goes")));
    speed.addEventListener("change", () => put("speed", Number(speed.value)));
    const scrub = control("input", { type: "range", min: get("before") ?? 0, max: length, step: 1 });
    scrub.addEventListener("input", () => model.send({ do: "seek", to: Number(scrub.value) }));
    const save = button("Save", () => model.send({ do: "save" }));
    const seed = control("input", { type: "number", min: 0, step: 1 });
    const sow = () => put("seed", Math.max(0, Math.round(Number(seed.value) || 0)));
    seed.addEventListener("change", sow);
    seed.addEventListener("keydown", (event) => event.key === "Enter" && sow());
    const counter = html("span", { class: "counter soft" });
    const error = html("div", { class: "error", role: "alert" });
    const live = html("div", { "aria-live": "polite" });
    const parts = lanes.map((lane) => laneView(lane, get("reading")));
    const root = frame(
      `Side by side: ${lanes.map((lane) => lane.name).join(", ")}`,
      html("div", { class: "controls" }, play, step, reset,
        html("label", {}, "Speed", speed),
        ...(get("reading") || get("recorded") ? [] : [html("label", {}, "Seed", seed)]),
        ...(get("offline") ? [] : [save]),
        counter),
      ...(get("recorded") ? [html("label", { class: "timeline" }, html("span", {}, "Token"), scrub)] : []),
      error,
      html("div", { class: "lanes" }, ...parts.map((part) => part.root)),
      html("small", {}, `${MARKS} ${get("reading") ? READING : WRITING}`),
      ...(get("before") ? [html("small", {}, ` This page begins at token ${count(get("before"))}.`)] : []),
      live,
    );
    let spoken = "";
    let waiting = 0;

    function status() {
      play.textContent = get("playing") ? "Pause" : "Play";
      play.disabled = get("finished") && !get("recorded"); // what is over may be played again
      step.disabled = get("finished");
      speed.value = get("speed");
      if (document.activeElement !== seed) seed.value = get("seed");
      error.textContent = get("error");
      const n = lanes[0].span;
      save.disabled = !n;
      counter.textContent = get("recorded") ? `${count(n)} of ${count(length)} tokens` : `${count(n)} tokens`;
      scrub.value = n;
      scrub.style.setProperty("--fill", `${(100 * (n - scrub.min)) / Math.max(1, scrub.max - scrub.min)}%`);
      scrub.setAttribute("aria-valuetext", counter.textContent);
      const state = get("finished") ? "Finished" : get("playing") ? "Playing" : n ? "Paused" : "Ready";
      // A screen reader is not told of every token.
      const key = `${state} ${get("playing") ? Math.floor(n / 50) : n} ${get("notice")}`;
      if (key === spoken) return;
      spoken = key;
      const each = lanes.map((lane) => `${lane.name} ${number(lane.perplexity ?? NaN)}`);
      const said = n ? `${state} at token ${count(n)}. Perplexity: ${each.join(", ")}.` : "Ready.";
      live.textContent = `${get("notice")} ${said}`.trim();
    }
    function draw() {
      waiting = 0;
      const points = lanes.flatMap((lane) => [...floats(lane.points)]).filter(Number.isFinite);
      const limits = [Math.min(...points), Math.max(...points) + 0.01];
      parts.forEach((part, i) => part.draw(lanes[i], limits));
      status();
      root.dataset.drawn = lanes[0].span;
    }
    const view = {
      soon: () => (waiting = waiting || requestAnimationFrame(draw)),
      afresh: () => {
        parts.forEach((part) => part.clear());
        view.soon();
      },
    };
    const listened = "change:playing change:finished change:speed change:seed change:error change:notice".split(" ");
    for (const event of listened) model.on(event, status);
    el.append(root);
    views.add(view);
    draw();
    const resized = new ResizeObserver(view.soon);
    resized.observe(root);
    return () => {
      resized.disconnect();
      cancelAnimationFrame(waiting);
      views.delete(view);
      for (const event of listened) model.off(event, status);
      if (!views.size && get("playing")) put("playing", false);
    };
  }
  return { initialize, render };
};
