// What stands beside the puzzle: the choices, how many predictions are right, the list and facts about the data set.
// Works on page.js's `view`.
"use strict";

function setOptions(select, values, chosen, label = (value) => value) {
  select.replaceChildren(
    ...values.map((value) => {
      const option = document.createElement("option");
      Object.assign(option, { value, textContent: label(value), selected: value === chosen });
      return option;
    }),
  );
}

/** The choices between folders that were found; one is hidden where there is nothing to choose. */
function fillFolders() {
  const present = { dataset: view.dataset?.folder, predictions: view.predictions?.path };
  const label = (path) => labelOf(path, view.offered.predictions);
  for (const [id, offered] of [
    ["dataset", view.offered.datasets],
    ["predictions", view.offered.predictions],
  ]) {
    const paths = offered.map(({ path }) => path);
    byId(`${id}-label`).hidden = !paths.some((path) => path !== present[id]);
    if (!paths.includes(present[id])) paths.unshift(present[id] ?? "");
    setOptions(byId(id), paths, present[id] ?? "", id === "dataset" ? undefined : label);
  }
  const others = view.offered.predictions.map(({ path }) => path).filter((path) => path !== present.predictions);
  byId("compare-label").hidden = !view.predictions || !others.length;
  byId("open-compare").hidden = !view.predictions;
  setOptions(byId("compare"), ["", ...others], view.other?.path ?? "", label);
}

/** Predictions as their run and step, where that tells them from all others that are offered. */
function labelOf(path, offered) {
  if (!path) return "none";
  const short = (of) => {
    const [run, step] = [nameOf(parentOf(of)), /^step_(\d+)_all_preds\.(\d+|\*)$/.exec(nameOf(of))?.[1]];
    return run && step ? `${run} · step ${step}` : of;
  };
  return offered.filter((other) => short(other.path) === short(path)).length > 1 ? path : short(path);
}

function fillControls() {
  document.querySelector("main").hidden = false;
  byId("welcome").hidden = true;
  fillFolders();
  const splits = view.dataset?.splits ?? ["predictions"];
  setOptions(byId("split"), splits, view.split ?? "predictions");
  const sets = view.dataset?.metadata[view.split].sets ?? [];
  byId("set-label").hidden = sets.length < 2;
  setOptions(byId("set"), sets, view.setName);
  setOptions(byId("kind"), Object.keys(KINDS), view.kind, (kind) => KINDS[kind].title);
  byId("total").textContent = `0–${grouped(view.set.numExamples - 1)}`;
  byId("marks-label").hidden = byId("scores").hidden = !view.scores;
  if (view.scores) showScores(view.scores);
  showFacts();
  document.title = `${view.dataset?.name ?? view.predictions.name} · Puzzle visualizer`;
}

function showFacts() {
  const { set, dataset, predictions } = view;
  const metadata = dataset?.metadata[view.split];
  const kind = `${KINDS[view.recognised].title}${metadata ? "" : " (by its tokens)"}`;
  const boxes = view.box ? `, boxes of ${view.box.join(" × ")}` : "";
  const type = set.inputs.array.name.replace("Array", "").toLowerCase();
  const unnamed = dataset?.names ? "" : " (identifiers.json wasn't chosen)";
  const films = predictions?.steps ? `, films of ${predictions.steps} steps` : "";
  const facts = {
    Folder: dataset ? dataset.folder || dataset.name : predictions.folder,
    Kind: `${kind}, ${view.rows} × ${view.columns} cells${boxes}`,
    Vocabulary: metadata && plural(metadata.vocab_size, "token"),
    Examples: grouped(set.numExamples),
    "Puzzles, groups": `${grouped(set.identifiers.length)}, ${grouped(set.groupIndices.length - 1)}`,
    "Mean examples": metadata?.mean_puzzle_examples?.toFixed(3),
    Identifiers: metadata && `${grouped(metadata.num_puzzle_identifiers)}${unnamed}`,
    "Stored as": `${type}, ${(set.inputs.size / 1e6).toFixed(1)} MB of inputs`,
    Predictions: predictions && `${predictions.name}: ${plural(predictions.numExamples, "example")}${films}`,
  };
  byId("facts").replaceChildren(
    ...Object.entries(facts)
      .filter(([, value]) => value)
      .flatMap(([name, value]) => [
        Object.assign(document.createElement("dt"), { textContent: name }),
        Object.assign(document.createElement("dd"), { textContent: value }),
      ]),
  );
}

/** How many predictions of a run are right, in words. */
function scoreText({ set, count: total, done, exact, unlabelled, cells, wrongCells }) {
  const counting = done < total ? ` (counted ${grouped(done)} of ${grouped(total)})` : "";
  const missing = set.numExamples - total;
  const without = missing ? `; ${plural(missing, "example")} without prediction` : "";
  const labelled = done - unlabelled;
  const unknown = unlabelled ? `; ${plural(unlabelled, "puzzle")} without a label` : "";
  if (unlabelled && !labelled) return `${plural(unlabelled, "prediction")}, none with a label${counting}${without}`;
  return (
    `${grouped(exact)} of ${plural(labelled, "prediction")} exact, ${percent(exact, labelled)}; ` +
    `${percent(cells - wrongCells, cells)} of cells right${unknown}${counting}${without}`
  );
}

/** The runs that are compared, by the names that they have beside the list. */
const runNames = () =>
  [view.predictions, view.other].map((run, i) => `Run ${i + 1}, ${labelOf(run.path, view.offered.predictions)}`);

function showScores(scores) {
  const { done, exact, unlabelled, other } = scores;
  byId("score-text").textContent = `${other ? `${runNames()[0]}: ` : ""}${scoreText(scores)}`;
  byId("other-score-text").hidden = !other;
  if (other) byId("other-score-text").textContent = `${runNames()[1]}: ${scoreText(other)}`;
  document.querySelector("#scores .meter span").style.width = `${(100 * exact) / Math.max(1, done - unlabelled)}%`;
  const counts = { exact, wrong: done - unlabelled - exact };
  for (const filter of [...(scores.halts ? ["sure", "unsure"] : []), ...(other ? Object.keys(COMPARISONS) : [])]) {
    counts[filter] = 0;
    for (let i = 0; i < done; i++) if (scores.passes(filter, i)) counts[filter]++;
  }
  const offered = Object.keys(FILTERS).filter((filter) => filter in counts);
  setOptions(
    byId("filter"),
    ["all", ...offered],
    view.filter,
    (filter) => `${FILTERS[filter]} (${grouped(counts[filter] ?? done)})`,
  );
}

// ---------------------------------------------------------------------------------------------------------------- list

/** Make the list anew after a search or a filter; `follow` shows its first entry if the present example isn't in it. */
function refreshEntries(follow = false) {
  const query = byId("search").value;
  view.entries = listEntries(view.set, view.names, query, view.scores, view.filter);
  const { unit, starts } = view.entries;
  const filtered = query.trim() || view.filter !== "all";
  byId("found").textContent =
    filtered && !starts.length ? "Nothing found" : `${plural(starts.length, unit)}${filtered ? " found" : ""}`;
  list.reset(starts.length);
  const present = entryAt(starts, view.example);
  const isThere = present >= 0 && (unit === "group" || view.example < endOfEntry(present));
  if (follow && starts.length && !isThere) show(starts[0]);
  else list.select(isThere ? present : -1);
}

/** The example after the last one of an entry. */
function endOfEntry(i) {
  const {
    set,
    entries: { unit, starts },
  } = view;
  if (unit === "example") return starts[i] + 1;
  if (unit === "group") return starts[i + 1] ?? set.numExamples;
  return set.puzzleIndices[set.puzzleOf(starts[i]) + 1];
}

function renderEntry(row, i) {
  const {
    set,
    scores,
    entries: { unit, starts },
  } = view;
  if (!row.firstChild) {
    for (const name of ["name", "detail", "detail score", "detail score"])
      row.append(Object.assign(document.createElement("span"), { className: name }));
  }
  const [name, detail, ...marks] = row.children;
  const [start, end] = [starts[i], endOfEntry(i)];
  const puzzle = set.puzzleOf(start);
  writeName(
    name,
    titleOf(set.identifiers[puzzle]) ?? (unit === "group" ? `Group ${grouped(i)}` : `Example ${grouped(start)}`),
  );
  const puzzles = unit === "group" ? set.groupIndices[i + 1] - set.groupIndices[i] : 1;
  detail.textContent =
    puzzles > 1 ? plural(puzzles, "puzzle") : end - start > 1 ? plural(end - start, "example") : `#${grouped(start)}`;
  [scores, scores?.other].forEach((run, i) => markEntry(marks[i], run, start, end));
}

/** Write how many of the examples [start, end) of an entry a run has right. */
function markEntry(mark, scores, start, end) {
  const found = scores ? scores.wrong.subarray(start, Math.max(start, Math.min(end, scores.done))) : [];
  const labelled = found.filter((wrong) => wrong >= 0);
  const scored = labelled.length;
  mark.hidden = !scored;
  if (mark.hidden) return;
  const exact = labelled.filter((wrong) => !wrong).length;
  mark.className = `detail score ${exact === scored ? "good" : "bad"}`;
  if (scored > 1) mark.textContent = `${grouped(exact)}/${grouped(scored)}`;
  else mark.textContent = exact ? "✓" : `✗ ${labelled[0]}`;
}

/** Write a name that is shortened before its end, where ARC's augmented tasks differ: `…_t3_0123456789`. */
function writeName(element, name) {
  if (element.title === name) return;
  const end = /_t[0-7]_\d{10}$/.exec(name)?.[0] ?? (name.length > 12 ? name.slice(-6) : "");
  const [start, rest] = ["span", "span"].map((tag) => document.createElement(tag));
  Object.assign(start, { className: "start", textContent: name.slice(0, name.length - end.length) });
  start.style.maxWidth = `calc(100% - ${end.length}ch)`;
  rest.textContent = end;
  element.replaceChildren(start, rest);
  element.title = name;
}

/** A puzzle's name, or null for the blank identifier that puzzles without names share. */
function titleOf(identifier) {
  const blank = view.dataset?.metadata[view.split].blank_identifier_id ?? 0;
  return identifier === blank ? null : nameOfIdentifier(view.names, identifier);
}
