// What a page knows of the maps: a coarse picture of every head, sharp tiles of what was looked at,
// exact lines of single tokens, and the tokens. Once per model; its views draw from it. What is not
// here is asked for in one message per head, and drawn when it comes. `without` lists the keys that
// are taken out of a map, by text position.

const TILE = 256; // cells along a side of a tile, as in tiles.py
const MOST_TILES = 500;
const MOST_LINES = 300;
const MOST_COARSE = 4; // the maps as they are, and without some choices of the sink
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
  const coarse = new Map();
  const tiles = new Map();
  const lines = new Map();
  const asked = new Set();
  const views = new Set();
  const coarsest = model.get("thumb_cell");
  let wanted = [];
  let tokens = null;
  let silent = model.get("offline") ? "page" : "";
  let timer = 0;
  const versions = new Map(); // counts what came: for one head, or for all

  const headOf = ({ layer, head }) => `${layer}.${head}`;
  const tell = (what, whose = "all") => views.forEach((act) => act(what, whose));
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
    return { cell, codes, side };
  };
  const keep = (without, cell, view) => remember(coarse, String(without), squares(cell, view, nMaps), MOST_COARSE);
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
        tell("silence");
      }, PATIENCE);
    } catch {
      silent = "silent";
    }
  }

  function flush() {
    const groups = Map.groupBy ? Map.groupBy(wanted, (one) => one.group) : grouped(wanted);
    wanted = [];
    for (const [group, some] of groups) {
      const [layer, head, cell, without] = JSON.parse(group);
      ask(`${group}${some.map((one) => one.at)}`, { do: "tiles", layer, head, cell, without, tiles: some.map((one) => one.at) });
    }
  }
  const grouped = (all) => all.reduce((map, one) => map.set(one.group, [...(map.get(one.group) ?? []), one]), new Map());

  const take = {
    tiles({ layer, head, cell, without, tiles: places, shapes }, buffers) {
      places.forEach((at, i) => {
        const [high, wide] = shapes[i];
        remember(tiles, JSON.stringify([layer, head, cell, without, ...at]), { codes: bytesOf(buffers[i]), high, wide }, MOST_TILES);
      });
      asked.delete(`${JSON.stringify([layer, head, cell, without])}${places}`);
    },
    line({ layer, head, token, way, without, cell }, [buffer]) {
      const key = JSON.stringify([layer, head, token, way, without]);
      remember(lines, key, { cell, values: floats(buffer), exact: true }, MOST_LINES);
      asked.delete(`line${key}`);
    },
    thumbs({ without, cell }, [buffer]) {
      keep(without, cell, buffer);
      if (without.length) asked.delete(`thumbs${without}`); // it may be forgotten and wanted again
    },
    tokens: (_, [buffer]) => read(buffer),
  };
  model.on("msg:custom", (content, buffers) => {
    if (!take[content.do]) return;
    clearTimeout(timer);
    timer = 0;
    silent = "";
    take[content.do](content, buffers);
    const whose = content.do === "tiles" ? headOf(content) : "all";
    versions.set(whose, (versions.get(whose) ?? 0) + 1);
    tell(content.do, whose);
  });

  keep([], model.get("thumb_cell"), model.get("thumbs"));
  if (model.get("thumbs_rest")) keep(model.get("sinks"), model.get("thumb_cell"), model.get("thumbs_rest"));
  if (model.get("tokens")?.byteLength) read(model.get("tokens"));
  const opening = model.get("opening");
  const first = squares(opening.cell, opening.codes, 1);

  return {
    views,
    flush,
    version: (head) => [versions.get(head) ?? 0, versions.get("all") ?? 0],
    finest: (layer, head) => finest[layer * nHeads + head],
    silent: () => silent,
    tokens() {
      if (!tokens) ask("tokens", { do: "tokens" });
      return tokens;
    },
    // Every head, coarse; the sharper thumbnails are asked for as soon as the first are drawn.
    coarse(without) {
      const found = coarse.get(String(without));
      if (!found || !without.length) ask(`thumbs${without}`, { do: "thumbs", without });
      return found;
    },
    // One head's coarse picture, and where in it.
    blurred(layer, head, without) {
      const whole = this.coarse(without);
      const better = !without.length && layer === opening.layer && head === opening.head && first.cell <= whole.cell;
      return better ? [first, 0] : [whole, layer * nHeads + head];
    },
    // A tile, or nothing yet: then it is asked for at the next flush.
    tile(layer, head, cell, without, row, column) {
      const key = JSON.stringify([layer, head, cell, without, row, column]);
      const found = tiles.get(key);
      if (!found) wanted.push({ group: JSON.stringify([layer, head, cell, without]), at: [row, column] });
      return found;
    },
    // What a token reads or who reads it, per cell of the text: exact, or meanwhile coarse.
    line(layer, head, token, way, without) {
      const key = JSON.stringify([layer, head, token, way, without]);
      if (lines.has(key)) return lines.get(key);
      if (finest[layer * nHeads + head]) ask(`line${key}`, { do: "line", layer, head, token, way, without });
      const whole = coarse.get(String(without));
      if (!whole) return null;
      const { side, cell, codes } = whole;
      const from = (layer * nHeads + head) * side * side;
      const at = Math.floor(token / cell);
      const values = Float32Array.from({ length: side }, (_, i) => shareOf(codes[from + (way === "keys" ? at * side + i : i * side + at)]) ?? 0);
      return { cell, values, exact: cell === 1 };
    },
    // The share of one query and key from the sharpest picture that is here: [share, tokens per cell].
    share(layer, head, without, query, key) {
      const whole = coarse.get(String(without));
      for (let cell = finest[layer * nHeads + head]; cell && cell <= coarsest; cell *= 2) {
        const [row, column] = [query, key].map((n) => Math.floor(n / cell));
        const tile = tiles.get(JSON.stringify([layer, head, cell, without, Math.floor(row / TILE), Math.floor(column / TILE)]));
        if (tile) return [shareOf(tile.codes[(row % TILE) * tile.wide + (column % TILE)]), cell];
      }
      if (!whole) return [null, 0];
      const [row, column] = [query, key].map((n) => Math.floor(n / whole.cell));
      return [shareOf(whole.codes[((layer * nHeads + head) * whole.side + row) * whole.side + column]), whole.cell];
    },
  };
}
