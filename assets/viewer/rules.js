// Whether an answer is right by the rules of its puzzle, also where it isn't the label: the metrics `valid`,
// `valid_path` and `optimal` of evaluate.py, for one example.
"use strict";

/** What the rules say of an answer, in words: `[isRight, words]`; null where the kind has no rules. */
function judge(kind, inputs, preds, columns, box) {
  const isSquare = inputs.length === columns * columns;
  if (kind === "sudoku" && isSquare) {
    return isValidSudoku(inputs, preds, box) ? [true, "a valid solution"] : [false, "no valid solution"];
  }
  if (kind !== "maze" || !isSquare) return null;
  if (!isValidPath(inputs, preds, columns)) return [false, "no valid path"];
  const pathCells = preds.filter((token) => token === 5).length;
  const fewest = stepsToGoal(inputs, columns, (token) => token !== 1) - 1;
  return [true, pathCells === fewest ? "a valid path, optimal" : "a valid path, not optimal"];
}

/** Whether all clues are kept and every row, column and box has each digit. A token is digit + 1, a blank's is 1. */
function isValidSudoku(inputs, preds, [boxRows, boxColumns]) {
  const side = boxRows * boxColumns;
  const seen = new Set();
  preds.forEach((token, i) => {
    const [row, column] = [Math.floor(i / side), i % side];
    const box = Math.floor(row / boxRows) * boxRows + Math.floor(column / boxColumns);
    const isDigit = token >= 2 && token <= side + 1;
    const keepsClue = inputs[i] <= 1 || inputs[i] === token;
    if (!isDigit || !keepsClue) return;
    for (const unit of [`row ${row}`, `column ${column}`, `box ${box}`]) seen.add(`${unit}: ${token}`);
  });
  return seen.size === 3 * side * side;
}

/** Whether the maze is kept and path cells join start and goal; path cells elsewhere do no harm. */
function isValidPath(inputs, preds, side) {
  const isKept = inputs.every((token, i) => (token === 2 ? preds[i] === 2 || preds[i] === 5 : preds[i] === token));
  const hasOne = (wanted) => inputs.filter((token) => token === wanted).length === 1;
  return isKept && hasOne(3) && hasOne(4) && stepsToGoal(preds, side, (token) => token !== 1 && token !== 2) > 0;
}

/** How many steps lead from start (token 3) to goal (4) over passable cells, breadth first; -1 if there is no way. */
function stepsToGoal(tokens, side, isPassable) {
  const distance = new Map([[tokens.indexOf(3), 0]]);
  for (const cell of distance.keys()) {
    if (tokens[cell] === 4) return distance.get(cell);
    const column = cell % side;
    const neighbours = [cell - side, cell + side];
    if (column > 0) neighbours.push(cell - 1);
    if (column < side - 1) neighbours.push(cell + 1);
    for (const next of neighbours) {
      if (next < 0 || next >= tokens.length || distance.has(next) || !isPassable(tokens[next])) continue;
      distance.set(next, distance.get(cell) + 1); // a Map goes on with what is added on the way
    }
  }
  return -1;
}
