// What a page knows of the maps: a coarse picture of every head, sharp tiles of what was looked at,
// exact lines of single tokens, and the tokens. Once per model; its views draw from it. What is not
// here is asked for in one message per frame, and drawn when it comes.

const TILE = 256; // cells along a side of a tile, as in tiles.py
const MOST_TILES = 500;
const MOST_LINES = 300;
const PATIENCE = 1500; // milliseconds without an answer, then the page says so

const bytesOf = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

// The inverse of tiles.py's codes; null where nobody sees anybody.
const shareOf = (code) => (code ? ((code - 1) / 254) ** 2 : null);

function remember(map, key, value, most) {
  map.set(key, value);
  if (map.size > most) map.delete(map.keys().next().value);
}

function mapStore(model) {
  const nHeads = model.get("n_heads");
  const nMaps = model.get("n_layers") * nHeads;
  const finest = new Uint16Array(bytesOf(model.get("finest")).slice().buffer);
  const coarse = { false: null, true: null };
  const tiles = new Map();
  const lines = new Map();
  const asked = new Set();
  const views = new Set();
  let wanted = [];
  let tokens = null;
  let silent = model.get("offline") ? "page" : "";
  let timer = 0;

  const tell = () => views.forEach((act) => act());
  // Square pictures of `n` maps from their lower triangles.
  const squares = (cell, view, n) => {
    const triangles = bytesOf(view);
    const side = Math.ceil(model.get("n_tokens") / cell);
    const codes = new Uint8Array(n * side * side);
    for (let row = 0, at = 0; row < n * side; row += 1) {
      const wide = (row % side) + 1;
      codes.set(triangles.subarray(at, at + wide), row * side);
      at += wide;
    }
    return { cell, codes, side, drawn: new Map() };
  };
  const keep = (rest, cell, view) => {
    coarse[rest] = squares(cell, view, nMaps);
  };
  const read = (view) => {
    tokens = new TextDecoder().decode(view).split("\n");
  };

  function ask(key, content) {
    if (silent === "page" || asked.has(key)) return;
    asked.add(key);
    try {
      model.send(content);
      timer ||= setTimeout(() => {
        silent = "silent";
        tell();
      }, PATIENCE);
    } catch {
      silent = "silent";
    }
  }

  function flush() {
    const groups = Map.groupBy ? Map.groupBy(wanted, (one) => one.group) : grouped(wanted);
    wanted = [];
    for (const [group, some] of groups) {
      const [layer, head, cell, rest] = JSON.parse(group);
      ask(`${group}${some.map((one) => one.at)}`, { do: "tiles", layer, head, cell, rest, tiles: some.map((one) => one.at) });
    }
  }
  const grouped = (all) => all.reduce((map, one) => map.set(one.group, [...(map.get(one.group) ?? []), one]), new Map());

  const take = {
    tiles({ layer, head, cell, rest, tiles: places, shapes }, buffers) {
      places.forEach((at, i) => {
        const [high, wide] = shapes[i];
        remember(tiles, JSON.stringify([layer, head, cell, rest, ...at]), { codes: bytesOf(buffers[i]), high, wide }, MOST_TILES);
      });
      asked.delete(`${JSON.stringify([layer, head, cell, rest])}${places}`);
    },
    line({ layer, head, token, way, rest, cell }, [buffer]) {
      remember(lines, JSON.stringify([layer, head, token, way, rest]), { cell, values: floats(buffer), exact: true }, MOST_LINES);
    },
    thumbs: ({ rest, cell }, [buffer]) => keep(rest, cell, buffer),
    tokens: (_, [buffer]) => read(buffer),
  };
  model.on("msg:custom", (content, buffers) => {
    if (!take[content.do]) return;
    clearTimeout(timer);
    timer = 0;
    silent = "";
    take[content.do](content, buffers);
    tell();
  });

  keep(false, model.get("thumb_cell"), model.get("thumbs"));
  if (model.get("thumbs_rest")) keep(true, model.get("thumb_cell"), model.get("thumbs_rest"));
  if (model.get("tokens")?.byteLength) read(model.get("tokens"));
  const opening = model.get("opening");
  const first = squares(opening.cell, opening.codes, 1);

  return {
    views,
    flush,
    finest: (layer, head) => finest[layer * nHeads + head],
    silent: () => silent,
    tokens() {
      if (!tokens) ask("tokens", { do: "tokens" });
      return tokens;
    },
    // Every head, coarse; the sharper thumbnails are asked for as soon as the first are drawn.
    coarse(rest) {
      ask(`thumbs${rest}`, { do: "thumbs", rest });
      return coarse[rest];
    },
    // One head's coarse picture, and where in it.
    blurred(layer, head, rest) {
      const whole = this.coarse(rest);
      const better = !rest && layer === opening.layer && head === opening.head && first.cell <= whole.cell;
      return better ? [first, 0] : [whole, layer * nHeads + head];
    },
    // A tile, or nothing yet: then it is asked for at the next flush.
    tile(layer, head, cell, rest, row, column) {
      const key = JSON.stringify([layer, head, cell, rest, row, column]);
      const found = tiles.get(key);
      if (!found) wanted.push({ group: JSON.stringify([layer, head, cell, rest]), at: [row, column] });
      return found;
    },
    // What a token reads or who reads it, per cell of the text: exact, or meanwhile coarse.
    line(layer, head, token, way, rest) {
      const key = JSON.stringify([layer, head, token, way, rest]);
      if (lines.has(key)) return lines.get(key);
      if (finest[layer * nHeads + head]) ask(`line${key}`, { do: "line", layer, head, token, way, rest });
      const whole = coarse[rest];
      if (!whole) return null;
      const { side, cell, codes } = whole;
      const from = (layer * nHeads + head) * side * side;
      const at = Math.floor(token / cell);
      const values = Float32Array.from({ length: side }, (_, i) => shareOf(codes[from + (way === "keys" ? at * side + i : i * side + at)]) ?? 0);
      return { cell, values, exact: cell === 1 };
    },
    // The share of one query and key from the sharpest picture that is here: [share, tokens per cell].
    share(layer, head, rest, query, key) {
      for (let cell = finest[layer * nHeads + head]; cell && cell <= coarse.false.cell; cell *= 2) {
        const [row, column] = [query, key].map((n) => Math.floor(n / cell));
        const tile = tiles.get(JSON.stringify([layer, head, cell, rest, Math.floor(row / TILE), Math.floor(column / TILE)]));
        if (tile) return [shareOf(tile.codes[(row % TILE) * tile.wide + (column % TILE)]), cell];
      }
      const whole = coarse[rest];
      if (!whole) return [null, 0];
      const [row, column] = [query, key].map((n) => Math.floor(n / whole.cell));
      return [shareOf(whole.codes[((layer * nHeads + head) * whole.side + row) * whole.side + column]), whole.cell];
    },
  };
}
