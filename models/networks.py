"""The two networks of the digits data set, untrained: a residual CNN and a vision transformer.

Both take images of shape (batch, 1, 8, 8) with pixels in [0, 1] and return logits of shape (batch, 10).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name everybody knows)

CLASSES = 10
IMAGE = 8


def digits_cnn() -> nn.Module:
    """A residual network: a stem, two stages of two blocks with 32 and 64 channels, global average pooling."""
    return ResidualNetwork(widths=(32, 64), blocks=2).eval()


def digits_student() -> nn.Module:
    """The residual network at half the widths, untrained: what ``digits.yaml`` distils the trained one into."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResidualNetwork(widths=(16, 32), blocks=2).eval()


def digits_vit() -> nn.Module:
    """A vision transformer: 16 patches and a class token, width 64, four blocks of four heads and 256 neurons."""
    return VisionTransformer(width=64, heads=4, neurons=256, depth=4).eval()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a strided 1x1 convolution where the shape changes."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width_in, h, w) to (batch, width, h / stride, w / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResidualNetwork(nn.Module):
    """Stages of residual blocks; every stage but the first halves the image."""

    def __init__(self, widths: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        stages = []
        for number, (width_in, width) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            first = ResidualBlock(width_in, width, stride=1 if number == 0 else 2)
            stages.append(nn.Sequential(first, *(ResidualBlock(width, width, 1) for _ in range(blocks - 1))))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 1, 8, 8) to logits (batch, 10)."""
        return self.head(F.adaptive_avg_pool2d(self.stages(self.stem(image)), 1).flatten(1))


class Attention(nn.Module):
    """Multi-head self-attention with queries, keys and values in one projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same shape."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))


class TransformerBlock(nn.Module):
    """Attention and a feed-forward network, each normalised first and added to the residual stream."""

    def __init__(self, width: int, heads: int, neurons: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, neurons)
        self.down = nn.Linear(neurons, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches of 2x2 pixels, learned positions, a class token that carries the answer."""

    def __init__(self, width: int, heads: int, neurons: int, depth: int, patch: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 1 + (IMAGE // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, neurons) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 1, 8, 8) to logits (batch, 10)."""
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])
