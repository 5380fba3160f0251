"""A Llama decoder with a cache, in PyTorch, with the weights of an exported one; and its export.

Read from the file by the names of its nodes: ``/layers.0/wq/MatMul`` multiplies with the query weights of layer 0.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

HEADS, GROUPS, HEAD_DIM = 8, 4, 8
EPSILON = 1e-5


class Attention(nn.Module):
    """Grouped-query attention over a cache, rotary positions interleaved."""

    def __init__(self, weights: dict[str, np.ndarray[Any, Any]]) -> None:
        super().__init__()
        for name in ("wq", "wk", "wv", "wo"):
            self.register_parameter(name, nn.Parameter(torch.tensor(weights[name])))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x is (batch, steps, width); past_k and past_v are (batch, groups, past, head_dim)."""
        batch, steps, _ = x.shape
        q = (x @ self.wq).reshape(batch, steps, HEADS, HEAD_DIM).transpose(1, 2)
        k = (x @ self.wk).reshape(batch, steps, GROUPS, HEAD_DIM).transpose(1, 2)
        v = (x @ self.wv).reshape(batch, steps, GROUPS, HEAD_DIM).transpose(1, 2)
        k = torch.cat([past_k, _rotate(k, cos, sin)], 2)
        v = torch.cat([past_v, v], 2)
        scores = _rotate(q, cos, sin) @ _repeat(k).transpose(2, 3) / HEAD_DIM**0.5 + mask
        mixed = (scores.softmax(-1) @ _repeat(v)).transpose(1, 2).reshape(batch, steps, HEADS * HEAD_DIM)
        return mixed @ self.wo, k, v


class Decoder(nn.Module):
    """Tokens and caches in, logits and caches out."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        read = _weights(path)
        self.layers = 1 + max(int(name.split(".")[1]) for name in read if name.startswith("layers."))
        self.embedding = nn.Parameter(torch.tensor(read["tok_embeddings.weight"]))
        self.head = nn.Parameter(torch.tensor(read["output"]))
        self.cos, self.sin = (nn.Buffer(torch.tensor(read[name])) for name in ("fc", "fs"))
        self.norm = nn.Parameter(torch.tensor(read["norm.weight"]))
        self.attention, self.feed_forward = nn.ModuleList(), nn.ModuleList()
        for number in range(self.layers):
            prefix = f"layers.{number}."
            own = {name.removeprefix(prefix): v for name, v in read.items() if name.startswith(prefix)}
            self.attention.append(Attention(own))
            parameters = {name: nn.Parameter(torch.tensor(own[name])) for name in ("w1", "w2", "w3")}
            for norm in ("attention_norm", "ffn_norm"):
                parameters[norm] = nn.Parameter(torch.tensor(own[f"{norm}.weight"]))
            self.feed_forward.append(nn.ParameterDict(parameters))

    def forward(self, tokens: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        """tokens is (batch, steps); past holds the keys and values of every layer, (batch, groups, past, head_dim)."""
        start, steps = past[0].shape[2], tokens.shape[1]
        places = torch.arange(steps, device=tokens.device) + start
        mask = torch.where(torch.arange(start + steps)[None] > places[:, None], float("-inf"), 0.0)
        cos, sin = self.cos[places], self.sin[places]
        x, present = self.embedding[tokens], []
        for number, layer in enumerate(self.feed_forward):
            own = past[2 * number : 2 * number + 2]
            mixed, k, v = self.attention[number](_normalised(x, layer["attention_norm"]), cos, sin, mask, *own)
            x = x + mixed
            inner = _normalised(x, layer["ffn_norm"])
            x = x + (nn.functional.silu(inner @ layer["w1"]) * (inner @ layer["w3"])) @ layer["w2"]
            present += [k, v]
        return _normalised(x, self.norm) @ self.head, *present


def export(source: Path, target: Path) -> list[str]:
    """Export the decoder in ``source`` with a cache; returns the names of the caches it takes, ``past.*``."""
    decoder = Decoder(source).eval()
    names = [f"{part}.{number}" for number in range(decoder.layers) for part in ("key", "value")]
    past = [torch.zeros(2, GROUPS, 5, HEAD_DIM) for _ in names]
    batch, steps, seen = (torch.export.Dim(name) for name in ("batch", "steps", "past"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            decoder,
            (torch.ones(2, 3, dtype=torch.int64), past),
            target,
            input_names=["tokens", *(f"past.{n}" for n in names)],
            output_names=["logits", *(f"present.{n}" for n in names)],
            dynamic_shapes=({0: batch, 1: steps}, [{0: batch, 2: seen} for _ in names]),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return [f"past.{n}" for n in names]


def _weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    graph = onnx.load(path).graph
    read = {t.name: onnx.numpy_helper.to_array(t).copy() for t in graph.initializer}
    for node in graph.node:
        layer, _, op = node.name.strip("/").replace("/w", ".w").partition("/")
        if op == "MatMul" and node.input[1] in read:
            read[layer] = read[node.input[1]]
    return read


def _normalised(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def _repeat(x: Tensor) -> Tensor:
    """Every cached head serves the query heads of its group."""
    return x[:, :, None].expand(-1, -1, HEADS // GROUPS, -1, -1).flatten(1, 2)
