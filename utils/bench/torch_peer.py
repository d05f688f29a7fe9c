"""Training and evaluation steps of the PyTorch model, and the process that takes them when it is told to.

    python -m utils.bench.torch_peer

is started by `utils.bench.peers`, and reads JSON in lines: first its settings, which it answers with the number of its
threads, then `{"kind": "train" or "eval", "steps": n}`, each answered with the wall and the processor time that so many
steps took, in seconds. PyTorch has a process of its own, so that its threads, memory and BLAS are as without MLX.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from utils.bench.torch_model import ACTHead, Carry


class AdamATan2:
    """Adam with atan2 in place of the division, and decoupled weight decay: see models/optimizers.py."""

    def __init__(self, parameters: list[nn.Parameter], betas: tuple[float, float], weight_decay: float):
        self.parameters, self.betas, self.weight_decay = parameters, betas, weight_decay
        self.m = [torch.zeros_like(p) for p in parameters]
        self.v = [torch.zeros_like(p) for p in parameters]
        self.step_count = 0

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update every parameter by its gradient."""
        self.step_count += 1
        beta1, beta2 = self.betas
        rate = lr / (1 - beta1**self.step_count)
        correction = 1 / math.sqrt(1 - beta2**self.step_count)
        # A parameter at a time stays in the cache: torch._foreach_… functions take 6 % longer on a CPU.
        for parameter, m, v in zip(self.parameters, self.m, self.v, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            m.lerp_(gradient, 1 - beta1)
            v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            deviation = v.sqrt().mul_(correction)
            update = torch.atan2(m, deviation, out=deviation)
            parameter.mul_(1 - lr * self.weight_decay).sub_(update, alpha=rate)


@torch.no_grad()
def sign_sgd_rows(weights: Tensor, identifiers: Tensor, gradients: Tensor, lr: float, weight_decay: float) -> None:
    """Update each distinct row of a batch once, by the sign of the sum of its gradients."""
    distinct, places = identifiers.unique(return_inverse=True)
    summed = gradients.new_zeros(len(distinct), gradients.shape[1]).index_add_(0, places, gradients)
    weights[distinct] = weights[distinct].mul_(1 - lr * weight_decay).sub_(summed.sign_(), alpha=lr)


class Trainer:
    """A model, its optimisers and its carry.

    Args:
        head: the model.
        settings: `lr`, `betas`, `weight_decay`, `puzzle_emb_lr` and `puzzle_emb_weight_decay`.
        compiled: whether torch.compile gets the model.
    """

    def __init__(self, head: ACTHead, settings: dict[str, Any], compiled: bool = False):
        self.head, self.settings = head, settings
        self.optimizer = AdamATan2(list(head.parameters()), settings["betas"], settings["weight_decay"])
        self.carry: Carry | None = None
        self.begin_step, self.forward = head.begin_step, head.forward
        if compiled:
            self.begin_step = torch.compile(head.begin_step, dynamic=False)
            self.forward = torch.compile(head.forward, dynamic=False)

    def train_step(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Take a training step; returns the loss, summed over rows, and the metrics."""
        head, settings, rows = self.head, self.settings, len(batch["inputs"])
        with torch.no_grad():
            carry = self.begin_step(self.carry or head.initial_carry(batch), batch)
            puzzle_rows = head.puzzle_rows(carry)
            min_steps = self.draw_min_steps(carry["steps"])
        if puzzle_rows is not None:
            puzzle_rows.requires_grad_()
        loss, self.carry, metrics, _ = self.forward(carry, puzzle_rows, min_steps)
        (loss / rows).backward()
        self.optimizer.step(settings["lr"])
        if puzzle_rows is not None and puzzle_rows.grad is not None:
            sign_sgd_rows(
                head.inner.puzzle_emb.weights,
                carry["current_data"]["puzzle_identifiers"],
                puzzle_rows.grad,
                settings["puzzle_emb_lr"],
                settings["puzzle_emb_weight_decay"],
            )
        for parameter in self.optimizer.parameters:
            parameter.grad = None
        return loss.detach(), metrics

    def draw_min_steps(self, steps: Tensor) -> Tensor | None:
        """Draw how many outer steps each row takes at least: the exploration."""
        c = self.head.c
        if c.halt_max_steps == 1 or c.halt_exploration_prob == 0:
            return None
        explores = torch.rand(len(steps), device=steps.device) < c.halt_exploration_prob
        return torch.randint_like(steps, 2, c.halt_max_steps + 1) * explores

    @torch.inference_mode()
    def eval_step(self, carry: Carry, batch: dict[str, Tensor]) -> tuple[Carry, dict[str, Tensor], Tensor]:
        """Take one outer step of an evaluation; returns carry, metrics and predictions `[b, s]`."""
        carry = self.begin_step(carry, batch)
        loss, carry, metrics, logits = self.forward(carry, self.head.puzzle_rows(carry), None)
        return carry, metrics | {"loss": loss}, logits.argmax(-1)


def random_batch(rows: int, seq_len: int, vocab_size: int, device: str) -> dict[str, Tensor]:
    """Draw tokens `[rows, seq_len]`, int32, of puzzles without an identifier."""
    inputs, labels = (torch.randint(1, vocab_size, (rows, seq_len), dtype=torch.int32, device=device) for _ in "ab")
    return {"inputs": inputs, "labels": labels, "puzzle_identifiers": torch.zeros_like(inputs[:, 0])}


def main() -> None:
    """Answer on stdout what is asked on stdin, until that ends."""
    settings = json.loads(sys.stdin.readline())
    device, config = settings["device"], settings["config"]
    if device == "cpu" and hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    head = ACTHead(settings["module"], settings["loss_type"], config).to(device)
    trainer = Trainer(head, settings, settings["compiled"])
    batch = random_batch(settings["rows"], config["seq_len"], config["vocab_size"], device)
    first = head.initial_carry(batch)

    def train() -> Tensor:
        return trainer.train_step(batch)[0]

    def evaluate() -> Tensor:
        return trainer.eval_step(first, batch)[1]["loss"]

    print(torch.get_num_threads(), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        head.train(asked["kind"] == "train")
        step = train if asked["kind"] == "train" else evaluate
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(asked["steps"]):
            loss = step()
        float(loss)  # waits for the device
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


if __name__ == "__main__":
    main()
