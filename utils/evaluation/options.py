"""The keys of evaluate.py."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from utils.config import DEFAULT_PREDICTION_KEYS, PredictionKey, check_film
from utils.ranks.watchdog import DEFAULT_TIMEOUT


class EvaluateConfig(BaseModel):
    """All keys of evaluate.py; null, where it is allowed, means: as the checkpoint was trained."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)  # data_path=2024

    checkpoint: str
    data_path: str | None = None
    save_outputs: list[PredictionKey] = list(DEFAULT_PREDICTION_KEYS)
    output_path: str | None = None
    eval_halt: Literal["max", "q"] = "max"
    global_batch_size: int | None = Field(default=None, ge=1)
    max_examples: int | None = Field(default=None, ge=1)
    forward_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    show_examples: int = Field(default=0, ge=0)
    rank_timeout: float = Field(default=DEFAULT_TIMEOUT, ge=1)

    @model_validator(mode="after")
    def _film_is_complete(self) -> EvaluateConfig:
        check_film(self.eval_halt, self.save_outputs, "save_outputs")
        return self
