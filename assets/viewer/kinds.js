// The kinds of puzzles: how to recognise one, the shape of its board, what a token is called and which colour it has.
"use strict";

const ARC_SIDE = 30;
const ARC_FIRST_COLOUR = 2; // tokens: 0 padding, 1 end of the grid, then the colours 0 to 9
// The palette of the Abstraction and Reasoning Corpus.
const ARC_COLOURS = [
  "#000000",
  "#0074d9",
  "#ff4136",
  "#2ecc40",
  "#ffdc00",
  "#aaaaaa",
  "#f012be",
  "#ff851b",
  "#7fdbff",
  "#870c25",
];
const ARC_COLOUR_NAMES = ["black", "blue", "red", "green", "yellow", "grey", "pink", "orange", "light blue", "brown"];
const MAZE_SYMBOLS = ["?", "#", " ", "S", "G", "o"]; // by token; 0 is padding
const MAZE_NAMES = ["padding", "wall", "open", "start", "goal", "path"];
const MAZE_COLOURS = ["#8a8f98", "#2b3440", "#f3f1ea", "#1f9d55", "#d6336c", "#f2b134"];

/**
 * For each kind: its title, a token's text (one character, or a number) and a token's name. Where a kind has no symbols,
 * those of the data set's vocabulary count, if it has one.
 */
const KINDS = {
  sudoku: {
    title: "Sudoku",
    text: (token) => (token > 1 ? String(token - 1) : token === 1 ? "." : "?"),
    name: (token) => (token > 1 ? String(token - 1) : token === 1 ? "blank" : "padding"),
  },
  maze: {
    title: "Maze",
    text: (token) => MAZE_SYMBOLS[token] ?? "?",
    name: (token) => MAZE_NAMES[token] ?? "unknown",
  },
  arc: {
    title: "ARC",
    text: (token) => (token >= ARC_FIRST_COLOUR ? String(token - ARC_FIRST_COLOUR) : token === 1 ? "|" : "."),
    name: (token) => {
      const colour = token - ARC_FIRST_COLOUR;
      return colour >= 0
        ? `colour ${colour} (${ARC_COLOUR_NAMES[colour]})`
        : token === 1
          ? "end of the grid"
          : "padding";
    },
  },
  tokens: {
    title: "Tokens",
    text: (token, vocabulary) => vocabulary?.[token] ?? String(token),
    name: (token, vocabulary) => (vocabulary && token === 0 ? "padding" : (vocabulary?.[token] ?? `token ${token}`)),
  },
};

/** Rows and columns of a board: square where the length allows it, else lines of at most 32 cells. */
function boardShape(length) {
  const side = Math.round(Math.sqrt(length));
  return side * side === length ? [side, side] : [Math.ceil(length / 32), Math.min(length, 32)];
}

/** The most nearly square box of a Sudoku with `side` rows, no higher than wide: [2, 3] for 6. */
function guessBox(side) {
  let rows = Math.floor(Math.sqrt(side));
  while (side % rows) rows--;
  return [rows, side / rows];
}

/** The kind of a data set: what dataset.json says, or what vocabulary and size tell in files that lack `kind`. */
function kindOfMetadata({ kind, seq_len, vocab_size, vocabulary }) {
  if (kind !== undefined && kind !== null) return Object.hasOwn(KINDS, kind) ? kind : "tokens";
  if (vocabulary) return "tokens"; // with symbols of its own it isn't what its sizes might tell
  const [rows, columns] = boardShape(seq_len);
  if (seq_len === ARC_SIDE * ARC_SIDE && vocab_size === ARC_FIRST_COLOUR + ARC_COLOURS.length) return "arc";
  if (rows === columns && rows > 1 && vocab_size === rows + 2) return "sudoku";
  return rows === columns && vocab_size === MAZE_COLOURS.length ? "maze" : "tokens";
}

/** The kind of puzzles that come without a data set, told by their tokens: flat rows of `length` cells each. */
function kindOfTokens(inputs, labels, length) {
  const [side, columns] = boardShape(length);
  if (side !== columns) return "tokens";
  const largest = (values) => values.reduce((a, b) => Math.max(a, b), 0);
  const isLatin = (board) => {
    for (let line = 0; line < side; line++) {
      const [row, column] = [new Set(), new Set()];
      for (let i = 0; i < side; i++) row.add(board[line * side + i]) && column.add(board[i * side + line]);
      if (row.size < side || column.size < side) return false;
    }
    return true;
  };
  const boards = (values) =>
    Array.from({ length: values.length / length }, (_, i) => values.subarray(i * length, (i + 1) * length));
  if (largest(labels) === side + 1 && boards(labels).every(isLatin)) return "sudoku";
  const isMaze = (board) => [3, 4].every((token) => board.filter((other) => other === token).length === 1);
  if (largest(labels) < MAZE_COLOURS.length && boards(inputs).every(isMaze)) return "maze";
  return length === ARC_SIDE * ARC_SIDE && largest(labels) < ARC_FIRST_COLOUR + ARC_COLOURS.length ? "arc" : "tokens";
}

/** The rectangle around an ARC grid's colours, wherever on the board it stands; the whole board if there are none. */
function gridArea(tokens) {
  const area = { top: ARC_SIDE, left: ARC_SIDE, bottom: 0, right: 0 };
  tokens.forEach((token, i) => {
    if (token < ARC_FIRST_COLOUR) return;
    const [row, column] = [Math.floor(i / ARC_SIDE), i % ARC_SIDE];
    area.top = Math.min(area.top, row);
    area.left = Math.min(area.left, column);
    area.bottom = Math.max(area.bottom, row + 1);
    area.right = Math.max(area.right, column + 1);
  });
  return area.bottom ? area : { top: 0, left: 0, bottom: ARC_SIDE, right: ARC_SIDE };
}

/** Rows and columns of an area. */
const sizeOf = ({ top, left, bottom, right }) => [bottom - top, right - left];
