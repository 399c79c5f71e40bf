// Shared by the widgets; Python puts this before each widget's own module. Text from models and
// users is only ever set as textContent.

// The HTML parser knows the namespace of SVG, so that no address need stand here.
const NAMESPACE = new DOMParser().parseFromString("<svg></svg>", "text/html").body.firstChild
  .namespaceURI;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  for (const child of children) node.append(child); // a string becomes a text node
  return node;
}

const html = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);

const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(NAMESPACE, tag), attributes, children);

// Bytes arrive as a DataView at any offset; Float32Array wants a multiple of four, hence the copy.
function floats(view) {
  if (!view || !view.byteLength) return new Float32Array();
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

// An SVG path through the finite values; x and y map an index and a value to pixels.
function path(values, x, y) {
  let d = "";
  let pen = "M";
  values.forEach((value, i) => {
    d += Number.isFinite(value) ? `${pen}${x(i).toFixed(1)} ${y(value).toFixed(1)}` : "";
    pen = Number.isFinite(value) ? "L" : "M";
  });
  return d;
}

function ticks(low, high, most) {
  const rough = (high - low) / most;
  const ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((n) => n * ten >= rough) * ten;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + 1e-9; at += step) found.push(at);
  return found.map((at) => [at, at.toLocaleString("en", { maximumFractionDigits: 3 })]);
}

// Heights at least `gap` apart, in the order of the wanted ones.
function spread(wanted, gap, low, high) {
  const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]);
  const placed = [];
  let floor = low;
  for (const i of order) floor = (placed[i] = Math.max(wanted[i], floor)) + gap;
  let ceiling = high;
  for (const i of order.reverse()) ceiling = (placed[i] = Math.min(placed[i], ceiling)) - gap;
  return placed;
}

const count = (value) => value.toLocaleString("en");

// A share of the attention: 87 %, 3.4 %, <0.1 %.
function percent(share) {
  const hundred = 100 * share;
  if (hundred > 0 && hundred < 0.05) return "<0.1 %";
  return `${hundred.toFixed(hundred >= 9.95 || hundred === 0 ? 0 : 1)} %`;
}

function number(value) {
  if (!Number.isFinite(value)) return "\u2013";
  if (value < 100) return value.toFixed(1);
  return value < 1e5 ? count(Math.round(value)) : value.toExponential(1);
}

// Every widget has a module and a count of its own; the mark keeps the ids of two apart.
let made = 0;
const MARK = Math.random().toString(36).slice(2, 10);
const unique = (name) => `sinkviz-${name}-${MARK}-${(made += 1)}`;

// JupyterLab takes arrows, space and enter for its own, unless the very element that has the focus
// says otherwise.
const control = (tag, attributes = {}, ...children) =>
  html(tag, { ...attributes, "data-lm-suppress-shortcuts": "true" }, ...children);

// Whether what is drawn on an element's canvas should be light on dark, told by its own lettering.
function isDark(element) {
  const [red, green, blue] = getComputedStyle(element).color.match(/[\d.]+/g).map(Number);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 127;
}

// Calls `act` when JupyterLab, or the system, changes between light and dark; returns the way out.
function onTheme(act) {
  const watch = new MutationObserver(act);
  watch.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name", "data-jp-theme-light"] });
  const media = matchMedia("(prefers-color-scheme: dark)");
  media.addEventListener("change", act);
  return () => {
    watch.disconnect();
    media.removeEventListener("change", act);
  };
}

const frame = (label, ...children) =>
  html("div", { class: "sinkviz", role: "group", "aria-label": label }, ...children);
