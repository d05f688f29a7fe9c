// Finding puzzles among millions: which predictions are right, what a search or a filter leaves, and a list that draws
// only the rows in sight.
"use strict";

const SCORE_BYTES = 4 << 20; // read at a time while counting wrong cells
const FILTERS = {
  all: "All",
  exact: "Exact",
  wrong: "Wrong",
  sure: "Wrong, yet would halt",
  unsure: "Exact, yet would go on",
  first: "Only run 1 exact",
  second: "Only run 2 exact",
  both: "Both runs exact",
  neither: "Neither run exact",
};
const COMPARISONS = { first: [true, false], second: [false, true], both: [true, true], neither: [false, false] };

/**
 * How many cells of each prediction are wrong, counted in the background for the part of a set that has predictions.
 *
 * `count` examples have a prediction, and `wrong[i]` of the first `done` is known. It is -1 where no cell has a label, as
 * in puzzles whose answer nobody knows: these `unlabelled` ones are neither exact nor wrong. `halts[i]`: whether the
 * model's own rule would halt it after the last step; null if that isn't stored. `other`: the scores of another run, if
 * any.
 */
class Scores {
  constructor(set, predictions, other = null) {
    Object.assign(this, {
      set,
      predictions,
      other,
      done: 0,
      exact: 0,
      unlabelled: 0,
      cells: 0,
      wrongCells: 0,
      halts: null,
      cancelled: false,
    });
    this.count = Math.max(0, Math.min(set.numExamples, predictions.numExamples - set.first));
    this.wrong = new Int32Array(this.count);
  }

  cancel() {
    this.cancelled = true;
    this.other?.cancel();
  }

  /** Count, calling `progress` now and then; ends early once it is cancelled. */
  async run(progress) {
    const { arrays, steps } = this.predictions;
    const { first, seqLen } = this.set;
    if (arrays.step_halted) {
      const halted = await arrays.step_halted.rows(first, first + this.count);
      this.halts = Uint8Array.from({ length: this.count }, (_, i) => halted[(i + 1) * steps - 1]);
    }
    const rows = Math.max(1, Math.floor(SCORE_BYTES / seqLen / 4));
    for (let start = 0; start < this.count && !this.cancelled; start += rows) {
      const stop = Math.min(this.count, start + rows);
      const [preds, labels] = await Promise.all([
        readPredictions(this.predictions, first + start, first + stop),
        this.set.labels.rows(start, stop),
      ]);
      const [a, b] = this.set.ignored;
      for (let row = start; row < stop; row++) {
        const at = (row - start) * seqLen;
        const cellsBefore = this.cells;
        let wrong = 0;
        for (let i = at; i < at + seqLen; i++) {
          if (labels[i] === a || labels[i] === b) continue;
          this.cells++;
          if (preds[i] !== labels[i]) wrong++;
        }
        const isLabelled = this.cells > cellsBefore;
        this.wrong[row] = isLabelled ? wrong : -1;
        this.wrongCells += wrong;
        if (!isLabelled) this.unlabelled++;
        else if (!wrong) this.exact++;
      }
      this.done = stop;
      if (!this.cancelled) progress();
    }
  }

  passes(filter, example) {
    if (example >= this.done || this.wrong[example] < 0) return false;
    const exact = this.wrong[example] === 0;
    if (filter in COMPARISONS) {
      const [one, another] = COMPARISONS[filter];
      return example < this.other.done && exact === one && (this.other.wrong[example] === 0) === another;
    }
    if (filter === "exact" || filter === "wrong") return exact === (filter === "exact");
    return exact === (filter === "unsure") && Boolean(this.halts[example]) === (filter === "sure");
  }
}

/** The final predictions of examples [start, stop), flat; without preds.npy the last step of the film. */
async function readPredictions({ arrays, steps, seqLen }, start, stop) {
  if (arrays.preds) return arrays.preds.rows(start, stop);
  const all = await arrays.step_preds.rows(start, stop);
  const last = new all.constructor((stop - start) * seqLen);
  for (let row = 0; row < stop - start; row++) {
    const end = (row + 1) * steps * seqLen;
    last.set(all.subarray(end - seqLen, end), row * seqLen);
  }
  return last;
}

/**
 * The entries of the list, each beginning at an example: all groups, or the puzzles that a search found, or the
 * examples that a filter lets through. `starts` holds ascending examples; `unit` says what the entries are.
 */
function listEntries(set, names, query, scores, filter) {
  let puzzles = null; // those found
  const text = query.trim().toLowerCase();
  if (text) {
    const matches = new Map();
    const isMatch = (identifier) => {
      if (!matches.has(identifier))
        matches.set(identifier, nameOfIdentifier(names, identifier).toLowerCase().includes(text));
      return matches.get(identifier);
    };
    puzzles = [];
    set.identifiers.forEach((identifier, puzzle) => isMatch(identifier) && puzzles.push(puzzle));
  }
  if (filter !== "all" && scores) {
    const starts = [];
    const ranges = puzzles
      ? puzzles.map((puzzle) => [set.puzzleIndices[puzzle], set.puzzleIndices[puzzle + 1]])
      : [[0, scores.done]];
    for (const [start, stop] of ranges) {
      for (let example = start; example < Math.min(stop, scores.done); example++)
        if (scores.passes(filter, example)) starts.push(example);
    }
    return { unit: "example", starts };
  }
  if (puzzles) return { unit: "puzzle", starts: puzzles.map((puzzle) => set.puzzleIndices[puzzle]) };
  return { unit: "group", starts: set.groupIndices.subarray(0, -1).map((puzzle) => set.puzzleIndices[puzzle]) };
}

function nameOfIdentifier(names, identifier) {
  return names?.[identifier] ?? `identifier ${identifier}`;
}

/** The last entry that begins at or before an example, -1 if there is none. */
function entryAt(starts, example) {
  if (!starts.length || starts[0] > example) return -1;
  let low = 0;
  let high = starts.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (starts[middle] <= example) low = middle;
    else high = middle - 1;
  }
  return low;
}

/**
 * A list box of any length in which only the rows in sight exist. `render(row, i)` fills the element of row i,
 * `choose(i)` is called for a click. Browsers limit an element's height, so a long list's scroll bar is scaled.
 */
class VirtualList {
  static ROW = 34;
  static TALLEST = 8_000_000; // pixels; Firefox draws nothing beyond 17.8 million

  constructor(box, render, choose) {
    Object.assign(this, { box, render, length: 0, selected: -1 });
    this.spacer = box.appendChild(document.createElement("div"));
    this.rows = box.appendChild(document.createElement("div"));
    this.spacer.className = "spacer";
    this.rows.className = "rows";
    box.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(box);
    this.rows.addEventListener("click", (event) => {
      const row = event.target.closest("[role=option]");
      if (row) choose(Number(row.dataset.index));
    });
  }

  get height() {
    return Math.min(this.length * VirtualList.ROW, VirtualList.TALLEST);
  }

  /** How many rows lie above the top edge, for a scroll position; and the other way round. */
  rowsAbove(scrollTop) {
    const range = this.height - this.box.clientHeight;
    return range > 0 ? (scrollTop / range) * (this.length - this.box.clientHeight / VirtualList.ROW) : 0;
  }

  scrollTopOf(rowsAbove) {
    const most = this.length - this.box.clientHeight / VirtualList.ROW;
    return most > 0 ? (rowsAbove / most) * (this.height - this.box.clientHeight) : 0;
  }

  reset(length) {
    this.length = length;
    this.spacer.style.height = `${this.height}px`;
    this.draw();
  }

  select(i) {
    this.selected = i;
    const [above, fit] = [this.rowsAbove(this.box.scrollTop), this.box.clientHeight / VirtualList.ROW];
    if (i >= 0 && (i < above || i + 1 > above + fit)) {
      this.box.scrollTop = this.scrollTopOf(Math.max(0, i < above ? i : i + 1 - fit));
    }
    this.draw();
  }

  draw() {
    const above = this.rowsAbove(this.box.scrollTop);
    const first = Math.max(0, Math.floor(above));
    const count = Math.max(0, Math.min(this.length - first, Math.ceil(this.box.clientHeight / VirtualList.ROW) + 1));
    while (this.rows.childElementCount > count) this.rows.lastChild.remove();
    while (this.rows.childElementCount < count) {
      const row = this.rows.appendChild(document.createElement("div"));
      row.setAttribute("role", "option");
    }
    this.rows.style.transform = `translateY(${this.box.scrollTop - (above - first) * VirtualList.ROW}px)`;
    Array.from(this.rows.children).forEach((row, place) => {
      const i = first + place;
      row.dataset.index = i;
      row.id = `${this.box.id}-${i}`;
      row.setAttribute("aria-posinset", i + 1);
      row.setAttribute("aria-setsize", this.length);
      row.setAttribute("aria-selected", i === this.selected);
      this.render(row, i);
    });
    this.box.setAttribute("aria-activedescendant", this.selected >= 0 ? `${this.box.id}-${this.selected}` : "");
  }
}
