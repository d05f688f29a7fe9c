// The present example on the page and in saved pictures: what it is, its boards, and the other ones of its puzzle.
// Works on page.js's `view` and `player`.
"use strict";

const LARGEST_CELL = { sudoku: 46, tokens: 34, maze: 30, arc: 40 }; // CSS pixels
// Boards stand in one line while cells are at least as large as the first number, else in pairs down to the second.
const SMALLEST_CELL = { sudoku: [22, 14], tokens: [24, 18], maze: [8, 6], arc: [8, 6] };
const TALLEST_BOARD = 480;
const GAP = 24;
const MOST_SIBLINGS = 16;

/** Tell of a token that the vocabulary lacks; the example is shown all the same. */
function warnOfUnknownTokens() {
  const vocabulary = view.dataset?.metadata[view.split].vocab_size ?? Infinity;
  for (const kind of ["inputs", "labels"]) {
    const wrong = view.current[kind].find(
      (token) => (token >= vocabulary || token < 0) && !view.set.ignored.includes(token),
    );
    if (wrong !== undefined) {
      const found = `${view.set[kind].path}: token ${wrong} in example ${view.example}`;
      tell(new FileProblem(`${found}, expected 0 to ${vocabulary - 1}; build the data set again`));
    }
  }
}

/** Everything about the current example but its thumbnails. */
function showPuzzle() {
  const { set, example, current } = view;
  const puzzle = set.puzzleOf(example);
  const group = set.groupOf(puzzle);
  const identifier = set.identifiers[puzzle];
  byId("jump").value = example;
  byId("name").textContent = titleOf(identifier) ?? `Example ${grouped(example)}`;
  const where = [
    view.dataset
      ? `${view.dataset.name} / ${view.split}${byId("set-label").hidden ? "" : ` / ${view.setName}`}`
      : view.predictions.name,
  ];
  where.push(`group ${grouped(group)}, puzzle ${grouped(puzzle)}, identifier ${grouped(identifier)}`);
  const size = (tokens) => sizeOf(gridArea(tokens)).join(" × ");
  if (view.kind === "arc" && set.seqLen === ARC_SIDE * ARC_SIDE) {
    where.push(`input ${size(current.inputs)}, label ${size(current.shownLabels)}`);
  } else {
    const clues = current.inputs.filter((token) => token > 1).length;
    where.push(`${view.rows} × ${view.columns}${view.kind === "sudoku" ? `, ${plural(clues, "clue")}` : ""}`);
  }
  byId("place").textContent = where.join(" · ");
  [current, current.other].forEach((answer, i) => {
    const line = byId(["verdict", "other-verdict"][i]);
    line.hidden = i > 0 && !view.scores?.other;
    const [result, details] = verdict(answer);
    line.firstChild.textContent = view.scores?.other ? `Run ${i + 1}: ${result}` : result;
    line.lastChild.textContent = details;
    const isKnown = answer.preds && current.unscored.some((unscored) => !unscored);
    line.className = isKnown ? (count(answer.wrong) ? "wrong" : "exact") : "";
  });
  byId("votes").textContent = current.votes && `${ofRunOne("Votes")}: ${current.votes}`;
  byId("votes").hidden = !current.votes;
  byId("crop-label").hidden = view.kind !== "arc";
  byId("film").hidden = !current.film;
  byId("readout").textContent = "";
  layOut();
  const present = entryAt(view.entries.starts, example);
  list.select(present >= 0 && example < endOfEntry(present) ? present : -1);
}

/** The name of what is known of the first run only, where two are compared. */
const ofRunOne = (what) => (view.scores?.other ? `Run 1, ${what.toLowerCase()}` : what);

/** How a run's prediction does, and what the model thought of it. */
function verdict(answer) {
  const { current, scores } = view;
  if (!answer.preds) return [scores ? "No prediction for this example" : "", ""];
  const wrong = count(answer.wrong);
  const scored = current.unscored.length - count(current.unscored);
  const details = [];
  if (answer.qHalt !== null)
    details.push(`q_halt ${signed(answer.qHalt)} (${(100 / (1 + Math.exp(-answer.qHalt))).toFixed(0)}\u00a0% sure)`);
  if (answer.qContinue !== null) details.push(`q_continue ${signed(answer.qContinue)}`);
  if (answer.film?.halted) details.push(answer.film.describeHalt());
  const [isRight, words] = judge(view.kind, current.inputs, answer.preds, view.columns, view.box) ?? [false, ""];
  const isOther = wrong && isRight; // right, but not the label's way
  if (words && !isOther) details.unshift(words);
  if (!scored) return ["No label", details.map((text) => ` · ${text}`).join("")];
  return [
    wrong ? `✗ ${grouped(wrong)} of ${plural(scored, "cell")} wrong${isOther ? `, yet ${words}` : ""}` : "✓ Exact",
    details.map((text) => ` · ${text}`).join(""),
  ];
}

/** The boards of the current example: input, predictions (of a film's step), label, and ARC's attempts. */
function boardsAt(step) {
  const { kind, columns, rows, box, vocabulary, current } = view;
  const isArc = kind === "arc" && view.set.seqLen === ARC_SIDE * ARC_SIDE;
  const whole = { top: 0, left: 0, bottom: rows, right: columns };
  const crop = isArc && byId("crop").checked;
  const board = (tokens, area, more) => ({
    ...{ kind, columns, box, vocabulary, tokens },
    area: crop ? area : whole,
    ...more,
  });
  const clue = kind === "sudoku" ? Uint8Array.from(current.inputs, (token) => token > 1) : null;
  const labelArea = crop ? gridArea(current.shownLabels) : whole;
  const inputArea = crop ? gridArea(current.inputs) : whole;
  const panels = [{ title: "Input", role: "input", board: board(current.inputs, inputArea, { clue }) }];
  const label = { title: "Label", role: "label", board: board(current.shownLabels, labelArea, { clue }) };
  if (view.scores?.other) panels.push(label); // so that the two runs stand side by side also where boards are in pairs
  [current, current.other].forEach((answer, i) => {
    if (!answer.preds) return;
    const { film } = answer;
    const at = film && (current.film ? Math.min(step, film.steps - 1) : film.steps - 1);
    const title = view.scores.other ? `Run ${i + 1}` : "Prediction";
    panels.push({
      title: film ? `${title}, step ${at + 1} of ${film.steps}` : title,
      role: ["prediction", "other-prediction"][i],
      board: board(film ? film.tokens(at) : answer.preds, crop ? predictionArea(answer, labelArea) : whole, {
        clue,
        wrong: byId("marks").checked ? (film ? film.wrong[at] : answer.wrong) : null,
        changed: film ? film.changed(at) : null,
        unscored: isArc || vocabulary ? current.unscored : null, // which is padding there
      }),
    });
  });
  if (!view.scores?.other) panels.push(label);
  const attempts = isArc ? current.attempts : [];
  attempts.forEach(({ tokens, wrong }, i) => {
    const which = attempts.length > 1 ? `Attempt ${i + 1}` : "Both attempts";
    panels.push({
      title: `${ofRunOne(which)}: ${count(wrong) ? "wrong" : "right"}`,
      role: `attempt-${i + 1}`,
      board: board(tokens, crop ? gridArea(tokens) : whole, {
        wrong: byId("marks").checked ? wrong : null,
        unscored: current.unscored,
      }),
    });
  });
  return panels;
}

/** Where to crop a prediction: at the label's grid, and one line further where the model missed the grid's end. */
function predictionArea({ film, wrong }, area) {
  const isWrong = (row, column) => (film?.wrong ?? [wrong]).some((flags) => flags[row * ARC_SIDE + column]);
  const range = (from, to) => Array.from({ length: to - from }, (_, i) => from + i);
  const below = area.bottom < ARC_SIDE && range(area.left, area.right).some((column) => isWrong(area.bottom, column));
  const beside = area.right < ARC_SIDE && range(area.top, area.bottom).some((row) => isWrong(row, area.right));
  return { ...area, bottom: area.bottom + below, right: area.right + beside };
}

/** Make the figures for the current example, with cells as large as the page's width allows. */
function layOut() {
  const panels = boardsAt(player.step);
  const box = byId("panels");
  const available = box.clientWidth;
  const sizes = panels.map(({ board }) => sizeOf(board.area));
  const allColumns = sizes.reduce((sum, [, columns]) => sum + columns, 0);
  const [mostRows, mostColumns] = [0, 1].map((axis) => Math.max(...sizes.map((size) => size[axis])));
  const [inOneLine, inPairs] = SMALLEST_CELL[view.kind];
  let cell = (available - GAP * (panels.length - 1)) / allColumns;
  if (cell < (view.scores?.other ? inPairs : inOneLine)) cell = (available - GAP) / (2 * mostColumns);
  if (cell < inPairs) cell = available / mostColumns;
  cell = Math.min(cell, LARGEST_CELL[view.kind], TALLEST_BOARD / mostRows);
  const ratio = window.devicePixelRatio || 1;
  const pixels = Math.max(2, Math.floor(cell * ratio)); // of the device, so that lines are crisp
  view.cellPixels = pixels;
  view.panels = panels.map(({ role }, i) => {
    const figure = document.createElement("figure");
    const [caption, canvas, text] = ["figcaption", "canvas", "pre"].map((tag) =>
      figure.appendChild(document.createElement(tag)),
    );
    const [rows, columns] = sizes[i];
    Object.assign(canvas, { width: columns * pixels, height: rows * pixels });
    canvas.style.width = `${(columns * pixels) / ratio}px`;
    figure.style.width = `max(${canvas.style.width}, 76px)`;
    canvas.setAttribute("role", "img");
    figure.dataset.role = role;
    text.className = "as-text";
    canvas.addEventListener("pointermove", (event) => readOut(event, i));
    canvas.addEventListener("pointerdown", (event) => readOut(event, i));
    canvas.addEventListener("pointerleave", () => {
      byId("readout").textContent = "";
    });
    return { figure, caption, canvas, text };
  });
  const figures = view.panels.map(({ figure }) => figure);
  const runs = figures.filter(({ dataset }) => /prediction$/.test(dataset.role));
  if (runs.length > 1) {
    const together = document.createElement("div"); // on one line wherever both fit
    figures.splice(figures.indexOf(runs[0]), runs.length, together);
    together.append(...runs);
  }
  box.replaceChildren(...figures);
  drawStep(0.25, panels);
}

/** Draw the boards, and the film's controls at its present step. */
function drawStep(flash, panels = boardsAt(player.step)) {
  const colours = themeColours();
  view.panels.forEach(({ caption, canvas, text }, i) => {
    const { title, board } = panels[i];
    caption.textContent = title;
    canvas.setAttribute("aria-label", `${title}: ${KINDS[board.kind].title}, ${sizeOf(board.area).join(" by ")} cells`);
    drawBoard(canvas.getContext("2d"), board, colours, 0, 0, view.cellPixels, flash);
    const lines = boardText(board);
    if (text.textContent !== lines) text.textContent = lines;
  });
  const { film } = player;
  if (!film) return;
  Object.assign(byId("step"), { max: film.steps, value: player.step + 1 });
  byId("step").setAttribute("aria-valuetext", film.describe(player.step));
  byId("step-text").textContent = film.describe(player.step);
  byId("play").textContent = player.playing ? "Pause" : "Play";
  const plot = byId("plot");
  const ratio = window.devicePixelRatio || 1;
  Object.assign(plot, { width: Math.round(plot.clientWidth * ratio), height: Math.round(plot.clientHeight * ratio) });
  const context = plot.getContext("2d");
  context.scale(ratio, ratio);
  drawPlot(context, film, player.step, colours, 0, 0, plot.clientWidth, plot.clientHeight);
  const halt = film.describeHalt();
  plot.setAttribute(
    "aria-label",
    `Wrong cells after each step: ${film.wrongCells.join(", ")}${halt ? `; ${halt}` : ""}`,
  );
}

/** A board as lines of text, for screen readers. */
function boardText({ kind, tokens, columns, area, vocabulary }) {
  const texts = Array.from(tokens, (token) => KINDS[kind].text(token, vocabulary));
  const width = texts.reduce((most, text) => Math.max(most, text.length), 1);
  const lines = [];
  for (let row = area.top; row < area.bottom; row++) {
    const line = texts.slice(row * columns + area.left, row * columns + area.right);
    lines.push(line.map((text) => text.padStart(width)).join(width > 1 || kind === "sudoku" ? " " : ""));
  }
  return lines.join("\n");
}

/** Say what the cell under the pointer is. */
function readOut(event, i) {
  const { board } = boardsAt(player.step)[i];
  const box = view.panels[i].canvas.getBoundingClientRect();
  const { top, left, bottom, right } = board.area;
  const row = top + Math.floor(((event.clientY - box.top) / box.height) * (bottom - top));
  const column = left + Math.floor(((event.clientX - box.left) / box.width) * (right - left));
  const token = board.tokens[row * board.columns + column];
  if (token === undefined) return;
  const label = view.current.shownLabels[row * board.columns + column];
  const nameOfToken = (any) => KINDS[view.kind].name(any, view.vocabulary);
  const wrong = board.wrong?.[row * board.columns + column] ? `, label ${nameOfToken(label)}` : "";
  byId("readout").textContent = `row ${row}, column ${column}: ${nameOfToken(token)} (token ${token})${wrong}`;
}

/** Thumbnails beside the example: those of its puzzle, and for an ARC test example its task's demonstrations. */
async function showPairs() {
  const { set, example, split, setName, ticket } = view;
  const puzzle = set.puzzleOf(example);
  const [start, end] = [set.puzzleIndices[puzzle], set.puzzleIndices[puzzle + 1]];
  const shown = Math.min(end, start + MOST_SIBLINGS);
  const title = `${plural(end - start, "example")} of this puzzle${end > shown ? `, the first ${shown - start}` : ""}`;
  await fillPairs("siblings", title, end - start > 1 ? { set, start, end: shown, open: show } : null);
  Array.from(byId("siblings").querySelectorAll("button"), (button, i) =>
    button.setAttribute("aria-current", start + i === example),
  );
  const identifier = set.identifiers[puzzle];
  const isTask = view.kind === "arc" && view.dataset && split === "test" && titleOf(identifier) !== null;
  const found = isTask ? await demonstrationsOf(view.dataset, identifier) : null;
  if (ticket !== view.ticket) return;
  const open = (other) => attempt(() => chooseSet("train", found.name ?? setName, other));
  await fillPairs("demonstrations", "Demonstrations", found && { ...found, open });
}

/** Fill a section with inputs and labels as buttons; `pairs` is null where it stays hidden. Does nothing twice. */
async function fillPairs(id, title, pairs) {
  const section = byId(id);
  section.hidden = !pairs;
  if (!pairs) return;
  const { set, start, end, open } = pairs;
  const { theme } = document.documentElement.dataset;
  const key = [set.inputs.path, start, view.kind, theme, byId("crop").checked].join(" ");
  if (view.pairs[id] === key) return;
  const { ticket } = view;
  const [inputs, labels] = await Promise.all([set.inputs.rows(start, end), set.labels.rows(start, end)]);
  if (ticket !== view.ticket) return;
  view.pairs[id] = key;
  section.querySelector("h3").textContent = title;
  section.querySelector("div").replaceChildren(
    ...Array.from({ length: end - start }, (_, i) => {
      const button = document.createElement("button");
      const name = id === "siblings" ? `Example ${start + i}` : `Demonstration ${i + 1}`;
      Object.assign(button, { type: "button", ariaLabel: name, onclick: () => open(start + i) });
      for (const tokens of [inputs, labels]) {
        const row = tokens.subarray(i * set.seqLen, (i + 1) * set.seqLen).map((token) => Math.max(0, token));
        button.append(thumbnail(row, id === "siblings" ? 72 : 104));
      }
      return button;
    }),
  );
}

/** A small board of at most `size` CSS pixels. */
function thumbnail(tokens, size) {
  const { kind, columns, rows, box, vocabulary } = view;
  const crop = kind === "arc" && tokens.length === ARC_SIDE * ARC_SIDE && byId("crop").checked;
  const area = crop ? gridArea(tokens) : { top: 0, left: 0, bottom: rows, right: columns };
  const [height, width] = [area.bottom - area.top, area.right - area.left];
  const ratio = window.devicePixelRatio || 1;
  const cell = Math.max(1, Math.floor((size * ratio) / Math.max(height, width)));
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: width * cell, height: height * cell });
  canvas.style.width = `${(width * cell) / ratio}px`;
  const clue = kind === "sudoku" ? tokens.map((token) => token > 1) : null;
  const board = { kind, columns, box, vocabulary, tokens, area, clue };
  drawBoard(canvas.getContext("2d"), board, themeColours(), 0, 0, cell);
  return canvas;
}

// -------------------------------------------------------------------------------------------------------------- saving

/** The data set (or predictions) and the split on show. */
const origin = () => [view.dataset?.name ?? view.predictions.name, view.split].filter(Boolean).join(" ");

const headline = () =>
  [`${byId("name").textContent} · ${origin()} ${view.example}`, ...(view.scores?.other ? runNames() : [])].join(" · ");

const fileName = (what) => `${origin().replace(/[^\w.-]+/g, "-")}-${view.example}${what}.png`;

async function savePicture() {
  const { film } = player;
  const canvas = drawPicture(headline(), boardsAt(player.step), themeColours(), {
    film,
    step: player.step,
    flash: 0.25,
  });
  saveBlob(await toPng(canvas), fileName(film ? `-step-${player.step + 1}` : ""));
}

async function saveFilm() {
  const { film, speed } = player;
  const colours = themeColours();
  const draw = (step) => drawPicture(headline(), boardsAt(step), colours, { film, step, flash: 0.7 });
  const milliseconds = (step) => Math.round((step === film.steps - 1 ? 4000 : 1000) / speed);
  saveBlob(await animatedPng(film.steps, draw, milliseconds), fileName("-film"));
}

async function saveStrip() {
  const { film } = player;
  const panel = (wanted, step) => boardsAt(step).find(({ role }) => role === wanted);
  const steps = Array.from({ length: film.steps }, (_, step) => {
    const wrong = film.wrongCells[step];
    return {
      title: `Step ${step + 1}: ${wrong ? `${wrong} wrong` : "right"}${step === film.halt ? ", halt" : ""}`,
      board: panel("prediction", step).board,
    };
  });
  const panels = [panel("input", 0), ...steps, panel("label", 0)];
  const perLine = Math.ceil(Math.sqrt(1.6 * panels.length));
  saveBlob(await toPng(drawPicture(headline(), panels, themeColours(), { perLine, flash: 0.25 })), fileName("-strip"));
}
