// From codes to pixels: palettes, pens, hatching, and lettering that fits. Knows nothing of heads.

// The colours of the 256 codes as one number each, for a gamma and a theme; `id` names them.
function paletteOf(colours, gamma, dark) {
  const pack = (i) => ((255 << 24) | (colours[i + 2] << 16) | (colours[i + 1] << 8) | colours[i]) >>> 0;
  const at = (share) => 3 * Math.round(255 * (dark ? share ** gamma : 1 - share ** gamma));
  const rgb = (share) => [...colours.slice(at(share), at(share) + 3)];
  const packed = Uint32Array.from({ length: 256 }, (_, code) => (code ? pack(at(shareOf(code))) : 0));
  // From a share of one down to none, evenly on this scale.
  const bar = Uint32Array.from({ length: 256 }, (_, i) => pack(3 * (dark ? 255 - i : i)));
  return { id: `${gamma}${dark}`, packed, bar, css: (share) => `rgb(${rgb(share)})`, rgb };
}

// A canvas and its pixels, used again for every picture: it holds one until the next is coloured.
function makeEasel() {
  const canvas = document.createElement("canvas");
  let sheet = new ArrayBuffer(0);
  return (fill, wide, high) => {
    if (sheet.byteLength < 4 * wide * high) sheet = new ArrayBuffer(4 * wide * high);
    // A canvas is copied whole where it was drawn from: no larger than it has to be.
    if (canvas.width < wide) canvas.width = wide;
    if (canvas.height < high) canvas.height = high;
    fill(new Uint32Array(sheet, 0, wide * high));
    const image = new ImageData(new Uint8ClampedArray(sheet, 0, 4 * wide * high), wide, high);
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  };
}

function coloured(easel, { packed }, codes, wide, high) {
  return easel((pixels) => {
    for (let i = 0; i < pixels.length; i += 1) pixels[i] = packed[codes[i]];
  }, wide, high);
}

// The codes of one head among all.
const codesOf = ({ side, codes }, index) => codes.subarray(index * side ** 2, (index + 1) * side ** 2);

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

// A text cut to a width, so that no token runs over its neighbours.
function fitted(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  const letters = [...text];
  let n = Math.min(letters.length - 1, 24);
  while (n > 1 && context.measureText(`${letters.slice(0, n).join("")}\u2026`).width > room) n -= 1;
  return `${letters.slice(0, n).join("")}\u2026`;
}
