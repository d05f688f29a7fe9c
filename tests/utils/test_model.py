"""From a configuration to a model: what can't be built is refused by its key."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from common.errors import UserError
from tests.helpers.configs import pretrain_config, sizes
from utils.model import build_model


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ({"num_heads": 3}, r"num_heads = 3 does not divide hidden_size = 32"),
        ({"hidden_size": 30, "num_heads": 2}, r"hidden_size / num_heads = 15 is odd"),
        ({"H_layers": "four"}, r"arch\.H_layers = 'four'"),
        ({"hidden_sizes": 32}, r"unknown key 'arch\.hidden_sizes'"),
        ({"pos_encodings": "alibi"}, r"arch\.pos_encodings = 'alibi'.*'rope' or 'learned'"),
        ({"forward_dtype": "float64"}, r"arch\.forward_dtype = 'float64'"),
        ({"hidden_size": 1_000_000_000}, r"arch\.hidden_size = 1000000000; at most 16,384"),
        ({"puzzle_emb_ndim": 1 << 40}, r"arch\.puzzle_emb_ndim = 1099511627776; at most 16,384"),
        ({"num_heads": 50_000}, r"arch\.num_heads = 50000; at most 16,384"),
        ({"H_layers": 1_000_000_000}, r"arch\.H_layers = 1000000000; at most 16,384"),
        ({"L_cycles": 1_000_000}, r"arch\.L_cycles = 1000000; at most 16,384"),
        ({"H_cycles": 256, "L_cycles": 256}, r"65,536 blocks in one outer step.* at most 4,096"),
        ({"halt_max_steps": 1 << 33}, r"arch\.halt_max_steps = 8589934592; at most 16,384"),
        ({"expansion": 1e300}, r"arch\.expansion = 1e\+300; at most 16,384"),
        ({"expansion": float("nan")}, r"arch\.expansion = nan"),
        ({"rope_theta": float("inf")}, r"arch\.rope_theta = inf"),
        ({"rms_norm_eps": 1e300}, r"arch\.rms_norm_eps = 1e\+300"),
        ({"H_layers": [[["x" * 5000] * 1000] * 1000]}, r"arch\.H_layers\.0 = \[.{0,100} is too long"),
        ({"name": "os@system"}, r"no module models\.os"),
        ({"name": "hrm.hrm_act_v1@mx"}, r"defines no mx"),
        ({"name": "hrm.hrm_act_v1@BaseModel"}, r"defines no BaseModel"),
        ({"name": "..utils.config@UserError"}, r"expected module@Name"),
        ({"name": "layers@Linear"}, r"'layers@Linear' is not a model"),
    ],
)
def test_impossible_architectures_are_one_line_that_names_the_key(arch: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_model(pretrain_config(arch).arch, sizes(), mx.random.key(0))
    assert "\n" not in str(caught.value)
