// Moving over the large map: zoom, follow a token, a cross by keys, a box by mouse. What is under
// the pointer or the cross, and the box, live in the object that this returns.

const LEAST_SPAN = 8;

function mapMoves(map, get, put, pin, soon) {
  const n = get("n_tokens");
  // `pointed` is a query and a key, with `byKey` for the cross.
  const at = { pointed: null, box: null };
  const bound = (value, low, high) => Math.min(Math.max(value, low), high);
  const within = ([q, k, span]) => {
    const size = bound(span, Math.min(LEAST_SPAN, n), n);
    return [q, k].map((from) => bound(from, 0, n - size)).concat(size);
  };
  const whole = () => put({ view: [0, 0, n] });

  // The point that is looked at stays where it is.
  at.zoom = (factor, about) => {
    const [q, k, span] = get("view");
    const token = get("token");
    const centre = about ?? at.pointed ?? { query: token ?? q + span / 2, key: token ?? k + span / 2 };
    const [row, column] = [bound(centre.query, q, q + span), bound(centre.key, k, k + span)];
    put({ view: within([row - (row - q) * factor, column - (column - k) * factor, span * factor]) });
  };
  // Bring a token into the window: its row, or its column.
  at.follow = (token) => {
    const [q, k, span] = get("view");
    const byRow = get("way") === "keys";
    const from = byRow ? q : k;
    if (token >= from && token < from + span) return;
    const moved = token - span / 2;
    put({ view: within(byRow ? [moved, Math.min(k, moved), span] : [Math.max(q, moved), moved, span]) });
  };

  const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  function step([down, across], far) {
    const cell = map.level(get("layer"), get("head")) || 1;
    const [q, k, span] = get("view");
    const from = at.pointed ?? { query: get("token") ?? Math.floor(q + span / 2), key: get("token") ?? Math.floor(k) };
    const by = far ? 10 * cell : cell;
    const query = bound(from.query + by * down, 0, n - 1);
    const key = bound(from.key + by * across, 0, n - 1);
    at.pointed = { query, key, byKey: true };
    const into = (one, first) => (one < first ? one : one >= first + span ? one - span + cell : first);
    const [row, column] = [into(query, q), into(key, k)];
    if (row !== q || column !== k) put({ view: within([row, column, span]) });
  }
  map.root.addEventListener("keydown", (event) => {
    if (arrows[event.key]) step(arrows[event.key], event.shiftKey);
    else if (event.key === "+" || event.key === "=") at.zoom(0.5);
    else if (event.key === "-") at.zoom(2);
    else if (event.key === "0") whole();
    else if (event.key === "Escape") {
      at.pointed = null;
      pin(null);
    } else if ((event.key === "Enter" || event.key === " ") && at.pointed) pin(get("way") === "keys" ? at.pointed.query : at.pointed.key);
    else return;
    event.preventDefault();
    soon();
  });

  let from = null; // where a box or a click began
  map.root.addEventListener("pointerdown", (event) => {
    if (event.button || !map.at(event)) return;
    from = { x: event.clientX, y: event.clientY, at: map.at(event) };
    map.root.setPointerCapture(event.pointerId);
  });
  map.root.addEventListener("pointermove", (event) => {
    const here = map.at(event);
    at.pointed = here && { query: Math.floor(here.query), key: Math.floor(here.key) };
    if (from) {
      const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
      const size = Math.max(Math.abs(dx), Math.abs(dy));
      const bounds = map.root.getBoundingClientRect();
      const corner = [dx < 0 ? from.x - size : from.x, dy < 0 ? from.y - size : from.y];
      at.box = size > 6 ? [corner[0] - bounds.left, corner[1] - bounds.top, size, size] : null;
    }
    soon();
  });
  map.root.addEventListener("pointerup", () => {
    if (!from) return;
    if (at.box) {
      const [q, k, span] = get("view");
      const scale = span / map.side();
      put({ view: within([q + (at.box[1] - OVER_MAP) * scale, k + (at.box[0] - LEFT_OF_MAP) * scale, at.box[2] * scale]) });
    } else {
      const token = Math.floor(get("way") === "keys" ? from.at.query : from.at.key);
      put({ token: token === get("token") ? null : token });
    }
    from = at.box = null;
  });
  map.root.addEventListener("pointercancel", () => (from = at.box = null));
  map.root.addEventListener("pointerleave", () => ((at.pointed = null), soon()));
  map.root.addEventListener("dblclick", () => put({ view: [0, 0, n], token: null }));
  // Only where the page would not scroll: with the key that zooms, or by pinching.
  map.root.addEventListener("wheel", (event) => {
    const here = map.at(event);
    if (!here || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    at.zoom(1.0015 ** event.deltaY, here);
  }, { passive: false });
  return at;
}
