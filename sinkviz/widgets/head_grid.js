// All layers and heads as small multiples on one canvas, under a grid of cells that take the focus:
// one of them is in the order of tabs, arrows walk the others. A bar under each is the sink's share.

const LEFT_OF_GRID = 26;
const OVER_GRID = 18;
const GAP = 4;
const BAR = 4;
const LARGEST = 92;

// All pictures at a fraction of their size, each cell the largest of its block: smoothed, a sink of
// one column would fade.
function shrunk({ side, codes }, factor, nMaps) {
  const less = Math.ceil(side / factor);
  const found = new Uint8Array(nMaps * less * less);
  let at = 0;
  for (let map = 0; map < nMaps; map += 1) {
    for (let row = 0; row < side; row += 1) {
      const to = (map * less + Math.floor(row / factor)) * less;
      for (let column = 0; column < side; column += 1, at += 1) {
        const cell = to + Math.floor(column / factor);
        if (codes[at] > found[cell]) found[cell] = codes[at];
      }
    }
  }
  return { side: less, codes: found };
}

// `choose` hears which head is wanted, `expect` which one may be wanted next.
function headGrid(store, get, { choose, expect }) {
  const [nLayers, nHeads] = [get("n_layers"), get("n_heads")];
  let shares = floats(get("shares"));
  const canvas = html("canvas", { "aria-hidden": "true" });
  const name = (layer, head) => {
    const value = shares[layer * nHeads + head];
    return `layer ${layer}, head ${head}${Number.isFinite(value) ? `: the sink takes ${percent(value)}` : ""}`;
  };
  const cells = [];
  const rows = Array.from({ length: nLayers }, (_, layer) => {
    const row = html("div", { role: "row" });
    for (let head = 0; head < nHeads; head += 1) {
      const cell = control("div", { role: "gridcell", tabindex: -1, "aria-label": name(layer, head), title: name(layer, head) });
      cell.addEventListener("click", () => choose(layer, head));
      cell.addEventListener("pointerenter", () => expect(layer, head));
      cells.push(cell);
      row.append(cell);
    }
    return row;
  });
  const grid = html("div", { role: "grid", "aria-label": `${nLayers} layers by ${nHeads} heads` }, ...rows);
  const root = html("div", { class: "heads" }, canvas, grid);

  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  grid.addEventListener("keydown", (event) => {
    let [layer, head] = [get("layer"), get("head")];
    if (moves[event.key]) {
      layer = Math.min(Math.max(layer + moves[event.key][0], 0), nLayers - 1);
      head = Math.min(Math.max(head + moves[event.key][1], 0), nHeads - 1);
    } else if (event.key === "Home") head = 0;
    else if (event.key === "End") head = nHeads - 1;
    else if (event.key === "PageUp") layer = 0;
    else if (event.key === "PageDown") layer = nLayers - 1;
    else return;
    event.preventDefault();
    choose(layer, head);
    cells[layer * nHeads + head].focus({ preventScroll: true });
  });

  let chosen = null;
  function select() {
    const next = cells[get("layer") * nHeads + get("head")];
    if (next === chosen) return;
    if (chosen) {
      chosen.tabIndex = -1;
      chosen.setAttribute("aria-selected", "false");
    }
    next.tabIndex = 0;
    next.setAttribute("aria-selected", "true");
    chosen = next;
  }

  const easel = makeEasel();
  let drawn = "";
  let drawnFrom = null;
  let counted = get("shares");
  let [pitch, size] = [0, 0];
  return {
    root,
    cells,
    name,
    // What the sinks take of the chosen head.
    share: () => shares[get("layer") * nHeads + get("head")],
    // The heads next to the chosen one, where arrows lead.
    neighbours() {
      const [layer, head] = [get("layer"), get("head")];
      const near = Object.values(moves).map(([down, across]) => [layer + down, head + across]);
      return near.filter(([one, two]) => one >= 0 && one < nLayers && two >= 0 && two < nHeads);
    },
    // `look` holds colours and font, `room` is the width there is.
    draw(palette, without, look, room) {
      select();
      const whole = store.coarse(without) ?? store.coarse([]);
      const key = `${palette.id} ${look.ink} ${room} ${window.devicePixelRatio}`;
      if (key === drawn && whole === drawnFrom && counted === get("shares")) return;
      if (counted !== get("shares")) {
        counted = get("shares");
        shares = floats(counted);
        cells.forEach((cell, i) => {
          const said = name(Math.floor(i / nHeads), i % nHeads);
          cell.setAttribute("aria-label", said);
          cell.title = said;
        });
      }
      drawnFrom = whole;
      pitch = Math.max(7, Math.min(LARGEST, Math.floor((room - LEFT_OF_GRID) / nHeads)));
      const gap = pitch > 14 ? GAP : 1;
      const bar = pitch > 14 ? BAR : 2;
      size = pitch - gap;
      const [wide, high] = [LEFT_OF_GRID + nHeads * pitch, OVER_GRID + nLayers * (pitch + bar)];
      const context = pen(canvas, wide, high);
      context.font = `10.5px ${look.font}`;
      context.fillStyle = look.ink;
      context.textBaseline = "middle";
      context.textAlign = "center";
      const skip = Math.ceil(18 / pitch);
      for (let head = 0; head < nHeads; head += skip) context.fillText(head, LEFT_OF_GRID + head * pitch + size / 2, 8);
      context.textAlign = "right";
      for (let layer = 0; layer < nLayers; layer += skip) context.fillText(layer, LEFT_OF_GRID - 6, OVER_GRID + layer * (pitch + bar) + size / 2);
      const factor = Math.ceil(whole.side / (size * (window.devicePixelRatio || 1)));
      const small = factor > 1 ? shrunk(whole, factor, nLayers * nHeads) : whole;
      const row = nHeads * small.side;
      for (let layer = 0; layer < nLayers; layer += 1) {
        // One picture of a layer, head under head: as many of their own would each be copied.
        const codes = small.codes.subarray(layer * row * small.side, (layer + 1) * row * small.side);
        const pictures = coloured(easel, palette, codes, small.side, row);
        for (let head = 0; head < nHeads; head += 1) {
          const index = layer * nHeads + head;
          const [x, y] = [LEFT_OF_GRID + head * pitch, OVER_GRID + layer * (pitch + bar)];
          hatched(context, look.ink, x, y, size, size);
          if (store.finest(layer, head)) context.drawImage(pictures, 0, head * small.side, small.side, small.side, x, y, size, size);
          const value = shares[index];
          context.fillStyle = look.sink;
          if (Number.isFinite(value)) context.fillRect(x, y + size + 1, Math.max(1, value * size), bar - 1);
          const cell = cells[index].style;
          cell.left = `${x - 1}px`;
          cell.top = `${y - 1}px`;
          cell.width = cell.height = `${size + 2}px`;
        }
      }
      root.style.width = `${wide}px`;
      root.style.height = `${high}px`;
      drawn = key;
    },
    // The window that the large map shows, as a frame in the chosen thumbnail.
    frameOf([query, key, span], n) {
      for (const cell of root.querySelectorAll(".window")) cell.remove();
      if (span >= n) return;
      const part = (value) => `${(100 * value) / n}%`;
      chosen.append(html("i", { class: "window", style: `left: ${part(key)}; top: ${part(query)}; width: ${part(span)}; height: ${part(span)}` }));
    },
  };
}
