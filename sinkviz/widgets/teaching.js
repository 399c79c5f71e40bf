// Shared by the teaching widgets; stands between the shared functions and a widget's own module.
// RAMPS, the colour maps of the figures for light and dark paper, comes from Python.

const MINUS = "\u2212";
const DASH = "\u2013";
const signed = (value, digits = 1) => value.toFixed(digits).replace(/^-/, MINUS);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function writer(model) {
  return (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
}

// Draws now, and again whenever a trait or the width changes; returns how to stop that.
function drawn(model, names, root, draw) {
  let waiting = 0;
  const soon = () => {
    waiting = waiting || requestAnimationFrame(() => {
      waiting = 0;
      draw();
    });
  };
  for (const name of names) model.on(`change:${name}`, soon);
  const resized = new ResizeObserver(soon);
  resized.observe(root);
  draw();
  return () => {
    resized.disconnect();
    cancelAnimationFrame(waiting);
    for (const name of names) model.off(`change:${name}`, soon);
  };
}

// A native range input, its name before it and its value behind; `put` hears of moves.
function range({ name, hint = "", role = "recent", low, high, step = 1, say }, put) {
  const id = unique("range");
  const input = control("input", { id, type: "range", min: low, max: high, step });
  const output = html("output", { for: id });
  const show = (value) => {
    input.value = value;
    const at = (Number(input.value) - input.min) / Math.max(input.max - input.min, 1e-9);
    input.style.setProperty("--fill", `${100 * at}%`);
    output.textContent = say(Number(value));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => put(Number(input.value)));
  const row = html("div", { class: "slider", style: `--role: var(--sinkviz-${role})` },
    html("label", { for: id }, html("b", {}, name), html("span", { class: "soft" }, hint ? ` ${hint}` : "")),
    input, output);
  return { row, input, show };
}

function button(name, act, kind = "") {
  const made = control("button", { type: "button", class: kind }, name);
  made.addEventListener("click", act);
  return made;
}

// Options are [value, text]; values are compared as text.
function choice(name, options, put) {
  const select = control("select", {}, ...options.map(([value, text]) => html("option", { value }, text)));
  select.addEventListener("change", () => put(select.value));
  return { row: html("label", {}, name, select), select };
}

// Buttons of which one is pressed.
function pressed(name, options, put) {
  const buttons = options.map(([value, text]) => [value, button(text, () => put(value))]);
  const row = html("div", { class: "controls", role: "group", "aria-label": name }, ...buttons.map(([, one]) => one));
  const show = (now) => buttons.forEach(([value, one]) => one.setAttribute("aria-pressed", value === now));
  return { row, show };
}

// A colour map at a place from 0 to 1, and ink that can be read on it; both follow the theme.
function mixed(stops, place) {
  const at = clamp(place, 0, 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
  return [0, 1, 2].map((i) => Math.round(part(stops[low], i) * (1 - at + low) + part(stops[low + 1], i) * (at - low)));
}
function bright(rgb) {
  const linear = rgb.map((c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18;
}
const themed = ([light, dark]) => `light-dark(${light}, ${dark})`;
const shade = (name, place) => themed(RAMPS[name].map((stops) => `rgb(${mixed(stops, place)})`));
const inkOn = (name, place) => themed(RAMPS[name].map((stops) => (bright(mixed(stops, place)) ? "#111" : "#fff")));

// Axes of a chart. `x` and `y` map data to pixels; `parts` holds axes, ticks and names.
function chart({ width, height, left = 48, right = 12, top = 24, bottom = 36, xs, ys, log = false, xname, yname, xticks, yticks }) {
  const across = log ? Math.log : (value) => value;
  const [first, last] = xs.map(across);
  const x = (value) => left + ((width - left - right) * (across(value) - first)) / (last - first || 1);
  const y = (value) => top + ((height - top - bottom) * (ys[1] - value)) / (ys[1] - ys[0] || 1);
  const floor = height - bottom;
  const parts = [svg("path", { class: "axis", d: `M${left} ${top}V${floor}H${width - right}` })];
  for (const [at, text] of xticks ?? (log ? decades(xs, (width - left - right) / 52) : ticks(xs[0], xs[1], 6))) {
    parts.push(svg("path", { class: "axis", d: `M${x(at)} ${floor}v4` }));
    parts.push(svg("text", { x: x(at), y: floor + 16, "text-anchor": "middle" }, text));
  }
  for (const [at, text] of yticks ?? ticks(ys[0], ys[1], 4)) {
    parts.push(svg("path", { class: "axis", d: `M${left - 4} ${y(at)}h4` }));
    parts.push(svg("text", { x: left - 7, y: y(at) + 4, "text-anchor": "end" }, String(text).replace(/^-/, MINUS)));
  }
  parts.push(svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xname));
  parts.push(svg("text", { x: 2, y: 12 }, yname));
  return { x, y, parts, floor, top };
}

// 1, 10, 100 ... where there are several, otherwise 1, 2, 4 ...; no more than fit.
function decades([low, high], most) {
  const base = high / low > 200 ? 10 : 2;
  const found = [];
  for (let n = Math.ceil(Math.log(low) / Math.log(base) - 1e-9); base ** n <= high * 1.001; n += 1) found.push(base ** n);
  const step = Math.max(1, Math.ceil(found.length / Math.max(2, most)));
  return found.filter((_, i) => i % step === 0).map((at) => [at, short(at)]);
}
const short = (n) => (n >= 1e6 ? `${+(n / 1e6).toPrecision(3)} M` : n >= 1e4 ? `${+(n / 1e3).toPrecision(3)} k` : count(+n.toPrecision(4)));

// A triangle of cells; those of one shade are one path, which draws fast.
function triangle(n, size, left, top, name, place) {
  const levels = new Map();
  for (let query = 0; query < n; query += 1) {
    for (let key = 0; key <= query; key += 1) {
      const level = Math.round(48 * clamp(place(query, key), 0, 1));
      const cell = `M${(left + key * size).toFixed(2)} ${(top + query * size).toFixed(2)}h${size.toFixed(2)}v${size.toFixed(2)}h-${size.toFixed(2)}z`;
      levels.set(level, (levels.get(level) ?? "") + cell);
    }
  }
  return [...levels].map(([level, d]) => svg("path", { d, style: `fill: ${shade(name, level / 48)}` }));
}

// A colour bar that lies; `at` maps its labels to places from 0 to 1.
function colourBar(left, top, width, name, labels, title) {
  const steps = Array.from({ length: 33 }, (_, i) => i);
  const each = width / steps.length;
  return [
    ...steps.map((i) => svg("rect", { x: left + i * each, y: top, width: each + 0.5, height: 8, style: `fill: ${shade(name, i / 32)}` })),
    ...labels.map(([place, text]) => svg("text", { x: left + place * width, y: top + 20, "text-anchor": place < 0.1 ? "start" : place > 0.9 ? "end" : "middle" }, text)),
    svg("text", { x: left + width + 10, y: top + 9 }, title),
  ];
}

// Diagonal lines within a box: the second channel of what is gone or goes nowhere.
function hatched(x, y, width, height) {
  let d = "";
  for (let at = 4; at < width + height; at += 6) {
    const [right, down] = [Math.min(at, width), Math.min(at, height)];
    d += `M${(x + right).toFixed(1)} ${(y + at - right).toFixed(1)}L${(x + at - down).toFixed(1)} ${(y + down).toFixed(1)}`;
  }
  return svg("path", { class: "hatched", d });
}
