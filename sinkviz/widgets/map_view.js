// The chosen head, large: tiles under a cross, tokens on both axes, a colour bar. What is under the
// cross is drawn anew only where something of it changed, and only there cells become colours.

const LEFT_OF_MAP = 96;
const RIGHT_OF_MAP = 72;
const UNDER_MAP = { tokens: 92, numbers: 42 };
const OVER_MAP = 10;
const MOST_SIDE = 600;
const SHARES = [0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1];

function mapView(store, get) {
  const base = html("canvas", { "aria-hidden": "true" });
  const over = html("canvas", { "aria-hidden": "true" });
  const root = control("div", {
    class: "map", tabindex: 0, role: "application", "aria-roledescription": "attention map",
    "aria-keyshortcuts": "ArrowUp ArrowDown ArrowLeft ArrowRight Enter + - 0 Escape",
  }, base, over);
  const easel = makeEasel();
  let side = 0;
  let under = UNDER_MAP.numbers;
  let drawn = "";
  let state = "coarse";

  const place = () => {
    const [query, key, span] = get("view");
    const scale = side / span;
    return {
      query, key, span, scale,
      x: (at) => LEFT_OF_MAP + (at - key) * scale,
      y: (at) => OVER_MAP + (at - query) * scale,
    };
  };
  // Whether there is room for a token beside each row.
  const named = ({ scale }) => scale >= 10 && store.tokens();
  // Tokens per cell: the finest of which none is smaller than a pixel.
  const level = (layer, head) => {
    const span = get("view")[2];
    let cell = store.finest(layer, head);
    while (cell && span / cell > side * (window.devicePixelRatio || 1)) cell *= 2;
    return cell;
  };

  // The tiles of a head within the window, [row, column, tile]; one that is not here is asked for.
  function tiles(layer, head, without) {
    const [query, key, span] = get("view");
    const cell = level(layer, head);
    const size = TILE * cell;
    const last = (from) => Math.min(get("n_tokens"), from + span) - 1e-6;
    const found = [];
    for (let row = Math.floor(query / size); cell && row * size < last(query); row += 1) {
      for (let column = Math.floor(key / size); column * size < last(key); column += 1) {
        if (column > row) continue; // nobody sees the future
        found.push([row, column, store.tile(layer, head, cell, without, row, column)]);
      }
    }
    store.flush();
    return found;
  }

  function cells(context, palette, without, at) {
    const [layer, head] = [get("layer"), get("head")];
    const cell = level(layer, head);
    if (!cell) return "none";
    const [whole, index] = store.blurred(layer, head, without);
    const size = TILE * cell * at.scale;
    let sharp = true;
    for (const [row, column, tile] of tiles(layer, head, without)) {
      const [x, y] = [at.x(column * TILE * cell), at.y(row * TILE * cell)];
      if (tile) {
        const picture = coloured(easel, palette, tile.codes, tile.wide, tile.high);
        context.drawImage(picture, 0, 0, tile.wide, tile.high, x, y, tile.wide * cell * at.scale, tile.high * cell * at.scale);
        continue;
      }
      sharp = false;
      if (!whole) continue;
      context.save();
      context.beginPath();
      context.rect(x, y, size, size);
      context.clip();
      const wide = whole.side * whole.cell * at.scale;
      const picture = coloured(easel, palette, codesOf(whole, index), whole.side, whole.side);
      context.drawImage(picture, 0, 0, whole.side, whole.side, at.x(0), at.y(0), wide, wide);
      context.restore();
    }
    return sharp ? `${cell}` : "coarse";
  }

  // A bar over the columns of the sinks that are in the window; neighbours are one bar.
  function crowns(context, at, colour) {
    context.fillStyle = colour;
    const sinks = get("sinks");
    for (let i = 0; i < sinks.length; i += 1) {
      const from = at.x(sinks[i]);
      while (sinks[i + 1] === sinks[i] + 1) i += 1;
      const [left, right] = [Math.max(from, LEFT_OF_MAP), Math.min(Math.max(at.x(sinks[i] + 1), from + 3), LEFT_OF_MAP + side)];
      if (right > left) context.fillRect(left, OVER_MAP - 6, right - left, 4);
    }
  }

  function axes(context, at, { ink, font }) {
    const tokens = store.tokens();
    const edge = OVER_MAP + side;
    context.font = `11px ${font}`;
    context.fillStyle = ink;
    context.textBaseline = "middle";
    const near = named(at);
    const label = (i, x, y, turn) => {
      context.save();
      context.translate(x, y);
      if (turn) context.rotate(-Math.PI / 2);
      context.textAlign = "right";
      context.fillText(fitted(context, tokens[i].trim() || tokens[i], turn ? under - 22 : LEFT_OF_MAP - 22), 0, 0);
      context.restore();
    };
    if (near) {
      context.font = `${Math.min(12, at.scale * 0.9)}px ${font}`;
      const shown = (from) => [Math.ceil(from - 0.5), Math.min(get("n_tokens"), Math.floor(from + at.span + 0.5))];
      for (let [i, end] = shown(at.key); i < end; i += 1) label(i, at.x(i + 0.5), edge + 5, true);
      for (let [i, end] = shown(at.query); i < end; i += 1) label(i, LEFT_OF_MAP - 5, at.y(i + 0.5), false);
    } else {
      context.textAlign = "center";
      for (const [i, text] of ticks(at.key, at.key + at.span, 6)) if (Number.isInteger(i)) context.fillText(text, at.x(i + 0.5), edge + 12);
      context.textAlign = "right";
      for (const [i, text] of ticks(at.query, at.query + at.span, 6)) if (Number.isInteger(i)) context.fillText(text, LEFT_OF_MAP - 6, at.y(i + 0.5));
    }
    context.font = `11px ${font}`;
    context.globalAlpha = 0.75;
    context.textAlign = "center";
    context.fillText(near ? "key (is read)" : "key, text position (is read)", LEFT_OF_MAP + side / 2, edge + (near ? under - 10 : 30));
    context.save();
    context.translate(near ? 8 : LEFT_OF_MAP - 58, OVER_MAP + side / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(near ? "query (reads)" : "query, text position (reads)", 0, 0);
    context.restore();
    context.globalAlpha = 1;
  }

  function bar(context, palette, ink) {
    const left = LEFT_OF_MAP + side + 16;
    const to = (share) => OVER_MAP + side * (1 - share ** get("gamma"));
    const picture = easel((pixels) => pixels.set(palette.bar), 1, palette.bar.length);
    context.drawImage(picture, 0, 0, 1, palette.bar.length, left, OVER_MAP, 10, side);
    context.fillStyle = ink;
    context.textAlign = "left";
    let free = -Infinity;
    for (const share of [...SHARES].reverse()) {
      const y = to(share);
      if (y < free || (share && y > to(0) - 13)) continue;
      context.fillText(`${Math.round(100 * share)} %`, left + 15, y);
      free = y + 13;
    }
  }

  return {
    root,
    side: () => side,
    level,
    // Text positions under a point of the page, or null beside the map and in the future.
    at(event) {
      const box = root.getBoundingClientRect();
      const where = place();
      const key = where.key + (event.clientX - box.left - LEFT_OF_MAP) / where.scale;
      const query = where.query + (event.clientY - box.top - OVER_MAP) / where.scale;
      const inside = [[key, where.key], [query, where.query]].every(([one, from]) => one >= from && one < from + where.span);
      return inside && { query, key, seen: Math.floor(key) <= Math.floor(query) };
    },
    // Ask for what a head will need, before it is drawn; tells whether something was missing.
    expect: (layer, head, without) => tiles(layer, head, without).some(([, , tile]) => !tile),
    // `look` holds colours and font, `room` is the width there is. Returns the tokens per cell,
    // "coarse" where tiles are still to come, "none" where there is no map.
    draw(palette, without, look, room) {
      side = Math.max(180, Math.min(MOST_SIDE, room - LEFT_OF_MAP - RIGHT_OF_MAP));
      under = named(place()) ? UNDER_MAP.tokens : UNDER_MAP.numbers;
      const now = JSON.stringify([get("layer"), get("head"), get("view"), without, get("sinks"), palette.id, look, side, window.devicePixelRatio, store.version(`${get("layer")}.${get("head")}`)]);
      if (now === drawn) return state;
      drawn = now;
      const [wide, high] = [LEFT_OF_MAP + side + RIGHT_OF_MAP, OVER_MAP + side + under];
      root.style.width = `${wide}px`;
      root.style.height = `${high}px`;
      const context = pen(base, wide, high);
      const at = place();
      context.save();
      context.beginPath();
      context.rect(LEFT_OF_MAP, OVER_MAP, side, side);
      context.clip();
      hatched(context, look.ink, LEFT_OF_MAP, OVER_MAP, side, side);
      state = cells(context, palette, without, at);
      context.restore();
      crowns(context, at, look.sink);
      axes(context, at, look);
      bar(context, palette, look.ink);
      return state;
    },
    // The cross: the token in question as a band, the cell under the pointer as a frame, a box.
    mark({ token, way, cell, box }, look) {
      const [wide, high] = [LEFT_OF_MAP + side + RIGHT_OF_MAP, OVER_MAP + side + under];
      const context = pen(over, wide, high);
      const at = place();
      const frameOf = (x, y, w, h, dash) => {
        for (const [colour, line] of [[look.halo, 3], [look.ink, 1.2]]) {
          context.strokeStyle = colour;
          context.lineWidth = line;
          context.setLineDash(line > 2 ? [] : dash);
          context.strokeRect(x, y, w, h);
        }
      };
      context.beginPath();
      context.rect(LEFT_OF_MAP - 2, OVER_MAP - 2, side + 4, side + 4);
      context.clip();
      if (token !== null) {
        const thick = Math.max(3, at.scale);
        if (way === "keys") frameOf(LEFT_OF_MAP, at.y(token + 0.5) - thick / 2, side, thick, []);
        else frameOf(at.x(token + 0.5) - thick / 2, OVER_MAP, thick, side, []);
      }
      if (cell) {
        const size = Math.max(7, at.scale);
        frameOf(at.x(cell.key + 0.5) - size / 2, at.y(cell.query + 0.5) - size / 2, size, size, []);
      }
      if (box) frameOf(...box, [4, 3]);
    },
  };
}
