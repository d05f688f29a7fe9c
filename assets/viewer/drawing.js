// Boards and the plot of a film as pictures on a canvas, the same on the page and in the files that it saves.
"use strict";

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif";

/** The page's colours by the names they have in viewer.css, `--paper` → `paper`, `--wrong-paper` → `wrongPaper`. */
function themeColours() {
  const style = getComputedStyle(document.documentElement);
  const names = [
    "page",
    "paper",
    "ink",
    "muted",
    "line",
    "clue-paper",
    "filled",
    "wrong",
    "wrong-paper",
    "accent",
    "flash",
    "pad",
    "end",
  ];
  return Object.fromEntries(
    names.map((name) => [
      name.replace(/-(.)/g, (_, letter) => letter.toUpperCase()),
      style.getPropertyValue(`--${name}`).trim(),
    ]),
  );
}

/** The colour of a cell, or null where the kind shows its tokens on paper. */
function cellColour(board, token, colours) {
  if (board.kind === "maze") return MAZE_COLOURS[token] ?? null;
  if (board.kind === "arc") {
    if (token === 0) return colours.pad;
    return token === 1 ? colours.end : (ARC_COLOURS[token - ARC_FIRST_COLOUR] ?? null);
  }
  return null;
}

/**
 * Draw a board with its top left corner at (x, y) and cells of `cell` pixels.
 *
 * `board`: `kind`, `columns`, `area` (the rectangle to show), `box` (Sudoku), `vocabulary` and `tokens`; and by cell,
 * where they apply, `clue`, `wrong`, `changed` and `unscored`. `flash`, 0 to 1: how strongly the changed cells light up.
 */
function drawBoard(context, board, colours, x, y, cell, flash = 0) {
  const { top, left, bottom, right } = board.area;
  const [width, height] = [(right - left) * cell, (bottom - top) * cell];
  context.save();
  context.translate(x, y);
  context.fillStyle = colours.paper;
  context.fillRect(0, 0, width, height);
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (let row = top; row < bottom; row++) {
    for (let column = left; column < right; column++) {
      const i = row * board.columns + column;
      if (i >= board.tokens.length) continue;
      drawCell(context, board, i, colours, (column - left) * cell, (row - top) * cell, cell, flash);
    }
  }
  drawLines(context, board, colours, cell);
  context.restore();
}

function drawCell(context, board, i, colours, x, y, cell, flash) {
  const token = board.tokens[i];
  const colour = cellColour(board, token, colours);
  const wrong = board.wrong?.[i];
  context.globalAlpha = board.unscored?.[i] ? 0.3 : 1;
  if (colour !== null) {
    context.fillStyle = colour;
    context.fillRect(x, y, cell, cell);
    if (board.kind === "maze" && (token === 3 || token === 4))
      drawText(context, MAZE_SYMBOLS[token], "#ffffff", x, y, cell, 0.72);
  } else {
    const blank = board.kind === "sudoku" && token === 1;
    const text = blank ? (wrong ? "·" : "") : KINDS[board.kind].text(token, board.vocabulary);
    if (board.kind === "sudoku" && (wrong || board.clue?.[i])) {
      context.fillStyle = wrong ? colours.wrongPaper : colours.cluePaper;
      context.fillRect(x, y, cell, cell);
    }
    const ink = wrong ? colours.wrong : board.kind !== "sudoku" || board.clue?.[i] ? colours.ink : colours.filled;
    const share = [0.62, 0.62, 0.44, 0.38][text.length] ?? 0.3; // of the cell's side, so that the text fits in
    drawText(context, text, ink, x, y, cell, share, board.clue?.[i] ? 650 : 450);
  }
  context.globalAlpha = 1;
  if (board.changed?.[i] && flash > 0) drawChange(context, colours, x, y, cell, flash);
  if (wrong) drawWrong(context, board, colours, x, y, cell);
}

function drawText(context, text, ink, x, y, cell, share, weight = 600) {
  context.font = `${weight} ${Math.round(cell * share)}px ${FONT}`;
  context.fillStyle = ink;
  context.fillText(text, x + cell / 2, y + cell * 0.53);
}

/** Wrong cells have a corner, so that the rest shows what was predicted; in two tones it stands out from any colour. */
function drawWrong(context, board, colours, x, y, cell) {
  const [top, right] = [y + 1, x + cell - 1]; // inside of the lines
  const corner = (ink, leg) => {
    context.fillStyle = ink;
    context.beginPath();
    context.moveTo(right - leg, top);
    context.lineTo(right, top);
    context.lineTo(right, top + leg);
    context.fill();
  };
  if (board.kind === "sudoku" || board.kind === "tokens") {
    corner(colours.wrong, cell * 0.32);
    return;
  }
  const leg = Math.min(14, Math.max(4, cell * 0.46));
  corner("#000000", leg);
  corner("#ffffff", leg * 0.66);
}

function drawChange(context, colours, x, y, cell, flash) {
  const width = Math.max(1.5, cell * 0.11);
  context.globalAlpha = 0.5 * Math.max(0, flash - 0.3);
  context.fillStyle = colours.flash;
  context.fillRect(x, y, cell, cell);
  context.globalAlpha = Math.min(1, 0.35 + flash);
  context.strokeStyle = colours.flash;
  context.lineWidth = width;
  context.strokeRect(x + width / 2, y + width / 2, cell - width, cell - width);
  context.globalAlpha = 1;
}

/** Lines between cells, heavier ones around Sudoku's boxes, and a frame. Crisp, since they lie on whole pixels. */
function drawLines(context, board, colours, cell) {
  const { top, left, bottom, right } = board.area;
  const [width, height] = [(right - left) * cell, (bottom - top) * cell];
  const isSudoku = board.kind === "sudoku";
  const line = (vertical, heavy, at) => {
    const thick = heavy ? Math.max(2, Math.round(cell / 18)) : 1;
    const start = Math.min(Math.max(0, at - (thick >> 1)), (vertical ? width : height) - thick);
    context.fillStyle = heavy ? colours.ink : colours.line;
    if (vertical) context.fillRect(start, 0, thick, height);
    else context.fillRect(0, start, width, thick);
  };
  const [boxRows, boxColumns] = board.box ?? [0, 0];
  const inner = isSudoku || board.kind === "tokens" || (board.kind === "arc" && cell >= 7);
  for (const heavy of inner ? [false, true] : []) {
    for (let column = left + 1; column < right; column++) {
      if (heavy === (boxColumns > 1 && column % boxColumns === 0)) line(true, heavy, (column - left) * cell);
    }
    for (let row = top + 1; row < bottom; row++) {
      if (heavy === (boxRows > 1 && row % boxRows === 0)) line(false, heavy, (row - top) * cell);
    }
  }
  for (const vertical of [true, false]) {
    for (const at of [0, vertical ? width : height]) line(vertical, isSudoku, at);
  }
}

/**
 * Plot a film over its steps: wrong cells as columns, Q values as a line about a dashed zero, the present step and the
 * one at which the model would have halted.
 */
function drawPlot(context, film, step, colours, x, y, width, height) {
  const margin = { left: 34, right: 40, top: 20, bottom: 22 };
  const [plotWidth, plotHeight] = [width - margin.left - margin.right, height - margin.top - margin.bottom];
  const slot = plotWidth / film.steps;
  const xOf = (i) => margin.left + (i + 0.5) * slot;
  const most = Math.max(1, ...film.wrongCells);
  const reach = film.q ? Math.max(1, ...film.q.map(Math.abs).filter(Number.isFinite)) : 1;
  const yOfQ = (value) => margin.top + ((1 - Math.min(1, Math.max(-1, value / reach))) * plotHeight) / 2;
  context.save();
  context.translate(x, y);
  context.font = `11px ${FONT}`;
  context.textBaseline = "middle";

  context.fillStyle = colours.cluePaper;
  context.fillRect(xOf(step) - slot / 2, margin.top, slot, plotHeight);
  film.wrongCells.forEach((wrong, i) => {
    const tall = Math.max(wrong ? 1.5 : 0, (wrong / most) * plotHeight);
    context.globalAlpha = i === step ? 0.85 : 0.4;
    context.fillStyle = colours.wrong;
    context.fillRect(xOf(i) - slot * 0.32, margin.top + plotHeight - tall, slot * 0.64, tall);
  });
  context.globalAlpha = 1;
  context.fillStyle = colours.line;
  context.fillRect(margin.left, margin.top + plotHeight, plotWidth, 1);

  context.fillStyle = colours.wrong;
  context.textAlign = "left";
  context.fillText("wrong cells", margin.left - 28, 9);
  context.textAlign = "right";
  context.fillText(most, margin.left - 5, margin.top + 4);
  context.fillText("0", margin.left - 5, margin.top + plotHeight - 3);

  if (film.q) {
    context.strokeStyle = colours.accent;
    context.setLineDash([2, 4]);
    context.globalAlpha = 0.7;
    context.beginPath();
    context.moveTo(margin.left, yOfQ(0));
    context.lineTo(margin.left + plotWidth, yOfQ(0));
    context.stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
    context.lineWidth = 2;
    context.lineJoin = "round";
    context.beginPath();
    film.q.forEach((value, i) => context.lineTo(xOf(i), yOfQ(value)));
    context.stroke();
    film.q.forEach((value, i) => {
      context.fillStyle = i === step ? colours.accent : colours.paper;
      context.beginPath();
      context.arc(xOf(i), yOfQ(value), Math.min(i === step ? 4.5 : 3, slot * 0.4), 0, 2 * Math.PI);
      context.fill();
      context.stroke();
    });
    context.fillStyle = colours.accent;
    context.fillText(film.qName, width - 6, 9);
    context.textAlign = "left";
    const after = margin.left + plotWidth + 5;
    context.fillText(`+${reach.toFixed(reach < 10 ? 1 : 0)}`, after, margin.top + 4);
    context.fillText("0", after, yOfQ(0));
    context.fillText(`−${reach.toFixed(reach < 10 ? 1 : 0)}`, after, margin.top + plotHeight - 3);
  }
  if (film.halt !== null) {
    context.strokeStyle = context.fillStyle = colours.ink;
    context.lineWidth = 1.5;
    context.setLineDash([5, 3]);
    context.beginPath();
    context.moveTo(xOf(film.halt), margin.top);
    context.lineTo(xOf(film.halt), margin.top + plotHeight);
    context.stroke();
    context.setLineDash([]);
    context.textAlign = "center";
    context.font = `600 11px ${FONT}`;
    const half = context.measureText("halt").width / 2;
    context.fillText("halt", Math.min(Math.max(xOf(film.halt), margin.left + half), width - margin.right - half), 9);
  }
  context.fillStyle = colours.muted;
  context.font = `11px ${FONT}`;
  context.textAlign = "center";
  const every = Math.ceil(26 / slot);
  for (let i = 0; i < film.steps; i++)
    if (i % every === 0 || i === film.steps - 1) {
      if (i === film.steps - 1 || film.steps - 1 - i >= every)
        context.fillText(i + 1, xOf(i), margin.top + plotHeight + 12);
    }
  context.restore();
}

/** The step of a film that lies at a horizontal place of the plot; see `drawPlot`. */
function stepAt(film, place, width) {
  return Math.min(film.steps - 1, Math.max(0, Math.floor((place - 34) / ((width - 74) / film.steps))));
}
