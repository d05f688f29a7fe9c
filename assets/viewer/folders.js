// What a chosen folder holds: data sets with their splits, sets, puzzles and groups, and predictions of evaluate.py.
// Everything is checked before it is shown; a FileProblem names the file, what was found and what is expected.
"use strict";

const PREDICTION_KEYS = [
  "inputs",
  "labels",
  "puzzle_identifiers",
  "preds",
  "q_halt_logits",
  "q_continue_logits",
  "step_preds",
  "step_q_halt_logits",
  "step_q_continue_logits",
  "step_halted",
];
const IGNORED_LABEL = -100; // in predictions; data sets have their own ignore_label_id
const SYMBOL = /^(?:[^\p{C}\p{Z}]| ){1,4}$/u; // of a vocabulary: characters that can be seen, or a blank
const SAMPLE_ROWS = 32; // looked at to recognise puzzles, and to tell whether predictions belong to a data set

// ----------------------------------------------------------------------------------------------- the files of a folder

/** Path → File of what `<input webkitdirectory>` gave. */
function filesOfInput(list) {
  return new Map(Array.from(list, (file) => [file.webkitRelativePath || file.name, file]));
}

/**
 * Path → File of everything below the folders that were dropped. Call it inside the drop event.
 *
 * Chrome refuses files of the older interface, entries, to pages that were opened from a disk; Firefox and Safari have
 * no other.
 */
async function filesOfDrop(transfer) {
  const items = Array.from(transfer.items).filter((item) => item.kind === "file");
  const files = new Map();
  try {
    if (items.every((item) => item.getAsFileSystemHandle)) {
      const handles = items.map((item) => item.getAsFileSystemHandle()); // all of them, before the event is over
      for (const handle of await Promise.all(handles)) await walkHandle(handle, handle.name, files);
    } else {
      await Promise.all(items.map((item) => item.webkitGetAsEntry()).map((entry) => walkEntry(entry, files)));
    }
  } catch (error) {
    throw new FileProblem(`the dropped folder can't be read (${error.name}): choose it with the button instead`);
  }
  return files;
}

async function walkHandle(handle, path, files) {
  if (handle.kind === "file") files.set(path, await handle.getFile());
  else for await (const inner of handle.values()) await walkHandle(inner, `${path}/${inner.name}`, files);
}

async function walkEntry(entry, files) {
  if (entry.isFile) {
    files.set(entry.fullPath.replace(/^\//, ""), await new Promise((resolve, reject) => entry.file(resolve, reject)));
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    // it gives at most a hundred entries a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    await Promise.all(some.map((inner) => walkEntry(inner, files)));
  }
}

const parentOf = (path) => path.slice(0, Math.max(0, path.lastIndexOf("/")));
const nameOf = (path) => path.slice(path.lastIndexOf("/") + 1);
const filesIn = (files, folder) => [...files].filter(([path]) => parentOf(path) === folder).map(([, file]) => file);
const join = (folder, name) => (folder ? `${folder}/${name}` : name);

/** The folders that look like data sets, also damaged ones: those above a train/ or test/ with the format's files. */
function findDatasets(files) {
  const found = new Set();
  for (const path of files.keys()) {
    const folder = parentOf(path);
    const ours =
      nameOf(path) === "dataset.json" ||
      /__(inputs|labels|puzzle_identifiers|puzzle_indices|group_indices)\.npy$/.test(path);
    if (ours && /^(train|test)$/.test(nameOf(folder))) found.add(parentOf(folder));
  }
  return [...found].sort();
}

/**
 * The predictions in a folder: those of the run that was written last come first, of a run those of its last step.
 *
 * Each is `{ path, folders }`: a folder for each rank in order; `path` is the folder of a single rank, or a pattern.
 */
function findPredictions(files) {
  const found = new Map(); // folder and step → what was found
  for (const [path, file] of files) {
    if (!/^(step_)?preds\.npy$/.test(nameOf(path))) continue;
    const folder = parentOf(path);
    const [, ofAllRanks, rank] = /^(.*step_\d+_all_preds)\.(\d+)$/.exec(folder) ?? [null, folder, 0];
    const step = Number(/step_(\d+)/.exec(nameOf(folder))?.[1] ?? -1);
    const entry = found.get(ofAllRanks) ?? { ranks: new Map(), run: parentOf(folder), step, written: 0 };
    entry.ranks.set(Number(rank), folder);
    entry.written = Math.max(entry.written, file.lastModified);
    found.set(ofAllRanks, entry);
  }
  const written = new Map(); // run → when its last predictions were
  for (const entry of found.values())
    written.set(entry.run, Math.max(written.get(entry.run) ?? 0, entry.written));
  return [...found]
    .sort(([a, one], [b, other]) => {
      const byRun = written.get(other.run) - written.get(one.run) || (one.run < other.run ? -1 : one.run > other.run);
      return byRun || other.step - one.step || (a < b ? -1 : 1);
    })
    .map(([path, { ranks }]) => {
      const folders = [...ranks.keys()].sort((a, b) => a - b).map((rank) => ranks.get(rank));
      return { path: folders.length > 1 ? `${path}.*` : folders[0], folders };
    });
}

/** Why nothing was found in a folder: what is there, what was looked for, and how to get it. */
function explainNothingFound(files, wanted) {
  const paths = [...files.keys()];
  const folder = paths.length ? paths[0].split("/")[0] : "the folder";
  const foreign = paths.find((path) => /^step_\d+_all_preds\.\d+$/.test(nameOf(path)));
  if (foreign) {
    const ours = "predictions here are a folder, which this repository's evaluate.py writes";
    return `${foreign} is a file of the PyTorch code; ${ours}`;
  }
  const top = [...new Set(paths.map((path) => path.split("/").slice(1, 2)[0] ?? path))];
  const seen = top.length ? `found ${top.slice(0, 4).join(", ")}${top.length > 4 ? " …" : ""}` : "it is empty";
  const [found, expected] =
    wanted === "predictions"
      ? ["holds no predictions", "preds.npy or step_preds.npy, as evaluate.py writes them to …/step_<N>_all_preds.0"]
      : ["is no data set", "train/dataset.json or test/dataset.json, as in a folder below data/ that a builder wrote"];
  return `${folder} ${found} (${seen}): expected ${expected}`;
}

async function readJson(files, path, again = "build the data set again") {
  const file = files.get(path);
  if (!file) throw new FileProblem(`${path} is missing: not a data set, or an unfinished one; build it again`);
  try {
    return JSON.parse(new TextDecoder().decode(await readBytes(file, path, 0, file.size)));
  } catch (error) {
    throw error instanceof FileProblem ? error : new FileProblem(`${path} is not valid JSON; ${again}`);
  }
}

function openNpy(files, path, why = "the data set is incomplete, build it again") {
  const file = files.get(path);
  if (!file) throw new FileProblem(`${path} is missing: ${why}`);
  return NpyFile.open(file, path);
}

// ----------------------------------------------------------------------------------------------------------- data sets

/**
 * The examples of one set: `inputs` and `labels` are NpyFiles `[examples, seqLen]`. Puzzle p holds the examples
 * puzzleIndices[p] … puzzleIndices[p + 1] and has the identifier identifiers[p]; group g likewise holds puzzles.
 * A label equal to one of `ignored` is not scored. `first`: where the set begins in predictions, which go through all.
 */
class ExampleSet {
  constructor(fields) {
    Object.assign(this, { first: 0 }, fields);
    this.numExamples = this.inputs.length;
    this.seqLen = this.inputs.rowLength;
  }

  puzzleOf(example) {
    return lastAtMost(this.puzzleIndices, example);
  }

  groupOf(puzzle) {
    return lastAtMost(this.groupIndices, puzzle);
  }

  /** The puzzle identifier of each of the examples [start, stop). */
  identifiersOf(start, stop) {
    return Array.from({ length: stop - start }, (_, i) => this.identifiers[this.puzzleOf(start + i)]);
  }

  isScored(label) {
    return !this.ignored.includes(label);
  }
}

/** The last index before the final one whose ascending value is at most `value`. */
function lastAtMost(offsets, value) {
  let low = 0;
  let high = offsets.length - 2;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (offsets[middle] <= value) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** A data set folder. `metadata`: split → its dataset.json; `names`: identifiers.json, null if it wasn't chosen. */
class Dataset {
  static async open(files, folder) {
    const dataset = new Dataset();
    Object.assign(dataset, { files, folder, name: nameOf(folder) || "data set", metadata: {}, sets: new Map() });
    for (const split of ["train", "test"]) {
      const path = join(join(folder, split), "dataset.json");
      const started = [...files.keys()].some((other) => parentOf(other) === join(folder, split));
      if (started) dataset.metadata[split] = checkMetadata(await readJson(files, path), path);
    }
    const names = join(folder, "identifiers.json");
    dataset.names = folder || files.has(names) ? await readJson(files, names) : null;
    if (dataset.names && !(Array.isArray(dataset.names) && dataset.names.every((name) => typeof name === "string"))) {
      throw new FileProblem(`${names} is no list of names; build the data set again`);
    }
    return dataset;
  }

  get splits() {
    return Object.keys(this.metadata);
  }

  /** Open a set and check its index arrays, once. */
  async set(split, name) {
    const key = `${split}/${name}`;
    if (!this.sets.has(key)) this.sets.set(key, await this.openSet(split, name));
    return this.sets.get(key);
  }

  async openSet(split, name) {
    const metadata = this.metadata[split];
    const path = (kind) => join(join(this.folder, split), `${name}__${kind}.npy`);
    const fail = (kind, found, expected) =>
      new FileProblem(`${path(kind)}: ${found}, expected ${expected}; build the data set again`);
    const kinds = ["inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices"];
    const opened = await Promise.all(kinds.map(async (kind) => openNpy(this.files, path(kind))));
    const [inputs, labels, ...indices] = opened;
    opened.forEach((file, i) => {
      if (!file.isInteger) throw fail(kinds[i], `values of type ${file.type}`, "integers");
    });
    if (inputs.shape.length !== 2 || inputs.rowLength !== metadata.seq_len || !inputs.length) {
      throw fail(
        "inputs",
        `shape (${inputs.shape.join(", ")})`,
        `(examples, ${metadata.seq_len}) with at least one example`,
      );
    }
    if (labels.shape.join() !== inputs.shape.join()) {
      throw fail(
        "labels",
        `shape (${labels.shape.join(", ")})`,
        `(${inputs.shape.join(", ")}), the shape of the inputs`,
      );
    }
    indices.forEach((file, i) => {
      if (file.shape.length !== 1) throw fail(kinds[i + 2], `shape (${file.shape.join(", ")})`, "one dimension");
    });
    const [identifiers, puzzleIndices, groupIndices] = await Promise.all(indices.map((file) => file.all()));
    checkOffsets(puzzleIndices, inputs.length, "examples", (...what) => fail("puzzle_indices", ...what));
    if (identifiers.length !== puzzleIndices.length - 1) {
      throw fail(
        "puzzle_identifiers",
        `${identifiers.length} entries`,
        `${puzzleIndices.length - 1}, one for each puzzle`,
      );
    }
    checkOffsets(groupIndices, identifiers.length, "puzzles", (...what) => fail("group_indices", ...what));
    const last = (this.names?.length ?? metadata.num_puzzle_identifiers) - 1;
    const wrong = identifiers.find((identifier) => identifier < 0 || identifier > last);
    if (wrong !== undefined) throw fail("puzzle_identifiers", `identifier ${wrong}`, `0 to ${last}`);
    const ignored = [IGNORED_LABEL, metadata.ignore_label_id];
    return new ExampleSet({ inputs, labels, identifiers, puzzleIndices, groupIndices, ignored });
  }
}

function checkMetadata(metadata, path) {
  const fail = (key, expected) => {
    const found = metadata?.[key] === undefined ? "is missing" : `is ${JSON.stringify(metadata[key])}`;
    return new FileProblem(`${path}: ${key} ${found}, expected ${expected}; build the data set again`);
  };
  if (typeof metadata !== "object" || metadata === null || Array.isArray(metadata)) {
    throw new FileProblem(`${path} holds no keys and values; build the data set again`);
  }
  for (const key of ["seq_len", "vocab_size", "num_puzzle_identifiers"]) {
    if (!Number.isInteger(metadata[key]) || metadata[key] < 1) throw fail(key, "a whole number of at least 1");
  }
  const { sets, box, shape, vocabulary } = metadata;
  if (!Array.isArray(sets) || !sets.length || !sets.every((name) => typeof name === "string"))
    throw fail("sets", "a list of names");
  if (box && !(box.length === 2 && (box[0] * box[1]) ** 2 === metadata.seq_len)) {
    throw fail("box", `two numbers that multiply to the side of a square board of ${metadata.seq_len} cells`);
  }
  const isList = (value, length, isEntry) => Array.isArray(value) && value.length === length && value.every(isEntry);
  const isSize = (value) => Number.isInteger(value) && value > 0;
  if ((shape ?? null) !== null && !(isList(shape, 2, isSize) && shape[0] * shape[1] === metadata.seq_len)) {
    throw fail("shape", `rows and columns that multiply to ${metadata.seq_len} cells`);
  }
  const isSymbol = (text, token) => typeof text === "string" && (token ? SYMBOL.test(text) : !text);
  if ((vocabulary ?? null) !== null && !isList(vocabulary, metadata.vocab_size, isSymbol)) {
    throw new FileProblem(
      `${path}: vocabulary is not as expected, a list of ${metadata.vocab_size} symbols, the first of them empty and the ` +
        "others of 1 to 4 characters; build the data set again",
    );
  }
  return metadata;
}

function checkOffsets(offsets, total, members, fail) {
  if (offsets.length < 2) throw fail(`${offsets.length} offsets`, "at least two");
  if (offsets[0] !== 0) throw fail(`offsets start at ${offsets[0]}`, "0");
  for (let i = 1; i < offsets.length; i++) {
    if (offsets[i] <= offsets[i - 1]) {
      throw fail(`offsets go from ${offsets[i - 1]} to ${offsets[i]} at position ${i - 1}`, "ascending offsets");
    }
  }
  const end = offsets[offsets.length - 1];
  if (end !== total) throw fail(`offsets end at ${end}`, `${total}, the number of ${members}`);
}

// --------------------------------------------------------------------------------------------------------- predictions

/** The files of several ranks as one array, used like an NpyFile; `order.placeOf(row)` tells where a row is. */
class RankedArray {
  constructor(files, order) {
    const [{ path, type, array, isInteger, rowLength, shape }] = files;
    const length = files.reduce((sum, file) => sum + file.length, 0);
    Object.assign(this, { files, order, path, type, array, isInteger, rowLength, length });
    this.shape = [length, ...shape.slice(1)];
    this.size = files.reduce((sum, file) => sum + file.size, 0);
  }

  /** Rows [start, stop), flat. Each rank's part of them lies in one piece. */
  async rows(start, stop) {
    const places = Array.from({ length: stop - start }, (_, i) => this.order.placeOf(start + i));
    const parts = await Promise.all(
      this.files.map(async (file, rank) => {
        const mine = places.filter((place) => place[0] === rank);
        if (!mine.length) return null;
        const [first, last] = [mine[0][1], mine[mine.length - 1][1]];
        return { first, values: await file.rows(first, last + 1) };
      }),
    );
    const { constructor: Values } = parts.find(Boolean).values;
    const whole = new Values((stop - start) * this.rowLength);
    places.forEach(([rank, row], i) => {
      const at = (row - parts[rank].first) * this.rowLength;
      whole.set(parts[rank].values.subarray(at, at + this.rowLength), i * this.rowLength);
    });
    return whole;
  }

  all() {
    return this.rows(0, this.length);
  }
}

/** Rows in the order of the ranks, as long as the data set isn't known. Returns row → [rank, row of its files]. */
function rankAfterRank(counts) {
  const starts = [0];
  for (const count of counts) starts.push(starts[starts.length - 1] + count);
  return (row) => {
    const rank = lastAtMost(starts, row);
    return [rank, row - starts[rank]];
  };
}

/**
 * Rows in the order of the data set: the first `share` rows of each batch are rank 0's, the next ones rank 1's, …; the
 * last batch of a set may be short. `sizes`: how many examples of each set were evaluated.
 *
 * Returns how many rows each rank has then, and row → [rank, row of its files].
 */
function dealtToRanks(sizes, share, numRanks) {
  const batch = share * numRanks;
  const [firsts, before] = [[0], [new Array(numRanks).fill(0)]]; // by set: its first row, and of each rank's files
  sizes.forEach((size, i) => {
    firsts.push(firsts[i] + size);
    const last = (rank) => Math.min(share, Math.max(0, (size % batch) - rank * share));
    before.push(before[i].map((rows, rank) => rows + Math.floor(size / batch) * share + last(rank)));
  });
  const placeOf = (row) => {
    const set = lastAtMost(firsts, row);
    const inSet = row - firsts[set];
    const rank = Math.floor((inSet % batch) / share);
    return [rank, before[set][rank] + Math.floor(inSet / batch) * share + (inSet % share)];
  };
  return { counts: before[sizes.length], placeOf };
}

/** One rank's folder: key → NpyFile, a row for each example; all checked against one another. */
async function openRank(files, folder) {
  const arrays = {};
  for (const key of PREDICTION_KEYS) {
    const path = join(folder, `${key}.npy`);
    if (files.has(path)) arrays[key] = await NpyFile.open(files.get(path), path);
  }
  const [rows, cells] = (arrays.preds ?? arrays.step_preds).shape;
  const steps = arrays.step_preds?.shape[1] ?? 0;
  const seqLen = arrays.preds ? cells : arrays.step_preds.shape[2];
  for (const [key, file] of Object.entries(arrays)) {
    const perStep = key.startsWith("step_") ? [steps] : [];
    const perCell = /inputs|labels|preds/.test(key) ? [seqLen] : [];
    const expected = [rows, ...perStep, ...perCell];
    if (file.shape.join() !== expected.join() || !seqLen) {
      const [found, whole] = [file.shape, expected].map((shape) => shape.join(", "));
      throw new FileProblem(`${file.path}: shape (${found}), expected (${whole}); run evaluate.py again`);
    }
    const [fits, wanted] =
      key === "step_halted"
        ? [/^[bu]1$/.test(file.type), "bool or uint8"]
        : [file.isInteger || /q_(halt|continue)_logits/.test(key), "integers"];
    if (!fits) {
      throw new FileProblem(`${file.path}: values of type ${file.type}, expected ${wanted}; run evaluate.py again`);
    }
  }
  return { arrays, rows, steps, seqLen };
}

/**
 * What an evaluation predicted. `arrays`: key → NpyFile or RankedArray, a row for each example; `steps`: of a film, 0
 * without; `counts`: the rows of each rank.
 */
class Predictions {
  /** Open what `findPredictions` found. */
  static async open(files, { path, folders }) {
    const again = "run evaluate.py again";
    const missing = folders.findIndex((folder, rank) => folders.length > 1 && !folder.endsWith(`.${rank}`));
    if (missing >= 0) throw new FileProblem(`${path}: the folder of rank ${missing} is missing; ${again}`);
    const ranks = await Promise.all(folders.map((folder) => openRank(files, folder)));
    const [{ arrays, steps, seqLen }] = ranks;
    const form = (rank) => [rank.steps, rank.seqLen, ...Object.keys(rank.arrays)].join();
    const other = ranks.findIndex((rank) => form(rank) !== form(ranks[0]));
    if (other >= 0) {
      throw new FileProblem(`${folders[other]} holds other files or shapes than ${folders[0]}; ${again}`);
    }
    const counts = ranks.map((rank) => rank.rows);
    const order = { placeOf: rankAfterRank(counts) };
    if (ranks.length > 1) {
      for (const key of Object.keys(arrays)) {
        const parts = ranks.map((rank) => rank.arrays[key]);
        arrays[key] = new RankedArray(parts, order);
      }
    }
    const numExamples = counts.reduce((sum, rows) => sum + rows);
    if (!numExamples) throw new FileProblem(`${path} holds no predictions, expected at least one example; ${again}`);
    const name = join(nameOf(parentOf(path)), nameOf(path));
    const written = Math.max(...folders.flatMap((folder) => filesIn(files, folder).map((file) => file.lastModified)));
    const fields = { files, path, written, arrays, steps, seqLen, numExamples, counts, order, name };
    return Object.assign(new Predictions(), fields);
  }

  /** The set that the predictions hold themselves, each example a puzzle and a group; null without inputs or labels. */
  async ownSet() {
    const { inputs, labels, puzzle_identifiers } = this.arrays;
    if (!inputs || !labels) return null;
    const offsets = Int32Array.from({ length: this.numExamples + 1 }, (_, i) => i);
    const identifiers = puzzle_identifiers ? await puzzle_identifiers.all() : new Int32Array(this.numExamples);
    return new ExampleSet({
      inputs,
      labels,
      identifiers,
      puzzleIndices: offsets,
      groupIndices: offsets,
      ignored: [IGNORED_LABEL],
    });
  }

  /**
   * Find where each set of a data set's test split begins, put the rows of several ranks into its order, and check that
   * the predictions are of its puzzles.
   *
   * The size of the batches is stored nowhere. But few sizes give each rank as many rows as it has, and of these the
   * right one has the data set's rows where another rank takes over.
   */
  async joinTo(dataset) {
    const complain = (what) =>
      new FileProblem(
        `${this.name} doesn't belong to the data set ${dataset.name}: ${what}; choose the data set that was evaluated` +
          (this.counts.length > 1 ? "" : ", or the whole run's folder if several ranks wrote predictions"),
      );
    const metadata = dataset.metadata.test;
    if (!metadata) throw complain("it has no split test");
    if (metadata.seq_len !== this.seqLen)
      throw complain(`predictions of ${this.seqLen} cells, puzzles of ${metadata.seq_len}`);
    const sets = [];
    let total = 0;
    for (const name of metadata.sets) {
      const set = await dataset.set("test", name);
      set.first = total;
      total += set.numExamples;
      sets.push(set);
    }
    if (this.numExamples > total) throw complain(`${this.numExamples} predictions, ${total} test examples`);

    if (this.counts.length === 1) {
      const difference = await this.differenceFrom(sets);
      if (difference) throw complain(difference);
      return;
    }
    const sizes = sets.map((set) => Math.max(0, Math.min(set.numExamples, this.numExamples - set.first)));
    const shares = [];
    for (let share = 1; share <= this.counts[0]; share++)
      if (dealtToRanks(sizes, share, this.counts.length).counts.join() === this.counts.join()) shares.push(share);
    if (!shares.length) throw complain(`no batches give its ranks ${this.counts.join(", ")} rows`);
    if (shares.length > 1 && !this.arrays.inputs)
      throw complain("the order of its ranks' rows can't be told without inputs.npy");
    let difference;
    for (const share of shares) {
      this.order.placeOf = dealtToRanks(sizes, share, this.counts.length).placeOf;
      difference = await this.differenceFrom(sets, share);
      if (!difference) return;
    }
    this.order.placeOf = rankAfterRank(this.counts);
    throw complain(difference);
  }

  /** The first file and example that isn't the sets'; "" if a sample is, taken where rows of other ranks would show. */
  async differenceFrom(sets, share = 0) {
    for (const set of sets) {
      const size = Math.min(set.numExamples, this.numExamples - set.first);
      for (const from of new Set([0, share, size - SAMPLE_ROWS].map((row) => Math.max(0, row)))) {
        const to = Math.min(size, from + SAMPLE_ROWS);
        for (const key of ["inputs", "labels", "puzzle_identifiers"]) {
          if (from >= to || !this.arrays[key]) continue;
          const [mine, theirs] = await Promise.all([
            this.arrays[key].rows(set.first + from, set.first + to),
            key === "puzzle_identifiers" ? set.identifiersOf(from, to) : set[key].rows(from, to),
          ]);
          const unscored = (token) => key === "labels" && !set.isScored(token);
          const differs = mine.findIndex(
            (token, i) => token !== theirs[i] && !(unscored(token) && unscored(theirs[i])),
          );
          if (differs < 0) continue;
          const row = Math.floor(differs / this.arrays[key].rowLength);
          return `${key}.npy differs in example ${set.first + from + row}`;
        }
      }
    }
    return "";
  }
}
