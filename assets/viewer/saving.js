// Pictures to keep, made in the browser: boards with captions as PNG, films as animated PNG or as a strip.
"use strict";

const SAVED_CELL = { sudoku: 40, tokens: 28, maze: 16, arc: 20 }; // pixels
const MARGIN = 16;
const CAPTION = 26;
const NARROWEST = 170; // room for a title above a small board
const PLOT_HEIGHT = 130;

/** A canvas of that many pixels in the page's colour, and its context. */
function blankPicture(width, height, colours) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { alpha: false });
  context.fillStyle = colours.page;
  context.fillRect(0, 0, width, height);
  return [canvas, context];
}

/**
 * Panels (`title`, `board`) in lines of `perLine`, under a headline, and below them the plot of a film at a step.
 *
 * The picture's size depends on nothing but theirs and whether there is a plot.
 */
function drawPicture(headline, panels, colours, { perLine = panels.length, film = null, step = 0, flash = 0 } = {}) {
  const cell = SAVED_CELL[panels[0].board.kind];
  const places = [];
  let [x, y, lineHeight, width] = [MARGIN, MARGIN + CAPTION, 0, 420];
  panels.forEach(({ board: { area } }, i) => {
    if (i && i % perLine === 0) [x, y, lineHeight] = [MARGIN, y + lineHeight + MARGIN, 0];
    const panelWidth = Math.max((area.right - area.left) * cell, NARROWEST);
    places.push([x, y, panelWidth]);
    x += panelWidth + MARGIN;
    lineHeight = Math.max(lineHeight, CAPTION + (area.bottom - area.top) * cell);
    width = Math.max(width, x);
  });
  const bottom = y + lineHeight + MARGIN;
  const [canvas, context] = blankPicture(width, bottom + (film ? PLOT_HEIGHT + MARGIN : 0), colours);
  const write = (text, font, ink, left, middle, room) => {
    Object.assign(context, { textBaseline: "middle", fillStyle: ink, font: `${font} ${FONT}` });
    context.fillText(text, left, middle, room);
  };
  write(headline, "600 15px", colours.ink, MARGIN, MARGIN + CAPTION / 2 - 3, width - 2 * MARGIN);
  panels.forEach(({ title, board }, i) => {
    const [left, top, room] = places[i];
    write(title, "13px", colours.muted, left, top + CAPTION / 2, room);
    drawBoard(context, board, colours, left, top + CAPTION, cell, flash);
  });
  if (film) drawPlot(context, film, step, colours, MARGIN, bottom, width - 2 * MARGIN, PLOT_HEIGHT);
  return canvas;
}

function toPng(canvas) {
  return new Promise((resolve, reject) =>
    canvas.toBlob(
      (blob) =>
        blob
          ? resolve(blob)
          : reject(new FileProblem("the picture is too large for this browser: save a single step instead")),
      "image/png",
    ),
  );
}

/** Let the browser save a blob under that name. */
function saveBlob(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// -------------------------------------------------------------------------------- animated PNG (PNG 3, section 11.3.6)

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/** A chunk of a PNG file: length, type, data and checksum. */
function pngChunk(type, data) {
  const chunk = new Uint8Array(12 + data.length);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, data.length);
  for (let i = 0; i < 4; i++) chunk[4 + i] = type.charCodeAt(i);
  chunk.set(data, 8);
  let crc = 0xffffffff;
  for (let i = 4; i < 8 + data.length; i++) crc = CRC_TABLE[(crc ^ chunk[i]) & 255] ^ (crc >>> 8);
  view.setUint32(8 + data.length, ~crc);
  return chunk;
}

/** The chunks of a PNG file as [type, data]. */
function pngChunks(bytes) {
  const view = new DataView(bytes.buffer);
  const chunks = [];
  for (let at = 8; at < bytes.length;) {
    const length = view.getUint32(at);
    chunks.push([String.fromCharCode(...bytes.subarray(at + 4, at + 8)), bytes.subarray(at + 8, at + 8 + length)]);
    at += 12 + length;
  }
  return chunks;
}

function bigEndian(...fields) {
  // [bytes, value] each
  const data = new DataView(new ArrayBuffer(fields.reduce((sum, [bytes]) => sum + bytes, 0)));
  let at = 0;
  for (const [bytes, value] of fields) {
    if (bytes === 4) data.setUint32(at, value);
    else if (bytes === 2) data.setUint16(at, value);
    else data.setUint8(at, value);
    at += bytes;
  }
  return new Uint8Array(data.buffer);
}

/** An animation without end: `draw(i)` gives picture i, all of one size, `milliseconds(i)` how long it stays. */
async function animatedPng(count, draw, milliseconds) {
  const parts = [];
  let sequence = 0;
  for (let i = 0; i < count; i++) {
    const picture = draw(i);
    const chunks = pngChunks(new Uint8Array(await (await toPng(picture)).arrayBuffer()));
    if (i === 0) {
      parts.push(Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10));
      parts.push(pngChunk("IHDR", chunks.find(([type]) => type === "IHDR")[1]));
      parts.push(pngChunk("acTL", bigEndian([4, count], [4, 0])));
    }
    const size = [
      [4, picture.width],
      [4, picture.height],
      [4, 0],
      [4, 0],
    ];
    const delay = [
      [2, Math.min(milliseconds(i), 65_535)],
      [2, 1000],
    ];
    parts.push(pngChunk("fcTL", bigEndian([4, sequence++], ...size, ...delay, [1, 0], [1, 0])));
    for (const [type, data] of chunks) {
      if (type !== "IDAT") continue;
      if (i === 0) {
        // the first picture is also what programs show that know no animation
        parts.push(pngChunk("IDAT", data));
        continue;
      }
      const numbered = new Uint8Array(4 + data.length);
      new DataView(numbered.buffer).setUint32(0, sequence++);
      numbered.set(data, 4);
      parts.push(pngChunk("fdAT", numbered));
    }
  }
  parts.push(pngChunk("IEND", new Uint8Array(0)));
  return new Blob(parts, { type: "image/png" });
}
