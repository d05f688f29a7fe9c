"""The PyTorch model that the bench times computes what ours does; otherwise the comparison would be of two things."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.helpers.configs import FAMILY, TINY_ARCH, TINY_TRM, pretrain_config, random_batch, train_state
from utils.evaluation.evaluate import Evaluator
from utils.train.state import TrainState

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is no requirement: pip install torch")
from utils.bench.torch_model import ACTHead  # noqa: E402 - needs it
from utils.bench.torch_peer import Trainer  # noqa: E402

# Two cycles of each kind, so that some are not differentiated; rows halt by Q after the first or second step.
CYCLES = {"halt_exploration_prob": 0.0, "halt_max_steps": 2, "H_cycles": 2, "L_cycles": 2}
ARCHS = {
    "hrm": TINY_ARCH | CYCLES,
    "hrm_learned": TINY_ARCH
    | CYCLES
    | {
        "pos_encodings": "learned",
        "puzzle_emb_ndim": 40,
        "loss": {"name": "losses@ACTLossHead", "loss_type": "softmax_cross_entropy"},
    },
    "trm": TINY_TRM | CYCLES,
    "trm_mlp": FAMILY["trm_mlp"] | CYCLES,
}


def as_torch(arrays: dict[str, mx.array]) -> dict[str, Any]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def torch_head(state: TrainState) -> Any:
    """The PyTorch model with the weights of ours."""
    arch = state.config.arch
    head = ACTHead(arch.name.partition("@")[0], arch.loss.options()["loss_type"], state.head.model.config.model_dump())
    head.load_state_dict({name.removeprefix("model."): array for name, array in as_torch(state.weights()).items()})
    return head


def assert_close(theirs: Any, ours: mx.array, tolerance: float, what: str) -> None:
    expected = np.array(ours)
    atol = tolerance * max(np.abs(expected).max(), 1e-6)
    np.testing.assert_allclose(theirs.detach().numpy(), expected, rtol=0, atol=atol, err_msg=what)


@pytest.mark.parametrize("name", ARCHS)
def test_loss_gradients_and_weights_are_ours(name: str) -> None:
    """Over three steps, in the second and third of which some rows go on with their puzzle."""
    config = pretrain_config(ARCHS[name], lr_warmup_steps=0)
    state = train_state(config, keep={"gradients", "logits"})
    table = state.head.model.puzzle_emb
    table.weights = mx.random.normal(table.weights.shape, key=mx.random.key(5))
    # Q values on both sides of the thresholds
    state.head.model.inner.q_head.weight = mx.random.normal((2, 32), key=mx.random.key(6))
    state.head.model.inner.q_head.bias = mx.zeros(2)

    head = torch_head(state)
    settings = {key: getattr(config, key) for key in ("weight_decay", "puzzle_emb_lr", "puzzle_emb_weight_decay")}
    trainer = Trainer(head, settings | {"betas": (config.beta1, config.beta2), "lr": state.learning_rates(1)[0]})

    gradients: dict[str, Any] = {}
    step = trainer.optimizer.step

    def keep_gradients(lr: float) -> None:
        gradients.update({key: p.grad.clone() for key, p in head.named_parameters()})
        step(lr)

    trainer.optimizer.step = keep_gradients
    goes_on = []
    for t in (1, 2, 3):
        batch = random_batch(t)
        ours = state.train_step(batch)
        settings |= {"lr": state.learning_rates(t)[0], "puzzle_emb_lr": state.learning_rates(t)[1]}
        trainer.settings = settings
        loss, metrics = trainer.train_step(as_torch(batch))
        assert float(loss) == pytest.approx(ours.metrics["loss"].item(), rel=1e-5)
        assert metrics.keys() | {"loss"} == ours.metrics.keys()
        for key, value in metrics.items():
            assert float(value) == pytest.approx(ours.metrics[key].item(), rel=1e-5, abs=1e-5), key
        np.testing.assert_array_equal(trainer.carry["halted"].numpy(), np.array(state.carry["halted"]))
        goes_on.append(not trainer.carry["halted"].all())
        found = tree_flatten(ours.outputs["gradients"][0], destination={})
        assert found.keys() == {f"model.inner.{key.removeprefix('inner.')}" for key in gradients}
        for key, gradient in found.items():
            assert_close(gradients[key.removeprefix("model.")], gradient, 1e-4, f"step {t}, gradient of {key}")
        for key, value in state.weights().items():
            assert_close(head.state_dict()[key.removeprefix("model.")], value, 1e-3, f"step {t}, {key}")
    assert any(goes_on)


@pytest.mark.parametrize("name", ["hrm", "trm_mlp"])
def test_evaluation_is_ours(name: str) -> None:
    config = pretrain_config(ARCHS[name])
    state = train_state(config)
    head = torch_head(state).eval()
    trainer = Trainer(head, {"betas": (0.9, 0.95), "weight_decay": 0.1})
    batch = random_batch(0)
    carry = head.initial_carry(as_torch(batch))
    for *_, metrics, outputs in Evaluator(state.head).outer_steps(batch):  # noqa: B007 - the last step's count
        carry, found, predictions = trainer.eval_step(carry, as_torch(batch))
    assert {key: float(value) for key, value in found.items()} == pytest.approx(
        {key: value.item() for key, value in metrics.items()}, rel=1e-5
    )
    np.testing.assert_array_equal(predictions.numpy(), np.array(outputs["preds"]))
