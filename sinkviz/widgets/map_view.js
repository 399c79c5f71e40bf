// The chosen head, large: tiles under a cross, tokens on both axes, a colour bar. Pictures are
// coloured bytes; a picture is coloured once per palette and kept.

const LEFT_OF_MAP = 96;
const RIGHT_OF_MAP = 72;
const UNDER_MAP = { tokens: 92, numbers: 42 };
const OVER_MAP = 10;
const MOST_SIDE = 600;
const SHARES = [0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1];

// The colours of the 256 codes as one number each, for a gamma and a theme; `id` names them.
function paletteOf(colours, gamma, dark) {
  const rgb = (share) => {
    const i = 3 * Math.round(255 * (dark ? share ** gamma : 1 - share ** gamma));
    return [colours[i], colours[i + 1], colours[i + 2]];
  };
  const packed = new Uint32Array(256);
  for (let code = 1; code < 256; code += 1) {
    const [red, green, blue] = rgb(shareOf(code));
    packed[code] = ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  }
  return { id: `${gamma}${dark}`, packed, dark, css: (share) => `rgb(${rgb(share)})`, rgb };
}

// Codes as a canvas of their own, in a palette.
function coloured(palette, codes, wide, high) {
  const canvas = document.createElement("canvas");
  canvas.width = wide;
  canvas.height = high;
  const image = new ImageData(wide, high);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i += 1) pixels[i] = palette.packed[codes[i]];
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function tilePicture(palette, tile) {
  if (tile.id !== palette.id) {
    tile.picture = coloured(palette, tile.codes, tile.wide, tile.high);
    tile.id = palette.id;
  }
  return tile.picture;
}

function coarsePicture(palette, whole, index) {
  const kept = whole.drawn.get(index);
  if (kept?.id === palette.id) return kept.picture;
  const size = whole.side ** 2;
  const picture = coloured(palette, whole.codes.subarray(index * size, (index + 1) * size), whole.side, whole.side);
  whole.drawn.set(index, { id: palette.id, picture });
  return picture;
}

// A pen on a canvas that is sharp on any screen.
function pen(canvas, wide, high) {
  const dense = window.devicePixelRatio || 1;
  const [width, height] = [Math.round(wide * dense), Math.round(high * dense)];
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${high}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(dense, 0, 0, dense, 0, 0);
  context.clearRect(0, 0, wide, high);
  context.imageSmoothingEnabled = false;
  return context;
}

function hatched(context, ink, x, y, wide, high) {
  context.save();
  context.beginPath();
  context.rect(x, y, wide, high);
  context.clip();
  context.strokeStyle = ink;
  context.globalAlpha = 0.16;
  context.beginPath();
  for (let at = x - high; at < x + wide; at += 7) {
    context.moveTo(at, y + high);
    context.lineTo(at + high, y);
  }
  context.stroke();
  context.restore();
}

function mapView(store, get) {
  const base = html("canvas", { "aria-hidden": "true" });
  const over = html("canvas", { "aria-hidden": "true" });
  const root = control("div", {
    class: "map", tabindex: 0, role: "application", "aria-roledescription": "attention map",
    "aria-keyshortcuts": "ArrowUp ArrowDown ArrowLeft ArrowRight Enter + - 0 Escape",
  }, base, over);
  let side = 0;
  let under = UNDER_MAP.numbers;

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
    const { span } = place();
    let cell = store.finest(layer, head);
    while (cell && span / cell > side * (window.devicePixelRatio || 1)) cell *= 2;
    return cell;
  };

  function cells(context, palette, at) {
    const [layer, head, rest, n] = [get("layer"), get("head"), !get("sink"), get("n_tokens")];
    const [whole, index] = store.blurred(layer, head, rest);
    const cell = level(layer, head);
    if (!cell) return "none";
    const size = TILE * cell;
    const last = (from) => Math.min(n, from + at.span) - 1e-6;
    let sharp = true;
    for (let row = Math.floor(at.query / size); row * size < last(at.query); row += 1) {
      for (let column = Math.floor(at.key / size); column * size < last(at.key); column += 1) {
        if (column * size >= (row + 1) * size) continue; // nobody sees the future
        const [x, y] = [at.x(column * size), at.y(row * size)];
        const tile = store.tile(layer, head, cell, rest, row, column);
        if (tile) {
          context.drawImage(tilePicture(palette, tile), x, y, tile.wide * cell * at.scale, tile.high * cell * at.scale);
          continue;
        }
        sharp = false;
        if (!whole) continue;
        context.save();
        context.beginPath();
        context.rect(x, y, size * at.scale, size * at.scale);
        context.clip();
        const wide = whole.side * whole.cell * at.scale;
        context.drawImage(coarsePicture(palette, whole, index), at.x(0), at.y(0), wide, wide);
        context.restore();
      }
    }
    store.flush();
    return sharp ? `${cell}` : "coarse";
  }

  function axes(context, at, ink) {
    const tokens = store.tokens();
    const style = getComputedStyle(root);
    const edge = OVER_MAP + side;
    context.font = `11px ${style.fontFamily}`;
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
      context.font = `${Math.min(12, at.scale * 0.9)}px ${style.fontFamily}`;
      const shown = (from) => [Math.ceil(from - 0.5), Math.min(get("n_tokens"), Math.floor(from + at.span + 0.5))];
      for (let [i, end] = shown(at.key); i < end; i += 1) label(i, at.x(i + 0.5), edge + 5, true);
      for (let [i, end] = shown(at.query); i < end; i += 1) label(i, LEFT_OF_MAP - 5, at.y(i + 0.5), false);
    } else {
      context.textAlign = "center";
      for (const [i, text] of ticks(at.key, at.key + at.span, 6)) if (Number.isInteger(i)) context.fillText(text, at.x(i + 0.5), edge + 12);
      context.textAlign = "right";
      for (const [i, text] of ticks(at.query, at.query + at.span, 6)) if (Number.isInteger(i)) context.fillText(text, LEFT_OF_MAP - 6, at.y(i + 0.5));
    }
    context.font = `11px ${style.fontFamily}`;
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
    for (let y = 0; y < side; y += 1) {
      context.fillStyle = palette.css((1 - (y + 0.5) / side) ** (1 / get("gamma")));
      context.fillRect(left, OVER_MAP + y, 10, 1.5);
    }
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
    draw(palette) {
      const width = root.parentElement?.clientWidth || 600;
      side = Math.max(180, Math.min(MOST_SIDE, width - LEFT_OF_MAP - RIGHT_OF_MAP));
      under = named(place()) ? UNDER_MAP.tokens : UNDER_MAP.numbers;
      const [wide, high] = [LEFT_OF_MAP + side + RIGHT_OF_MAP, OVER_MAP + side + under];
      root.style.width = `${wide}px`;
      root.style.height = `${high}px`;
      const style = getComputedStyle(root);
      const ink = style.color;
      const context = pen(base, wide, high);
      const at = place();
      context.save();
      context.beginPath();
      context.rect(LEFT_OF_MAP, OVER_MAP, side, side);
      context.clip();
      hatched(context, ink, LEFT_OF_MAP, OVER_MAP, side, side);
      const state = cells(context, palette, at);
      context.restore();
      const sinks = at.x(get("n_sink"));
      if (sinks > LEFT_OF_MAP) {
        context.fillStyle = style.getPropertyValue("--sinkviz-sink");
        context.fillRect(LEFT_OF_MAP, OVER_MAP - 6, Math.max(3, Math.min(side, sinks - LEFT_OF_MAP)), 4);
      }
      axes(context, at, ink);
      bar(context, palette, ink);
      return state;
    },
    // The cross: the token in question as a band, the cell under the pointer as a frame, a box.
    mark({ token, way, cell, box }) {
      const [wide, high] = [LEFT_OF_MAP + side + RIGHT_OF_MAP, OVER_MAP + side + under];
      const context = pen(over, wide, high);
      const at = place();
      const style = getComputedStyle(root);
      const frameOf = (x, y, w, h, dash) => {
        for (const [colour, line] of [[style.getPropertyValue("--sinkviz-paper-ink"), 3], [style.color, 1.2]]) {
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

// A text cut to a width, so that no token runs over its neighbours.
function fitted(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  const letters = [...text];
  let n = Math.min(letters.length - 1, 24);
  while (n > 1 && context.measureText(`${letters.slice(0, n).join("")}\u2026`).width > room) n -= 1;
  return `${letters.slice(0, n).join("")}\u2026`;
}
