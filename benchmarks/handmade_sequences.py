"""Hand-written networks over sequences and tables, each returned with example inputs and names of dynamic axes."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Made = tuple[nn.Module, tuple[Tensor, ...], tuple[dict[int, str], ...]]
BATCH = {0: "batch"}
SEQUENCE = {0: "batch", 1: "sequence"}


class WaveNet(nn.Module):
    """Gated dilated causal convolutions with residual and skip connections (van den Oord et al. 2016)."""

    def __init__(self, width: int = 48, skip: int = 64, levels: int = 6) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, width, 1)
        self.gated = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=1 << k) for k in range(levels))
        self.residual = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(levels))
        self.skips = nn.ModuleList(nn.Conv1d(width, skip, 1) for _ in range(levels))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, skip, 1), nn.ReLU(), nn.Conv1d(skip, 32, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        total = torch.zeros(())
        for k, (gated, residual, skip) in enumerate(zip(self.gated, self.residual, self.skips, strict=True)):
            value, gate = gated(functional.pad(x, (1 << k, 0))).chunk(2, 1)
            h = value.tanh() * gate.sigmoid()
            total = total + skip(h)
            x = x + residual(h)
        return self.end(total)


def wavenet() -> Made:
    """WaveNet."""
    return WaveNet(), (torch.randn(2, 1, 200),), (BATCH,)


class Tcn(nn.Module):
    """Temporal convolutional network with weight-normalised layers (Bai et al. 2018)."""

    def __init__(self, widths: tuple[int, ...] = (8, 32, 32, 64)) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.first = nn.ModuleList(nn.Conv1d(a, b, 3, dilation=1 << k) for k, (a, b) in enumerate(pairs))
        self.second = nn.ModuleList(nn.Conv1d(b, b, 3, dilation=1 << k) for k, (_, b) in enumerate(pairs))
        self.match = nn.ModuleList(nn.Conv1d(a, b, 1) if a != b else nn.Identity() for a, b in pairs)
        self.head = nn.Linear(widths[-1], 12)

    def forward(self, x: Tensor) -> Tensor:
        for k, (first, second, match) in enumerate(zip(self.first, self.second, self.match, strict=True)):
            h = functional.relu(first(functional.pad(x, (2 << k, 0))))
            h = functional.relu(second(functional.pad(h, (2 << k, 0))))
            x = functional.relu(h + match(x))
        return self.head(x[:, :, -1])


def tcn() -> Made:
    """Temporal convolutional network."""
    return Tcn(), (torch.randn(2, 8, 64),), (BATCH,)


class Tagger(nn.Module):
    """Embedding, two bidirectional recurrent layers, a tag for every token."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.embed = nn.Embedding(400, 64)
        self.layers = kind(64, 96, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(192, 17)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(tokens))[0])


def lstm_tagger() -> Made:
    """Two-layer bidirectional LSTM tagger."""
    return Tagger(nn.LSTM), (torch.randint(0, 400, (2, 12)),), (BATCH,)


def gru_tagger() -> Made:
    """Two-layer bidirectional GRU tagger."""
    return Tagger(nn.GRU), (torch.randint(0, 400, (2, 12)),), (BATCH,)


class Dlrm(nn.Module):
    """Recommendation: dense and sparse features, all pairs of products (Naumov et al. 2019)."""

    def __init__(self, tables: int = 6, width: int = 32) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(200, width) for _ in range(tables))
        self.bottom = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, width), nn.ReLU())
        pairs = torch.tril_indices(tables + 1, tables + 1, -1)
        self.register_buffer("places", pairs[0] * (tables + 1) + pairs[1])
        self.top = nn.Sequential(
            nn.Linear(width + pairs.shape[1], 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = self.bottom(dense)
        rows = [x, *(table(sparse[:, k]) for k, table in enumerate(self.tables))]
        features = torch.stack(rows, 1)
        products = (features @ features.transpose(1, 2)).flatten(1)[:, self.places]
        return self.top(torch.cat([x, products], 1)).sigmoid()


def dlrm() -> Made:
    """Recommendation model with dot-product interactions."""
    return Dlrm(), (torch.randn(2, 13), torch.randint(0, 200, (2, 6))), (BATCH, BATCH)


class Experts(nn.Module):
    """Softmax-gated mixture of dense experts, weights stacked in one tensor."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.gate(x).softmax(-1)
        h = functional.gelu(torch.einsum("bsd,edh->bseh", x, self.up))
        return torch.einsum("bseh,ehd,bse->bsd", h, self.down, weight)


class MixtureOfExperts(nn.Module):
    """Residual layers of experts."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(10, width), nn.Linear(width, 5)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.layers = nn.ModuleList(Experts(width, 128, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.end(x)


def mixture_of_experts() -> Made:
    """Mixture of dense experts."""
    return MixtureOfExperts(), (torch.randn(2, 7, 10),), (SEQUENCE,)


class Attention(nn.Module):
    """Multi-head attention, also over another sequence and over a cache of keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        """[B, S, C] to [B, H, S, D]."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(
        self, x: Tensor, memory: Tensor | None = None, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        source = x if memory is None else memory
        q, k, v = self.split(self.q(x)), self.split(self.k(source)), self.split(self.v(source))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        weight = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        y = (weight @ v).transpose(1, 2).flatten(2)
        return self.out(y), k, v


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))


class ConformerBlock(nn.Module):
    """Half feed-forward, attention, convolution module, half feed-forward (Gulati et al. 2020)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.last = _feed_forward(width), _feed_forward(width)
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.expand = nn.LayerNorm(width), nn.Conv1d(width, 2 * width, 1)
        self.depthwise, self.norm3 = nn.Conv1d(width, width, 15, padding=7, groups=width), nn.BatchNorm1d(width)
        self.project, self.norm4 = nn.Conv1d(width, width, 1), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.first(x)
        x = x + self.attention(self.norm1(x))[0]
        h = functional.glu(self.expand(self.norm2(x).transpose(1, 2)), 1)
        x = x + self.project(functional.silu(self.norm3(self.depthwise(h)))).transpose(1, 2)
        return self.norm4(x + 0.5 * self.last(x))


class Conformer(nn.Module):
    """Convolutional subsampling and Conformer blocks."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.subsample = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()
        )
        self.start = nn.Linear(width * 10, width)
        self.blocks = nn.Sequential(*(ConformerBlock(width, 4) for _ in range(2)))
        self.end = nn.Linear(width, 30)

    def forward(self, x: Tensor) -> Tensor:
        x = self.subsample(x[:, None]).transpose(1, 2).flatten(2)
        return self.end(self.blocks(self.start(x))).log_softmax(-1)


def conformer() -> Made:
    """Conformer encoder."""
    return Conformer(), (torch.randn(2, 64, 40),), (BATCH,)


class SelectiveScan(nn.Module):
    """A Mamba block with the scan unrolled over a short sequence (Gu and Dao 2023)."""

    def __init__(self, width: int = 64, state: int = 8, rank: int = 4) -> None:
        super().__init__()
        inner = 2 * width
        self.state, self.rank = state, rank
        self.embed, self.end = nn.Linear(6, width), nn.Linear(width, 6)
        self.inner = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, 4, groups=inner)
        self.select = nn.Linear(inner, rank + 2 * state, bias=False)
        self.step = nn.Linear(rank, inner)
        self.log_a = nn.Parameter(torch.log(torch.arange(1, state + 1).float()).repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        x = self.embed(u)
        h, gate = self.inner(x).chunk(2, -1)
        h = functional.silu(self.conv(functional.pad(h.transpose(1, 2), (3, 0)))).transpose(1, 2)
        step, b, c = self.select(h).split((self.rank, self.state, self.state), -1)
        step = functional.softplus(self.step(step))
        decay = torch.exp(step[..., None] * -torch.exp(self.log_a))
        drive = (step * h)[..., None] * b[:, :, None]
        hidden = torch.zeros_like(drive[:, 0])
        found = []
        for k in range(u.shape[1]):
            hidden = decay[:, k] * hidden + drive[:, k]
            found.append((hidden * c[:, k, None]).sum(-1))
        y = torch.stack(found, 1) + self.skip * h
        return self.end(x + self.out(y * functional.silu(gate)))


def selective_scan() -> Made:
    """Selective state-space scan."""
    return SelectiveScan(), (torch.randn(2, 8, 6),), (BATCH,)


class DecoderLayer(nn.Module):
    """Self-attention, optional cross-attention, feed-forward; pre-norm."""

    def __init__(self, width: int, heads: int, cross: bool) -> None:
        super().__init__()
        self.norm1, self.own = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.other = (nn.LayerNorm(width), Attention(width, heads)) if cross else (None, None)
        self.feed = _feed_forward(width)

    def forward(
        self, x: Tensor, memory: Tensor | None = None, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        y, k, v = self.own(self.norm1(x), past=past)
        x = x + y
        if self.other is not None and self.norm2 is not None:
            x = x + self.other(self.norm2(x), memory)[0]
        return x + self.feed(x), k, v


class CachedDecoder(nn.Module):
    """One step of a decoder with a key-value cache as input and output."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, width)
        self.layers = nn.ModuleList(DecoderLayer(width, 6, cross=False) for _ in range(2))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 300))

    def forward(self, token: Tensor, k0: Tensor, v0: Tensor, k1: Tensor, v1: Tensor) -> tuple[Tensor, ...]:
        x = self.embed(token)
        x, a, b = self.layers[0](x, past=(k0, v0))
        x, c, d = self.layers[1](x, past=(k1, v1))
        return self.head(x), a, b, c, d


def cached_decoder() -> Made:
    """Transformer decoder with a key-value cache."""
    cache = tuple(torch.randn(2, 6, 5, 16) for _ in range(4))
    return CachedDecoder(), (torch.randint(0, 300, (2, 1)), *cache), (BATCH,) * 5


class Seq2Seq(nn.Module):
    """Encoder and decoder with cross-attention."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(200, width), nn.Embedding(200, width)
        self.encoder = nn.ModuleList(DecoderLayer(width, 6, cross=False) for _ in range(2))
        self.decoder = nn.ModuleList(DecoderLayer(width, 6, cross=True) for _ in range(2))
        self.head = nn.Linear(width, 200)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory = self.source(source)
        for layer in self.encoder:
            memory = layer(memory)[0]
        x = self.target(target)
        for layer in self.decoder:
            x = layer(x, memory)[0]
        return self.head(x)


def seq2seq() -> Made:
    """Encoder-decoder with cross-attention."""
    return Seq2Seq(), (torch.randint(0, 200, (2, 9)), torch.randint(0, 200, (2, 7))), (BATCH, BATCH)


class TacotronDecoder(nn.Module):
    """Three steps of a decoder with location-sensitive attention and an LSTM cell (Shen et al. 2018)."""

    def __init__(self, width: int = 160) -> None:
        super().__init__()
        self.memory = nn.Conv1d(20, width, 5, padding=2)
        self.prenet = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.gates = nn.Linear(48 + 2 * width, 4 * width)
        self.query, self.key, self.score = nn.Linear(width, 32), nn.Linear(width, 32), nn.Linear(32, 1)
        self.location = nn.Sequential(nn.Conv1d(1, 8, 7, padding=3), nn.Conv1d(8, 32, 1))
        self.frame = nn.Linear(2 * width, 16)

    def forward(self, x: Tensor) -> Tensor:
        memory = functional.relu(self.memory(x)).transpose(1, 2)
        keys = self.key(memory)
        hidden = torch.zeros_like(memory[:, 0])
        cell, context = hidden, memory.mean(1)
        seen = torch.zeros_like(memory[:, :, :1]).transpose(1, 2)
        frame = torch.zeros_like(x[:, :16, 0])
        frames = []
        for _ in range(3):
            i, f, g, o = self.gates(torch.cat([self.prenet(frame), hidden, context], 1)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            energy = self.score((self.query(hidden)[:, None] + keys + self.location(seen).transpose(1, 2)).tanh())
            weight = energy.softmax(1)
            seen = seen + weight.transpose(1, 2)
            context = (weight * memory).sum(1)
            frame = self.frame(torch.cat([hidden, context], 1))
            frames.append(frame)
        return torch.stack(frames, 1)


def tacotron_decoder() -> Made:
    """Attention decoder of a speech synthesiser."""
    return TacotronDecoder(), (torch.randn(2, 20, 11),), (BATCH,)


class KanLayer(nn.Module):
    """Learned functions on edges: Gaussian radial bases of every input (Li 2024, FastKAN)."""

    def __init__(self, inputs: int, outputs: int, bases: int = 5) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(-2, 2, bases))
        self.base, self.curve = nn.Linear(inputs, outputs), nn.Linear(inputs * bases, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        bumps = torch.exp(-(x[..., None] - self.centres).square())
        return self.base(functional.silu(x)) + self.curve(bumps.flatten(1))


def kan() -> Made:
    """Kolmogorov-Arnold network."""
    return nn.Sequential(KanLayer(12, 64), KanLayer(64, 64), KanLayer(64, 7)), (torch.randn(2, 12),), (BATCH,)
