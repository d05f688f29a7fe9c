// The page: opens folders, shows one example at a time and answers to its controls and keys. All text that comes from
// files goes through textContent, so that it stays text.
"use strict";

const byId = (id) => document.getElementById(id);
const grouped = (number) => number.toLocaleString("en");
const plural = (number, word) => `${grouped(number)} ${word}${number === 1 ? "" : "s"}`;
const percent = (part, whole) => `${((100 * part) / Math.max(1, whole)).toFixed(1)}\u00a0%`;

/** What is on the page. `set` is what examples come from: a data set's set, or what the predictions themselves hold. */
const view = {
  // what was opened
  dataset: null,
  split: null,
  setName: null,
  predictions: null,
  other: null, // another run's predictions, to compare
  set: null,
  names: null,
  // what else the chosen folders hold: `path` and `open()` of each
  offered: { datasets: [], predictions: [] },
  // how its puzzles are shown: `recognised` is the kind found, `kind` the one chosen
  recognised: "tokens",
  kind: "tokens",
  rows: 0,
  columns: 0,
  box: null,
  // the list
  scores: null,
  arcScores: null,
  filter: "all",
  entries: { unit: "group", starts: [] },
  // the example: what was read of it, its panels, and tickets that tell whether a later one has been asked for
  example: 0,
  current: null,
  panels: [],
  cellPixels: 0,
  pairs: {}, // what its sections of thumbnails show
  ticket: 0,
  shownTicket: 0,
};
const player = new Player((flash) => drawStep(flash));
const list = new VirtualList(byId("list"), renderEntry, (i) => show(view.entries.starts[i]));

// ------------------------------------------------------------------------------------------------------------ messages

function clearProblems() {
  byId("problems").replaceChildren();
}

/** Tell a problem in a line on the page. Unexpected errors are told too, and go to the console. */
function tell(error) {
  const isExpected = error instanceof FileProblem;
  if (!isExpected) console.error(error);
  const text = isExpected ? error.message : `something unexpected went wrong: ${error.message}`;
  if (Array.from(byId("problems").querySelectorAll("span"), (span) => span.textContent).includes(text)) return;
  const line = document.createElement("p");
  const close = document.createElement("button");
  Object.assign(close, { type: "button", textContent: "×", ariaLabel: "Dismiss", onclick: () => line.remove() });
  line.append(Object.assign(document.createElement("span"), { textContent: text }), close);
  byId("problems").append(line);
}

/** Run something asynchronous whose problems are told on the page. */
async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    tell(error);
    return undefined;
  }
}

// ------------------------------------------------------------------------------------------------------------- opening

/** Open what a folder holds: `wanted` is "dataset", "predictions", or "either" for what was dropped. */
function openFiles(files, wanted) {
  performance.mark("open");
  clearProblems();
  return attempt(async () => {
    const datasets = findDatasets(files).map((path) => ({ path, open: () => Dataset.open(files, path) }));
    const predictions = offersIn(files);
    if (!predictions.length && (wanted === "predictions" || !datasets.length)) {
      const other = datasets.length ? "; this is a data set, for which there is the other button" : "";
      throw new FileProblem(explainNothingFound(files, wanted) + other);
    }
    // Whoever adds predictions from a folder that holds everything keeps the data set that they belong to.
    const open = view.dataset && (wanted === "predictions" || !datasets.length) ? [presentDataset()] : [];
    const pair = await findPair([...open, ...datasets], predictions);
    if (predictions.length) view.offered.predictions = predictions;
    if (datasets.length && pair?.dataset !== view.dataset) view.offered.datasets = datasets;
    if (pair) {
      await usePair(pair);
      return;
    }
    if (datasets.length) await openDataset(datasets[0]);
    if (predictions.length) await openPredictions(predictions[0]);
  });
}

const offersIn = (files) =>
  findPredictions(files).map((found) => ({ path: found.path, open: () => Predictions.open(files, found) }));

/** The data set on show, in the form in which those of a folder are offered. */
const presentDataset = () => ({ path: view.dataset.folder, open: async () => view.dataset });

/** The first of some predictions that belongs to one of some data sets, joined to it; null if none does. */
async function findPair(datasets, predictions) {
  const opened = new Map();
  for (const entry of predictions) {
    for (const candidate of datasets) {
      try {
        if (!opened.has(candidate)) opened.set(candidate, await candidate.open());
        const found = await entry.open();
        await found.joinTo(opened.get(candidate));
        return { dataset: opened.get(candidate), predictions: found };
      } catch (error) {
        if (!(error instanceof FileProblem)) throw error; // the next ones may be whole
      }
    }
  }
  return null;
}

/** Show a data set and predictions that are joined; where only the predictions change, the example stays. */
async function usePair({ dataset, predictions }) {
  const stays = dataset === view.dataset && view.split === "test";
  if (dataset !== view.dataset) view.other = null;
  else if (view.other?.path === predictions.path) view.other = view.predictions; // they change places
  Object.assign(view, { dataset, predictions });
  await chooseSet("test", stays ? view.setName : dataset.metadata.test.sets[0], stays ? view.example : 0);
}

async function openDataset(entry) {
  const dataset = await entry.open();
  const split =
    dataset.splits.includes("test") && (view.predictions || !dataset.splits.includes("train"))
      ? "test"
      : dataset.splits[0];
  await dataset.set(split, dataset.metadata[split].sets[0]); // so that a damaged one doesn't replace what is shown
  Object.assign(view, { dataset, other: null });
  if (view.predictions) {
    await attempt(() =>
      view.predictions.joinTo(dataset).catch((error) => {
        view.predictions = null; // they were another data set's
        throw error;
      }),
    );
  }
  await chooseSet(split, dataset.metadata[split].sets[0]);
}

async function openPredictions(entry) {
  const predictions = await entry.open();
  if (view.dataset) {
    await predictions.joinTo(view.dataset); // those that don't belong to it don't replace what is shown
    await usePair({ dataset: view.dataset, predictions });
    return;
  }
  const set = await predictions.ownSet();
  if (!set) {
    const first = "open the data set first, then the predictions";
    throw new FileProblem(`${entry.path} lacks inputs.npy or labels.npy: ${first}`);
  }
  Object.assign(view, { predictions, other: null });
  await useSet(set);
}

/** Change to another of the data sets that were found, with predictions for it if there are any. */
async function chooseDataset(path) {
  const { datasets, predictions } = view.offered;
  const entry = datasets.find((offered) => offered.path === path);
  const pair = await findPair([entry], predictions);
  await (pair ? usePair(pair) : openDataset(entry));
}

/** Change to other predictions that were found, and to their data set if it is another one. */
async function choosePredictions(path) {
  const { datasets, predictions } = view.offered;
  const entry = predictions.find((offered) => offered.path === path);
  const pair = view.dataset ? await findPair([presentDataset(), ...datasets], [entry]) : null;
  await (pair ? usePair(pair) : openPredictions(entry));
}

/** Show another run's predictions beside the present ones, or none for "". They are of the same puzzles. */
async function chooseOther(path) {
  const entry = view.offered.predictions.find((offered) => offered.path === path);
  const other = entry ? Object.assign(await entry.open(), { path }) : null;
  const { set, predictions } = view;
  const own = {
    name: `of ${predictions.name}`,
    metadata: { test: { seq_len: set.seqLen, sets: ["own"] } },
    set: async () => set,
  };
  await other?.joinTo(view.dataset ?? own);
  view.other = other;
  const isPredicted = !view.dataset || view.split === "test";
  if (isPredicted) await useSet(set, view.example);
  else await chooseSet("test", view.dataset.metadata.test.sets[0]);
}

/** Compare with the first predictions of a folder that belong to the puzzles on show, and offer its others as well. */
function openOther(files) {
  clearProblems();
  return attempt(async () => {
    const found = offersIn(files);
    if (!found.length) throw new FileProblem(explainNothingFound(files, "predictions"));
    const { offered } = view;
    const isTaken = (path) => [view.predictions, ...offered.predictions].some((other) => other.path === path);
    for (const entry of found) while (isTaken(entry.path)) entry.path += "′"; // a folder of that name in another run
    offered.predictions = [...offered.predictions, ...found];
    let problem;
    for (const { path } of found) {
      try {
        await chooseOther(path);
        return;
      } catch (error) {
        problem ??= error;
      }
    }
    offered.predictions = offered.predictions.filter((entry) => !found.includes(entry));
    throw problem;
  });
}

async function chooseSet(split, setName, example = 0) {
  const set = await view.dataset.set(split, setName);
  Object.assign(view, { split, setName });
  await useSet(set, example);
}

/** Show a set from its first example on, or from the given one. */
async function useSet(set, example = 0) {
  const metadata = view.dataset?.metadata[view.split];
  view.scores?.cancel();
  const predicted = view.predictions && (!view.dataset || view.split === "test");
  Object.assign(view, {
    set,
    scores: predicted ? new Scores(set, view.predictions, view.other && new Scores(set, view.other)) : null,
    filter: "all",
    pairs: {},
    arcScores: null,
  });
  view.names = view.dataset?.names ?? null;
  if (metadata) {
    view.recognised = kindOfMetadata(metadata);
  } else {
    const rows = Math.min(SAMPLE_ROWS, set.numExamples);
    view.recognised = kindOfTokens(await set.inputs.rows(0, rows), await set.labels.rows(0, rows), set.seqLen);
  }
  if (predicted && view.dataset && view.recognised === "arc")
    view.arcScores = (await attempt(() => ArcScores.find(view.predictions.files, view.predictions))) ?? null;
  byId("search").value = "";
  chooseKind(view.recognised);
  fillControls();
  refreshEntries();
  await show(Math.min(example, set.numExamples - 1));
  if (performance.getEntriesByName("open", "mark").length) {
    performance.measure("opened", "open"); // until the first puzzle is on the page
    performance.clearMarks("open");
  }
  if (view.scores) countScores(view.scores);
}

function chooseKind(kind) {
  view.kind = kind;
  const metadata = view.dataset?.metadata[view.split];
  const [rows, columns] = metadata?.shape ?? boardShape(view.set.seqLen);
  Object.assign(view, { rows, columns, vocabulary: metadata?.vocabulary ?? null });
  view.box = kind === "sudoku" ? (metadata?.box ?? guessBox(rows)) : null;
}

async function countScores(scores) {
  const progress = () => showScores(scores);
  await attempt(() => Promise.all([scores.run(progress), scores.other?.run(progress)]));
  if (!scores.cancelled && view.scores === scores) {
    showScores(scores);
    list.draw();
  }
}

// ------------------------------------------------------------------------------------------------------------- puzzles

/** Read an example and show it. While one is being read, a later call wins. */
async function show(example) {
  const { set, scores } = view;
  const ticket = ++view.ticket;
  await attempt(async () => {
    const [inputs, labels] = await Promise.all([
      set.inputs.rows(example, example + 1),
      set.labels.rows(example, example + 1),
    ]);
    const isScored = (label) => set.isScored(label);
    const answers = await Promise.all([scores, scores?.other].map((one) => readAnswer(one, example, labels, isScored)));
    const current = {
      inputs,
      labels,
      shownLabels: labels.map((label) => (label === IGNORED_LABEL ? 0 : label)),
      ...answers[0],
      other: answers[1],
    };
    const puzzle = set.puzzleOf(example);
    const [name, input] = [titleOf(set.identifiers[puzzle]), example - set.puzzleIndices[puzzle]];
    current.votes = (name && view.arcScores?.votes(name, input)) || "";
    current.attempts = ((name && view.arcScores?.attempts(name, input)) || []).map((tokens) => {
      return { tokens, wrong: wrongCells(tokens, labels, isScored) };
    });
    current.unscored = Uint8Array.from(labels, (label) => !isScored(label));
    if (ticket !== view.ticket) return;
    Object.assign(view, { example, current, shownTicket: ticket });
    player.load(current.film);
    showPuzzle();
    warnOfUnknownTokens();
    await showPairs();
  });
}

/** What a run predicted for an example: `preds`, `wrong`, Q values and `film`; `preds` is null where it has nothing. */
async function readAnswer(scores, example, labels, isScored) {
  if (!scores || example >= scores.count) return { preds: null, film: null };
  const { set, predictions } = scores;
  const row = set.first + example;
  const { q_halt_logits: halt, q_continue_logits: go } = predictions.arrays;
  const [preds, qHalt, qContinue, film] = await Promise.all([
    readPredictions(predictions, row, row + 1),
    ...[halt, go].map(async (array) => (array ? (await array.rows(row, row + 1))[0] : null)),
    predictions.steps ? Film.read(predictions, row, labels, isScored) : null,
  ]);
  return { preds, qHalt, qContinue, film, wrong: wrongCells(preds, labels, isScored) };
}

// --------------------------------------------------------------------------------------------------------------- input

function moveExample(by) {
  const next = view.example + by;
  if (view.entries.unit === "example") moveEntry(by);
  else if (next >= 0 && next < view.set.numExamples) show(next);
}

function moveEntry(by) {
  const { starts } = view.entries;
  if (!starts.length) return;
  const present = entryAt(starts, view.example);
  const next = Math.min(starts.length - 1, Math.max(0, present + by));
  if (starts[next] !== view.example) show(starts[next]);
}

function jump() {
  const wanted = Number(byId("jump").value.replace(/[,\s]/g, ""));
  if (Number.isInteger(wanted) && wanted >= 0 && wanted < view.set.numExamples) {
    show(wanted);
    return;
  }
  tell(
    new FileProblem(
      `there is no example ${byId("jump").value}: they go from 0 to ${grouped(view.set.numExamples - 1)}`,
    ),
  );
  byId("jump").value = view.example;
}

function toggle(id) {
  byId(id).checked = !byId(id).checked;
  byId(id).dispatchEvent(new Event("change"));
}

const KEYS = {
  ArrowLeft: () => moveExample(-1),
  ArrowRight: () => moveExample(1),
  ArrowUp: () => moveEntry(-1),
  ArrowDown: () => moveEntry(1),
  Home: () => moveEntry(-Infinity),
  End: () => moveEntry(Infinity),
  PageUp: () => moveEntry(-10),
  PageDown: () => moveEntry(10),
  "/": () => byId("search").focus(),
  g: () => byId("jump").select(),
  c: () => toggle("crop"),
  m: () => toggle("marks"),
  " ": () => player.film && (player.playing ? player.pause() : player.play()),
  ",": () => player.film && step(player.step - 1),
  ".": () => player.film && step(player.step + 1),
};

function onKey(event) {
  const { target, key } = event;
  if (key === "Escape" && target.matches("input")) target.blur();
  const typing = target.matches("input:not([type=checkbox]), select");
  const pressing = key === " " && target.matches("button, summary, input");
  if (!view.set || typing || pressing || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(KEYS, key))
    return;
  event.preventDefault();
  KEYS[key]();
}

function step(to) {
  player.pause();
  player.goTo(to);
}

const THEMES = ["system", "light", "dark"];
const darkSystem = matchMedia("(prefers-color-scheme: dark)");

/** Apply a theme and keep it for the next time, where the browser lets a local page keep anything. */
function useTheme(theme) {
  byId("theme-name").textContent = theme;
  const dark = theme === "system" ? darkSystem.matches : theme === "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  try {
    localStorage.setItem("puzzle-visualizer-theme", theme);
  } catch {
    /* then not */
  }
  if (!view.current) return;
  drawStep(0.25);
  attempt(showPairs);
}

function savedTheme() {
  try {
    return localStorage.getItem("puzzle-visualizer-theme");
  } catch {
    return null;
  }
}

function start() {
  byId("incomplete").remove();
  document.querySelector("header").hidden = byId("welcome").hidden = false;
  useTheme(THEMES.includes(savedTheme()) ? savedTheme() : "system");
  darkSystem.addEventListener("change", () => useTheme(byId("theme-name").textContent));
  byId("theme").onclick = () => useTheme(THEMES[(THEMES.indexOf(byId("theme-name").textContent) + 1) % THEMES.length]);
  byId("help").onclick = () =>
    byId("help").setAttribute("aria-expanded", !(byId("keys").hidden = !byId("keys").hidden));

  for (const kind of ["dataset", "predictions", "compare"]) {
    const input = byId(`${kind}-input`);
    byId(`open-${kind}`).onclick = () => input.click();
    input.onchange = () => {
      const files = filesOfInput(input.files);
      input.value = ""; // so that choosing the same folder again counts
      if (kind === "compare") openOther(files);
      else openFiles(files, kind);
    };
  }
  let inside = 0; // dragenter and dragleave come for every element on the way
  document.addEventListener("dragenter", () => {
    byId("drop").hidden = ++inside === 0;
  });
  document.addEventListener("dragleave", () => {
    byId("drop").hidden = --inside <= 0;
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    inside = 0;
    byId("drop").hidden = true;
    const dropped = filesOfDrop(event.dataTransfer);
    attempt(async () => openFiles(await dropped, "either"));
  });

  for (const [id, choose] of [
    ["dataset", chooseDataset],
    ["predictions", choosePredictions],
    ["compare", chooseOther],
  ]) {
    byId(id).onchange = (event) => {
      clearProblems();
      attempt(() => choose(event.target.value)).then(fillFolders); // a choice that failed goes back
    };
  }
  byId("split").onchange = (event) =>
    attempt(() => chooseSet(event.target.value, view.dataset.metadata[event.target.value].sets[0]));
  byId("set").onchange = (event) => attempt(() => chooseSet(view.split, event.target.value));
  byId("kind").onchange = (event) => {
    chooseKind(event.target.value);
    showPuzzle();
    attempt(showPairs);
  };
  byId("filter").onchange = (event) => {
    view.filter = event.target.value;
    refreshEntries(true);
  };
  let typing = 0;
  byId("search").oninput = () => {
    clearTimeout(typing);
    typing = setTimeout(() => refreshEntries(true), 150);
  };
  byId("search").onkeydown = (event) => {
    if (event.key === "Enter" || event.key === "ArrowDown") byId("list").focus();
  };
  byId("jump").onchange = jump;
  byId("previous").onclick = () => moveExample(-1);
  byId("next").onclick = () => moveExample(1);
  byId("crop").onchange = () => {
    showPuzzle();
    attempt(showPairs);
  };
  byId("marks").onchange = () => drawStep(0.25);
  document.addEventListener("keydown", onKey);

  byId("play").onclick = () => (player.playing ? player.pause() : player.play());
  byId("step-back").onclick = () => step(player.step - 1);
  byId("step-forward").onclick = () => step(player.step + 1);
  byId("step").oninput = (event) => step(Number(event.target.value) - 1);
  byId("speed").onchange = (event) => player.setSpeed(Number(event.target.value));
  byId("plot").onclick = (event) => step(stepAt(player.film, event.offsetX, byId("plot").clientWidth));
  byId("save-picture").onclick = () => attempt(savePicture);
  byId("save-film").onclick = () => attempt(saveFilm);
  byId("save-strip").onclick = () => attempt(saveStrip);

  let width = 0;
  new ResizeObserver(() => {
    if (view.current && byId("panels").clientWidth !== width) layOut();
    width = byId("panels").clientWidth;
  }).observe(byId("panels"));
  window.addEventListener("unhandledrejection", (event) => tell(event.reason));
}

start();
