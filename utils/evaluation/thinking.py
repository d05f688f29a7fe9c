"""The keys for thinking longer about a puzzle: more outer steps, further samples, and the choice among answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Choose = Literal["auto", "rules", "q", "vote", "settled"]
MAX_STEPS = 4096  # outer steps; published: 16, tried by others: 64
MAX_SAMPLES = 4096


class Thinking(BaseModel):
    """How much an evaluation thinks about a puzzle. By default no more than the model was trained to.

    The same keys are those of evaluate.py and solve.py, and with `eval_` before them of pretrain.py.
    """

    model_config = ConfigDict(extra="forbid")

    samples: int = Field(
        default=1, ge=1, le=MAX_SAMPLES, description="tries at each puzzle; the first one is always the plain one"
    )
    max_steps: int | None = Field(
        default=None, ge=1, le=MAX_STEPS, description="outer steps of a try; null: halt_max_steps, as trained"
    )
    noise: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="standard deviation of the noise on the states at every outer step of further tries",
    )
    random_init: bool = Field(default=False, description="further tries begin in random states")
    relabel: bool = Field(
        default=False,
        description="further tries are at symmetric copies of the puzzle: other digits, places or colours",
    )
    choose: Choose = Field(
        default="auto",
        description="the answer among the tries', never by the label: rules, the first that is verified (mazes: the "
        "shortest path); q, the highest Q-halt; vote, the most frequent; settled, the logits that moved least in the "
        "last 3 steps; auto, rules where the puzzles have them, else q",
    )

    @model_validator(mode="after")
    def _samples_differ(self) -> Thinking:
        check_samples(self.samples, self.noise, self.random_init, self.relabel)
        return self

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the model's own steps are taken."""
        return self.samples == 1 and self.max_steps is None

    @property
    def options(self) -> dict[str, Any]:
        """The values that are not default, for a line of JSON."""
        return self.model_dump(include=set(Thinking.model_fields), exclude_defaults=True)


def check_samples(samples: int, noise: float, random_init: bool, relabel: bool, prefix: str = "") -> None:
    """Check that further samples, and only they, are given something that makes them differ from the plain one.

    Args:
        samples: as the other three, of `Thinking`.
        noise: …
        random_init: …
        relabel: …
        prefix: before the names of the keys, for messages.

    Raises:
        ValueError: if not.
    """
    ways = {"noise": bool(noise), "random_init": random_init, "relabel": relabel}
    given = [prefix + name for name, used in ways.items() if used]
    if samples > 1 and not given:
        raise ValueError(
            f"{prefix}samples = {samples} would be the same try {samples} times; give {prefix}noise, "
            f"{prefix}random_init or {prefix}relabel as well"
        )
    if samples == 1 and given:
        raise ValueError(
            f"{given[0]} is for further tries, and the first one is the plain one; give {prefix}samples=2 or more"
        )
