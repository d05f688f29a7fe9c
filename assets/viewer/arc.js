// What ARC adds to a test example: its task's demonstrations, and the votes and attempts that utils.arc wrote.
// Attempts are stored in the task's own colours and orientation; an augmented copy shows them in its own.
"use strict";

const TABLE_HEAD = "task,test_inputs,solved_at_1,";
const SHOWN_CANDIDATES = 3; // the table has so many
const ORDINALS = ["first", "second", "third"];

const transposed = (grid) => grid[0].map((_, column) => grid.map((row) => row[column]));
const upsideDown = (grid) => [...grid].reverse();
const mirrored = (grid) => grid.map((row) => [...row].reverse());
const turned = (grid) => upsideDown(transposed(grid)); // counter-clockwise
/** The transforms by the number in an augmented task's name. */
const DIHEDRAL = [
  (grid) => grid,
  turned,
  (grid) => turned(turned(grid)),
  (grid) => turned(turned(turned(grid))),
  mirrored,
  upsideDown,
  transposed,
  (grid) => mirrored(turned(grid)),
];

/** A puzzle's name as its task and the augmentation of grids; a task's own name leaves them as they are. */
function parseAugmentation(name) {
  const found = /^(.+)_t([0-7])_(0[1-9]{9})$/s.exec(name);
  if (!found || new Set(found[3]).size < found[3].length) return { task: name, augment: (grid) => grid };
  const [, task, transform, colours] = found;
  const recoloured = (grid) => grid.map((row) => row.map((colour) => Number(colours[colour])));
  return { task, augment: (grid) => DIHEDRAL[transform](recoloured(grid)) };
}

/** A grid of colours as a board at its upper left corner, with the end of the grid beside and below it. */
function boardOfGrid(grid) {
  const tokens = new Uint8Array(ARC_SIDE * ARC_SIDE);
  const [rows, columns] = [grid.length, grid[0].length];
  for (let row = 0; row <= Math.min(rows, ARC_SIDE - 1); row++) {
    for (let column = 0; column <= Math.min(columns, ARC_SIDE - 1); column++) {
      const isEnd = row === rows || column === columns;
      const isCorner = row === rows && column === columns;
      tokens[row * ARC_SIDE + column] = isCorner ? 0 : isEnd ? 1 : ARC_FIRST_COLOUR + grid[row][column];
    }
  }
  return tokens;
}

const isGrid = (grid) =>
  Array.isArray(grid) &&
  grid.length >= 1 &&
  grid.length <= ARC_SIDE &&
  grid.every(
    (row) =>
      Array.isArray(row) &&
      row.length >= 1 &&
      row.length <= ARC_SIDE &&
      row.length === grid[0].length &&
      row.every((colour) => Number.isInteger(colour) && colour >= 0 && colour <= 9),
  );

/** `submission`: task → its two attempts for each test input; `table`: task → column → text. Null where not found. */
class ArcScores {
  /**
   * Read the table and the submission for predictions: those in the run's folder, or else the newest ones in the chosen
   * folder which are no older than the predictions. No file says whose predictions it is of.
   */
  static async find(files, predictions) {
    const run = parentOf(predictions.path);
    const inRun = (path) => parentOf(path) === run;
    const candidates = [...files]
      .filter(([path, file]) => inRun(path) || file.lastModified >= predictions.written)
      .sort(([a, one], [b, other]) => inRun(b) - inRun(a) || other.lastModified - one.lastModified)
      .map(([path]) => path);
    const scores = Object.assign(new ArcScores(), { submission: null, table: null, paths: [] });
    const submission = candidates.find((path) => /submission[^/]*\.json$/.test(path));
    if (submission) {
      scores.submission = await readJson(files, submission, "write it again with python -m utils.arc");
      scores.paths.push(submission);
    }
    for (const path of candidates.filter((path) => path.endsWith(".csv"))) {
      const file = files.get(path);
      const read = async (stop) => new TextDecoder().decode(await readBytes(file, path, 0, stop));
      if ((await read(TABLE_HEAD.length)) !== TABLE_HEAD) continue;
      const [names, ...rows] = parseCsv(await read(file.size));
      scores.table = new Map(rows.map((row) => [row[0], new Map(names.map((name, i) => [name, row[i] ?? ""]))]));
      scores.paths.push(path);
      break;
    }
    return scores;
  }

  /** The distinct attempts for a test input of a puzzle, as boards in the puzzle's colours and orientation. */
  attempts(name, input) {
    const { task, augment } = parseAugmentation(name);
    const ofTask = this.submission && Object.hasOwn(this.submission, task) ? this.submission[task] : null;
    const grids = [ofTask?.[input]?.attempt_1, ofTask?.[input]?.attempt_2].filter(isGrid);
    const boards = grids.map((grid) => boardOfGrid(augment(grid)));
    return boards.length > 1 && boards[0].join() === boards[1].join() ? [boards[0]] : boards;
  }

  /** How the votes for a test input fell, in a line; empty where that isn't known. */
  votes(name, input) {
    const row = this.table?.get(parseAugmentation(name).task);
    const of = (column) => row?.get(column)?.split(";")[input] ?? "";
    const total = Number(of("candidates"));
    if (!total) return "";
    const shown = ORDINALS.slice(0, Math.min(total, SHOWN_CANDIDATES)).map((ordinal, i) => {
      const [votes, share, qHalt] = ["votes", "share", "q_halt"].map((what) => Number(of(`${what}_${i + 1}`)));
      return `${ordinal} ${grouped(votes)} (${percent(share, 1)}, q_halt ${qHalt.toFixed(2)})`;
    });
    const rank = of("answer_rank");
    const answer = rank
      ? `the label is candidate ${rank}, with ${plural(Number(of("answer_votes")), "vote")}`
      : "none of them is the label";
    const solved = row.get("solved_at_2") === "1" ? "solved" : "not solved";
    return `${shown.join(", ")} of ${plural(total, "candidate")}; ${answer}. The task is ${solved} with two attempts.`;
  }
}

/** Rows of fields; a field in quotes may hold commas, line ends and doubled quotes. */
function parseCsv(text) {
  const rows = [[]];
  for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\n]*))(,|\n|$)/g)) {
    rows[rows.length - 1].push(quoted?.replaceAll('""', '"') ?? plain);
    if (end === "\n") rows.push([]);
  }
  return rows.filter((row) => row.length > 1);
}

/** Where the train split has examples with a puzzle's identifier, which show a test example's task; null if nowhere. */
async function demonstrationsOf(dataset, identifier) {
  for (const name of dataset.metadata.train?.sets ?? []) {
    const set = await dataset.set("train", name);
    const puzzle = set.identifiers.indexOf(identifier);
    if (puzzle < 0) continue;
    const [start, end] = [set.puzzleIndices[puzzle], set.puzzleIndices[puzzle + 1]];
    return { name, set, start, end: Math.min(end, start + MOST_SIBLINGS) };
  }
  return null;
}
