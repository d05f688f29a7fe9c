"""puzzle_visualizer.html in a real headless browser, and what it should show."""

from __future__ import annotations

import base64
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.helpers.tiny_data import ROOT, run_script, train_arguments

PAGE = (ROOT / "puzzle_visualizer.html").as_uri()
STEPS = 3  # outer steps of the models
SAVED = "[inputs,labels,puzzle_identifiers,preds,q_halt_logits,q_continue_logits,step_preds]"

# From the format's description and the page's own legend, not from its code.
ARC_COLOURS = ["000000", "0074d9", "ff4136", "2ecc40", "ffdc00", "aaaaaa", "f012be", "ff851b", "7fdbff", "870c25"]
MAZE_COLOURS = {1: "2b3440", 2: "f3f1ea", 3: "1f9d55", 4: "d6336c", 5: "f2b134"}


class Viewer:
    """The page, opened; `close` checks that it stayed quiet: no request, no message in the console, no dialogue."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.context.set_default_timeout(10_000)
        self.page = self.context.new_page()
        self.noise: list[str] = []
        self.page.on("console", lambda message: self.noise.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.noise.append(f"error: {error}"))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", self._note_request)
        self.page.goto(PAGE)

    def _dismiss(self, dialog: Any) -> None:
        self.noise.append(f"dialogue: {dialog.message}")
        dialog.dismiss()

    def _note_request(self, request: Any) -> None:
        own = request.url == PAGE or request.url.startswith((ROOT / "assets/viewer").as_uri())
        if not own and not request.url.startswith(("blob:", "data:")):
            self.noise.append(f"request: {request.url}")

    def close(self) -> None:
        self.page.evaluate("new Promise(requestAnimationFrame)")
        self.context.close()
        assert self.noise == [], self.noise

    def until(self, condition: str) -> None:
        """Wait for a condition in the page. (Playwright's own way evaluates text, which the page's policy forbids.)"""
        deadline = time.monotonic() + 10
        while not self.page.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"still not so: {condition}; problems: {self.problems}"
            self.page.wait_for_timeout(5)

    def choose(self, what: str, folder: Path) -> None:
        """Choose a folder with the button for `dataset` or `predictions`, and wait for what comes of it."""
        self.page.evaluate("performance.clearMeasures()")
        self.page.locator(f"#{what}-input").set_input_files(str(folder))
        self.until("performance.getEntriesByName('opened').length || document.querySelector('#problems p')")

    def open(self, dataset: Path | None = None, predictions: Path | None = None) -> Viewer:
        for what, folder in (("dataset", dataset), ("predictions", predictions)):
            if folder is not None:
                self.choose(what, folder)
        assert self.problems == [], self.problems
        if predictions is not None:
            self.until("view.scores && view.scores.done === view.scores.count")
        return self

    def show(self, example: int) -> None:
        self.page.locator("#jump").fill(str(example))
        self.page.locator("#jump").press("Enter")
        self.until(f"view.example === {example}")
        self.page.locator("body").click(position={"x": 1, "y": 1})

    def press(self, *keys: str) -> None:
        """Press keys, and wait until what they asked to read is shown."""
        for key in keys:
            self.page.keyboard.press(key)
            self.until("view.shownTicket === view.ticket")

    @property
    def problems(self) -> list[str]:
        return self.page.locator("#problems span").all_inner_texts()

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text().replace("\u00a0", " ")

    def roles(self) -> list[str]:
        return self.page.eval_on_selector_all("#panels figure", "all => all.map(figure => figure.dataset.role)")

    def board(self, role: str) -> Board:
        """What a panel shows, as text and as pixels."""
        figure = self.page.locator(f"#panels figure[data-role={role}]")
        lines = figure.locator("pre").evaluate("pre => pre.textContent").split("\n")
        return Board(lines, self.pixels(f"#panels figure[data-role={role}] canvas")[..., :3])

    def pixels(self, canvas: str) -> np.ndarray:
        """What a canvas holds, uint8 `[height, width, 4]`: red, green, blue, opacity."""
        url = self.page.locator(canvas).evaluate("canvas => canvas.toDataURL()")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))

    def listed(self) -> list[str]:
        """The names of the list's rows that exist."""
        return self.page.locator("#list .name").all_inner_texts()

    def theme(self, *names: str) -> list[tuple[int, ...]]:
        """The page's present colours."""
        script = "names => names.map(name => getComputedStyle(document.documentElement).getPropertyValue(name).trim())"
        return [rgb(text[1:]) for text in self.page.evaluate(script, [f"--{name}" for name in names])]


def rgb(text: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(text))


@dataclass(frozen=True)
class Board:
    """A panel: `lines` for screen readers, `pixels` uint8 `[height, width, 3]`."""

    lines: list[str]
    pixels: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.lines), self.pixels.shape[1] * len(self.lines) // self.pixels.shape[0]

    @property
    def cell(self) -> int:
        return self.pixels.shape[0] // len(self.lines)

    def crop(self, row: int, column: int) -> np.ndarray:
        """The inside of a cell, without the lines around it."""
        top, left, edge = row * self.cell, column * self.cell, 3
        return self.pixels[top + edge : top + self.cell - edge, left + edge : left + self.cell - edge]

    def ground(self, row: int, column: int) -> tuple[int, ...]:
        """The colour of a cell where neither text nor marks are: near its top left corner."""
        offset = round(self.cell * 0.2)
        return tuple(self.pixels[row * self.cell + offset, column * self.cell + offset].tolist())

    def colours(self, row: int, column: int) -> set[tuple[int, ...]]:
        return set(map(tuple, self.crop(row, column).reshape(-1, 3).tolist()))


def digits(tokens: np.ndarray, side: int) -> list[str]:
    """Sudoku tokens as the lines of text that the page should have."""
    texts = ["." if token <= 1 else str(token - 1) for token in tokens]
    return [" ".join(texts[row * side : (row + 1) * side]) for row in range(side)]


@dataclass(frozen=True)
class Folders:
    """A data set that a builder wrote, and the predictions that evaluate.py wrote for its test split."""

    dataset: Path
    predictions: Path

    def data(self, key: str, split: str = "test") -> np.ndarray:
        return np.load(self.dataset / split / f"all__{key}.npy")

    def predicted(self, key: str) -> np.ndarray:
        return np.load(self.predictions / f"{key}.npy")


def train_and_evaluate(folder: Path, dataset: Path) -> Path:
    """A few training steps of a tiny model, and its predictions for the first 20 test examples, films included."""
    run = folder / f"run-{dataset.name}"
    sizes = ["epochs=1", "global_batch_size=2", "eval_max_examples=2", "arch.hidden_size=16", "arch.num_heads=1"]
    for script, arguments in (
        ("pretrain.py", train_arguments(dataset, run, *sizes)),
        ("evaluate.py", [f"checkpoint={run}", "max_examples=20", f"save_outputs={SAVED}"]),
    ):
        result = run_script(script, arguments, folder, OPENBLAS_NUM_THREADS="1")  # three of these run at once
        assert result.returncode == 0, result.stderr
    (predictions,) = run.glob("step_*_all_preds.0")
    return predictions
