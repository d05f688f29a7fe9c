"""HRM and TRM in plain PyTorch: what `peers=` of the bench times beside this project's models.

Written as a PyTorch user would, with the parts that PyTorch has for it (`scaled_dot_product_attention`, `rms_norm`),
and to the same equations: see models/hrm, models/recursive_reasoning, models/act.py and models/losses.py, which explain
them. Parameters have the names of a checkpoint, so that the weights of one model fit the other.
Shapes: b batch, s tokens of a puzzle, p of its embedding, t = p + s, d hidden size, h heads, v vocabulary.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import IGNORE_LABEL_ID

Carry = dict[str, Any]  # z_H, z_L [b, t, d]; steps [b]; halted [b]; current_data, the arrays of each row's puzzle
Rotation = tuple[Tensor, Tensor] | None  # cosines and sines, [t, 1, head_dim]


class Linear(nn.Linear):
    """A linear map whose float32 weights are cast to the dtype of the input."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__(in_features, out_features, bias)
        nn.init.trunc_normal_(self.weight, std=1 / math.sqrt(in_features))

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Embedding(nn.Module):
    """A table `[n, d]`."""

    def __init__(self, n: int, d: int):
        super().__init__()
        self.embedding_weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(n, d), std=1 / math.sqrt(d)))


class SparseEmbedding(nn.Module):
    """The puzzle embeddings `[n, dims]`, a buffer: their rows have an optimiser of their own."""

    weights: Tensor

    def __init__(self, n: int, dims: int):
        super().__init__()
        self.register_buffer("weights", torch.zeros(n, dims))


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Normalise the last axis."""
    return F.rms_norm(x, x.shape[-1:], eps=eps)


def rotation(t: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Compute the cosines and sines of rotary positions, `[t, 1, head_dim]`."""
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(t, dtype=torch.float32), frequencies).repeat(1, 2)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate `[b, t, heads, head_dim]`: the first half of a head pairs with the second."""
    cos, sin = (a.to(x.dtype) for a in cos_sin)
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((-second, first), dim=-1), sin)


class Attention(nn.Module):
    """Full multi-head attention; queries, keys and values come from one product."""

    def __init__(self, c: SimpleNamespace):
        super().__init__()
        self.heads = c.num_heads
        self.qkv_proj = Linear(c.hidden_size, 3 * c.hidden_size)
        self.o_proj = Linear(c.hidden_size, c.hidden_size)

    def forward(self, x: Tensor, cos_sin: Rotation) -> Tensor:
        b, t, d = x.shape
        qkv = self.qkv_proj(x).view(b, t, 3 * self.heads, d // self.heads)
        qk, v = qkv.split((2 * self.heads, self.heads), dim=2)
        if cos_sin is not None:
            qk = rotate(qk, cos_sin)
        q, k = qk.chunk(2, dim=2)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # (b h t d/h)
        return self.o_proj(out.transpose(1, 2).reshape(b, t, d))


class SwiGLU(nn.Module):
    """down(silu(gate) · up)."""

    def __init__(self, d: int, expansion: float):
        super().__init__()
        inter = math.ceil(round(expansion * d * 2 / 3) / 256) * 256
        self.gate_up_proj = Linear(d, 2 * inter)
        self.down_proj = Linear(inter, d)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """Attention and an MLP, each with a norm behind it."""

    def __init__(self, c: SimpleNamespace):
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = SwiGLU(c.hidden_size, c.expansion)
        self.eps = c.rms_norm_eps

    def forward(self, x: Tensor, cos_sin: Rotation) -> Tensor:
        x = rms_norm(x + self.self_attn(x, cos_sin), self.eps)
        return rms_norm(x + self.mlp(x), self.eps)


class TokenMLPBlock(nn.Module):
    """TRM's block with an MLP over the tokens in place of attention."""

    def __init__(self, c: SimpleNamespace):
        super().__init__()
        self.mlp_t = SwiGLU(c.num_tokens, c.expansion)
        self.mlp = SwiGLU(c.hidden_size, c.expansion)
        self.eps = c.rms_norm_eps

    def forward(self, x: Tensor, cos_sin: Rotation) -> Tensor:
        channels = x.transpose(1, 2)  # (b d t)
        x = rms_norm(channels + self.mlp_t(channels), self.eps).transpose(1, 2)
        return rms_norm(x + self.mlp(x), self.eps)


class Level(nn.Module):
    """Adds the injection to its state, then applies its blocks."""

    def __init__(self, c: SimpleNamespace, layers: int):
        super().__init__()
        block = TokenMLPBlock if getattr(c, "mlp_t", False) else Block
        self.layers = nn.ModuleList(block(c) for _ in range(layers))

    def forward(self, hidden: Tensor, injection: Tensor, cos_sin: Rotation) -> Tensor:
        hidden = hidden + injection
        for layer in self.layers:
            hidden = layer(hidden, cos_sin)
        return hidden


class Core(nn.Module):
    """Input and output of both architectures.

    Args:
        c: the configuration; `num_tokens` is added to it.
    """

    H_init: Tensor
    L_init: Tensor

    def __init__(self, c: SimpleNamespace):
        super().__init__()
        self.c = c
        self.dtype = getattr(torch, c.forward_dtype)
        self.puzzle_tokens = -(-c.puzzle_emb_ndim // c.hidden_size)
        if self.puzzle_tokens:
            self.puzzle_tokens = getattr(c, "puzzle_emb_len", 0) or self.puzzle_tokens
        c.num_tokens = self.puzzle_tokens + c.seq_len
        self.embed_tokens = Embedding(c.vocab_size, c.hidden_size)
        self.lm_head = Linear(c.hidden_size, c.vocab_size)
        self.q_head = Linear(c.hidden_size, 2, bias=True)
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.bias, -5.0)
        if c.puzzle_emb_ndim:
            self.puzzle_emb = SparseEmbedding(c.num_puzzle_identifiers, c.puzzle_emb_ndim)
        if c.pos_encodings == "learned":
            self.embed_pos = Embedding(c.num_tokens, c.hidden_size)
        for name in ("H_init", "L_init"):
            self.register_buffer(name, nn.init.trunc_normal_(torch.empty(c.hidden_size, dtype=self.dtype)))
        cos, sin = rotation(c.num_tokens, c.hidden_size // c.num_heads, c.rope_theta)
        self.register_buffer("cos", cos.to(self.dtype), persistent=False)
        self.register_buffer("sin", sin.to(self.dtype), persistent=False)

    @property
    def cos_sin(self) -> Rotation:
        """The rotation of the positions, if they are rotated."""
        return (self.get_buffer("cos"), self.get_buffer("sin")) if self.c.pos_encodings == "rope" else None

    def input_embeddings(self, inputs: Tensor, puzzle_rows: Tensor | None) -> Tensor:
        """Embed tokens `[b, s]`, behind the puzzle's embedding `[b, puzzle_emb_ndim]`: `[b, t, d]`."""
        x = F.embedding(inputs, self.embed_tokens.embedding_weight.to(self.dtype))
        if puzzle_rows is not None:
            padding = self.puzzle_tokens * self.c.hidden_size - self.c.puzzle_emb_ndim
            puzzle = F.pad(puzzle_rows.to(self.dtype), (0, padding))
            x = torch.cat((puzzle.view(-1, self.puzzle_tokens, self.c.hidden_size), x), dim=1)
        if self.c.pos_encodings == "learned":
            x = math.sqrt(0.5) * (x + self.embed_pos.embedding_weight.to(self.dtype))
        return math.sqrt(self.c.hidden_size) * x

    def q_values(self, z_H: Tensor) -> tuple[Tensor, Tensor]:
        """Return Q-halt and Q-continue, float32 `[b]`."""
        q_halt, q_continue = self.q_head(z_H[:, 0].float()).unbind(-1)
        return q_halt, q_continue

    def recur(self, z_H: Tensor, z_L: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Take the updates of an outer step, the last ones with gradient."""
        raise NotImplementedError


class HRM(Core):
    """Two levels; the last update of each is differentiated."""

    trains_q_continue = True

    def __init__(self, c: SimpleNamespace):
        super().__init__(c)
        self.H_level, self.L_level = Level(c, c.H_layers), Level(c, c.L_layers)

    def recur(self, z_H: Tensor, z_L: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        r = self.cos_sin
        with torch.no_grad():
            for update in range(1, self.c.H_cycles * self.c.L_cycles):
                z_L = self.L_level(z_L, z_H + x, r)
                if update % self.c.L_cycles == 0:
                    z_H = self.H_level(z_H, z_L, r)
        z_L = self.L_level(z_L, z_H + x, r)
        return self.H_level(z_H, z_L, r), z_L


class TRM(Core):
    """One network; the whole last cycle is differentiated."""

    trains_q_continue = False

    def __init__(self, c: SimpleNamespace):
        super().__init__(c)
        self.L_level = Level(c, c.L_layers)

    def cycle(self, z_H: Tensor, z_L: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(self.c.L_cycles):
            z_L = self.L_level(z_L, z_H + x, self.cos_sin)
        return self.L_level(z_H, z_L, self.cos_sin), z_L

    def recur(self, z_H: Tensor, z_L: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for _ in range(self.c.H_cycles - 1):
                z_H, z_L = self.cycle(z_H, z_L, x)
        return self.cycle(z_H, z_L, x)


CORES = {"hrm.hrm_act_v1": HRM, "recursive_reasoning.trm": TRM}  # by the module that `arch.name` names


def token_log_probs(logits: Tensor, loss_type: str) -> Tensor:
    """Compute log-probabilities; of stablemax in float64, as the published code does, where the device has it."""
    if loss_type == "softmax_cross_entropy":
        return F.log_softmax(logits.float(), dim=-1)
    x = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64)
    s = torch.where(x < 0, 1 / (1 - x.clamp(max=0)), x + 1)
    return torch.log(s / s.sum(-1, keepdim=True))


class ACTHead(nn.Module):
    """A core under adaptive computation time, with loss and metrics.

    Args:
        module: of CORES.
        loss_type: `stablemax_cross_entropy` or `softmax_cross_entropy`.
        config: the configuration of our model: its keys in config/arch, and the sizes of the data set.
    """

    def __init__(self, module: str, loss_type: str, config: dict[str, Any]):
        super().__init__()
        self.c = SimpleNamespace(**config)
        self.loss_type = loss_type
        self.inner = CORES[module](self.c)

    def initial_carry(self, batch: dict[str, Tensor]) -> Carry:
        """Return the carry in which every row has halted."""
        inputs = batch["inputs"]
        z = self.inner.H_init.new_zeros(len(inputs), self.c.num_tokens, self.c.hidden_size)
        steps = inputs.new_zeros(len(inputs))
        return {"z_H": z, "z_L": z, "steps": steps, "halted": steps == 0, "current_data": batch}

    def begin_step(self, carry: Carry, batch: dict[str, Tensor]) -> Carry:
        """Give rows that have halted a fresh state and the next puzzle."""
        halted, data = carry["halted"], carry["current_data"]
        return {
            "z_H": torch.where(halted[:, None, None], self.inner.H_init, carry["z_H"]),
            "z_L": torch.where(halted[:, None, None], self.inner.L_init, carry["z_L"]),
            "steps": carry["steps"].masked_fill(halted, 0),
            "halted": halted,
            "current_data": {
                name: torch.where(halted.view(-1, *[1] * (new.ndim - 1)), new, data[name])
                for name, new in batch.items()
            },
        }

    def puzzle_rows(self, carry: Carry) -> Tensor | None:
        """Look up the puzzle embeddings of the carry's data, `[b, puzzle_emb_ndim]`."""
        if not self.c.puzzle_emb_ndim:
            return None
        return self.inner.puzzle_emb.weights[carry["current_data"]["puzzle_identifiers"]]

    def forward(
        self, carry: Carry, puzzle_rows: Tensor | None, min_steps: Tensor | None
    ) -> tuple[Tensor, Carry, dict[str, Tensor], Tensor]:
        """Take an outer step: of training, or after `eval()` of evaluation.

        Args:
            carry: what `begin_step` returned.
            puzzle_rows: what `puzzle_rows` returned.
            min_steps: int `[b]`, how many steps a row takes at least; None: no exploration.

        Returns:
            The loss, summed over rows; the new carry; the metrics, sums; and the logits.
        """
        inner, data = self.inner, carry["current_data"]
        x = inner.input_embeddings(data["inputs"], puzzle_rows)
        z_H, z_L = inner.recur(carry["z_H"], carry["z_L"], x)
        logits = inner.lm_head(z_H[:, inner.puzzle_tokens :])
        q_halt, q_continue = inner.q_values(z_H)
        z_H, z_L = z_H.detach(), z_L.detach()
        target = None
        with torch.no_grad():
            steps = carry["steps"] + 1
            halted = last = steps >= self.c.halt_max_steps
            if self.training and self.c.halt_max_steps > 1:
                halted = last | (q_halt > (q_continue if inner.trains_q_continue else 0))
                if min_steps is not None:
                    halted = halted & (steps >= min_steps)
                if inner.trains_q_continue:
                    next_halt, next_continue = inner.q_values(inner.recur(z_H, z_L, x)[0])
                    target = torch.where(last, next_halt, torch.maximum(next_halt, next_continue)).sigmoid()
        carry = {"z_H": z_H, "z_L": z_L, "steps": steps, "halted": halted, "current_data": data}

        labels = data["labels"]
        labelled = labels != IGNORE_LABEL_ID
        with torch.no_grad():
            count = labelled.sum(-1)
            divisor = count.clamp(min=1)
            correct = (labelled & (logits.argmax(-1) == labels)).sum(-1)
            exact = correct == count
            counted = halted & (count > 0)
            metrics = {
                "count": counted.sum(),
                "accuracy": (correct / divisor * counted).sum(),
                "exact_accuracy": (exact & counted).sum(),
                "q_halt_accuracy": (((q_halt >= 0) == exact) & counted).sum(),
                "steps": (steps * counted).sum(),
            }
        log_probs = token_log_probs(logits, self.loss_type)
        picked = log_probs.gather(-1, labels.where(labelled, 0).long()[..., None])[..., 0]
        lm_loss = -(picked * labelled).sum(-1).div(divisor).sum()
        q_loss = F.binary_cross_entropy_with_logits(q_halt, exact.to(q_halt.dtype), reduction="sum")
        metrics |= {"lm_loss": lm_loss.detach(), "q_halt_loss": q_loss.detach()}
        if target is not None:
            continue_loss = F.binary_cross_entropy_with_logits(q_continue, target, reduction="sum")
            metrics["q_continue_loss"] = continue_loss.detach()
            q_loss = q_loss + continue_loss
        return lm_loss + 0.5 * q_loss, carry, metrics, logits
