"""Hand-written networks over images and point clouds, each returned with example inputs and names of dynamic axes."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Made = tuple[nn.Module, tuple[Tensor, ...], tuple[dict[int, str], ...]]
BATCH = {0: "batch"}


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, SiLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )


class UNet(nn.Module):
    """Down, up with transposed convolutions, skip connections by concatenation (Ronneberger et al. 2015)."""

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        widths = [width << k for k in range(depth + 1)]
        self.start = self._double(3, width)
        self.down = nn.ModuleList(self._double(a, b) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[-2::-1])
        self.join = nn.ModuleList(self._double(2 * w, w) for w in widths[-2::-1])
        self.end = nn.Conv2d(width, 4, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(_conv(inputs, outputs), _conv(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.start(x)]
        for layer in self.down:
            kept.append(layer(functional.max_pool2d(kept[-1], 2)))
        x = kept.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([kept.pop(), up(x)], 1))
        return self.end(x)


def unet() -> Made:
    """U-Net."""
    return UNet(), (torch.randn(2, 3, 64, 64),), (BATCH,)


class Espcn(nn.Module):
    """Super-resolution by PixelShuffle, with residual blocks (Shi et al. 2016, Lim et al. 2017)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, 1, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1))
            for _ in range(4)
        )
        self.widen = nn.Sequential(nn.Conv2d(width, 4 * width, 3, 1, 1), nn.PixelShuffle(2), nn.PReLU(width))
        self.tail = nn.Sequential(nn.Conv2d(width, 12, 3, 1, 1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for block in self.blocks:
            x = x + 0.5 * block(x)
        return self.tail(self.widen(x))


def espcn() -> Made:
    """PixelShuffle super-resolution."""
    return Espcn(), (torch.randn(2, 3, 24, 24),), (BATCH,)


class C2f(nn.Module):
    """Split, a chain of bottlenecks, everything concatenated (YOLOv8)."""

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.first, self.last = _conv(inputs, outputs, 1), _conv((2 + depth) * half, outputs, 1)
        self.blocks = nn.ModuleList(nn.Sequential(_conv(half, half), _conv(half, half)) for _ in range(depth))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            y = block(parts[-1])
            parts.append(parts[-1] + y if self.shortcut else y)
        return self.last(torch.cat(parts, 1))


class Sppf(nn.Module):
    """Three max-pools in a row, concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = _conv(width, width // 2, 1), _conv(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(functional.max_pool2d(parts[-1], 5, 1, 2))
        return self.last(torch.cat(parts, 1))


class Detector(nn.Module):
    """Backbone, path aggregation neck and a decoupled head with distribution focal loss, after YOLOv8."""

    bins = 16

    def __init__(self, w: int = 24, classes: int = 20) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, w, 3, 2), _conv(w, 2 * w, 3, 2), C2f(2 * w, 2 * w, 1, True))
        self.p3 = nn.Sequential(_conv(2 * w, 4 * w, 3, 2), C2f(4 * w, 4 * w, 2, True))
        self.p4 = nn.Sequential(_conv(4 * w, 8 * w, 3, 2), C2f(8 * w, 8 * w, 1, True), Sppf(8 * w))
        self.up = C2f(12 * w, 4 * w, 1, False)
        self.down = _conv(4 * w, 4 * w, 3, 2)
        self.out = C2f(12 * w, 8 * w, 1, False)
        box, label = 4 * self.bins, 4 * w
        self.boxes = nn.ModuleList(
            nn.Sequential(_conv(c, box), _conv(box, box), nn.Conv2d(box, box, 1)) for c in (4 * w, 8 * w)
        )
        self.labels = nn.ModuleList(
            nn.Sequential(_conv(c, label), _conv(label, label), nn.Conv2d(label, classes, 1)) for c in (4 * w, 8 * w)
        )
        self.classes = classes
        self.register_buffer("steps", torch.arange(self.bins, dtype=torch.float32).view(1, self.bins, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        n3 = self.up(torch.cat([functional.interpolate(p4, scale_factor=2.0), p3], 1))
        n4 = self.out(torch.cat([self.down(n3), p4], 1))
        heads = [
            torch.cat([box(f), label(f)], 1).flatten(2)
            for f, box, label in zip((n3, n4), self.boxes, self.labels, strict=True)
        ]
        box, label = torch.cat(heads, 2).split((4 * self.bins, self.classes), 1)
        box = box.view(box.shape[0], 4, self.bins, box.shape[2]).transpose(2, 1).softmax(1)
        distance = functional.conv2d(box, self.steps).view(box.shape[0], 4, box.shape[3])
        near, far = distance.chunk(2, 1)
        return torch.cat([(far - near) / 2, near + far, label.sigmoid()], 1)


def detector() -> Made:
    """YOLO-like detector: C2f, SPPF, DFL."""
    return Detector(), (torch.randn(2, 3, 96, 96),), (BATCH,)


class TransformNet(nn.Module):
    """Predicts a k x k matrix for every cloud (T-Net)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.points = nn.Sequential(*_points(size, 32, 64, 256))
        self.head = nn.Sequential(
            nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, size * size)
        )

    def forward(self, x: Tensor) -> Tensor:
        found = self.head(self.points(x).amax(2)).view(-1, self.size, self.size)
        return found + torch.eye(self.size)


def _points(*widths: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU()]
    return layers


class PointNet(nn.Module):
    """Classifier of point clouds with input and feature transforms (Qi et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.align = TransformNet(3), TransformNet(48)
        self.first = nn.Sequential(*_points(3, 48, 48))
        self.second = nn.Sequential(*_points(48, 96, 512))
        self.head = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.bmm(x.transpose(1, 2), self.place(x)).transpose(1, 2)
        x = self.first(x)
        x = torch.bmm(x.transpose(1, 2), self.align(x)).transpose(1, 2)
        return self.head(self.second(x).amax(2))


def pointnet() -> Made:
    """PointNet with both transforms."""
    return PointNet(), (torch.randn(2, 3, 128),), (BATCH,)


class Vae(nn.Module):
    """Convolutional variational autoencoder; the noise is an input."""

    def __init__(self, w: int = 32, latent: int = 24) -> None:
        super().__init__()
        self.encode = nn.Sequential(_conv(3, w, 3, 2), _conv(w, 2 * w, 3, 2), nn.Flatten(), nn.Linear(2 * w * 64, 256))
        self.mean, self.spread = nn.Linear(256, latent), nn.Linear(256, latent)
        self.decode = nn.Sequential(
            nn.Linear(latent, 2 * w * 64),
            nn.ReLU(),
            nn.Unflatten(1, (2 * w, 8, 8)),
            nn.ConvTranspose2d(2 * w, w, 4, 2, 1),
            nn.BatchNorm2d(w),
            nn.ReLU(),
            nn.ConvTranspose2d(w, 3, 4, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        h = functional.relu(self.encode(x))
        return self.decode(self.mean(h) + noise * torch.exp(0.5 * self.spread(h)))


def vae() -> Made:
    """Variational autoencoder."""
    return Vae(), (torch.randn(2, 3, 32, 32), torch.randn(2, 24)), (BATCH, BATCH)


class TimedBlock(nn.Module):
    """Residual block of a diffusion model: GroupNorm, SiLU, scale and shift from the time embedding."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, 1, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.time = nn.Linear(time, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.time(functional.silu(t))[:, :, None, None].chunk(2, 1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(functional.silu(h))


class SpatialAttention(nn.Module):
    """Self-attention over the pixels, with GroupNorm and 1 x 1 convolutions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, 3, self.heads, c // self.heads, h * w).unbind(1)
        y = functional.scaled_dot_product_attention(q.transpose(2, 3), k.transpose(2, 3), v.transpose(2, 3))
        return x + self.out(y.transpose(2, 3).reshape(n, c, h, w))


class DiffusionUNet(nn.Module):
    """A small U-Net of a diffusion model: sinusoidal time embedding, one level down and up, attention inside."""

    def __init__(self, w: int = 64) -> None:
        super().__init__()
        self.register_buffer("rates", torch.exp(torch.arange(w // 2) * (-9.2 / (w // 2))))
        self.embed = nn.Sequential(nn.Linear(w, 2 * w), nn.SiLU(), nn.Linear(2 * w, 2 * w))
        self.start = nn.Conv2d(3, w, 3, 1, 1)
        self.a, self.down = TimedBlock(w, w, 2 * w), nn.Conv2d(w, w, 3, 2, 1)
        self.b, self.attention, self.c = (
            TimedBlock(w, 2 * w, 2 * w),
            SpatialAttention(2 * w, 4),
            TimedBlock(2 * w, 2 * w, 2 * w),
        )
        self.up, self.d = nn.Conv2d(2 * w, 2 * w, 3, 1, 1), TimedBlock(3 * w, w, 2 * w)
        self.end = nn.Sequential(nn.GroupNorm(8, w), nn.SiLU(), nn.Conv2d(w, 3, 3, 1, 1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angle = time[:, None] * self.rates[None]
        t = self.embed(torch.cat([angle.sin(), angle.cos()], 1))
        x = self.start(x)
        kept = self.a(x, t)
        x = self.c(self.attention(self.b(self.down(kept), t)), t)
        x = self.up(functional.interpolate(x, scale_factor=2.0))
        return self.end(self.d(torch.cat([x, kept], 1), t))


def diffusion_unet() -> Made:
    """Diffusion U-Net: time embedding, GroupNorm, attention."""
    return DiffusionUNet(), (torch.randn(2, 3, 16, 16), torch.rand(2) * 900), (BATCH, BATCH)


def convolutional_autoencoder() -> Made:
    """Autoencoder with grouped and plain transposed convolutions."""
    layers = [
        *(_conv(3, 32, 3, 2), _conv(32, 64, 3, 2), _conv(64, 16, 1)),
        *(nn.ConvTranspose2d(16, 64, 4, 2, 1), nn.InstanceNorm2d(64, affine=True), nn.LeakyReLU(0.1)),
        *(
            nn.ConvTranspose2d(64, 32, 4, 2, 1, groups=4),
            nn.BatchNorm2d(32),
            nn.ELU(),
            _conv(32, 32),
            nn.Conv2d(32, 3, 3, 1, 1),
        ),
    ]
    return nn.Sequential(*layers), (torch.randn(2, 3, 32, 32),), (BATCH,)


class Siamese(nn.Module):
    """One encoder on two images; the distance of their embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(_conv(3, 32, 3, 2), _conv(32, 64, 3, 2), _conv(64, 128, 3, 2)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 64)),
        )
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x, y = functional.normalize(self.encoder(a)), functional.normalize(self.encoder(b))
        return torch.cat([self.head((x - y).abs()), (x * y).sum(1, keepdim=True)], 1)


def siamese() -> Made:
    """Siamese network with L2-normalised embeddings."""
    return Siamese(), (torch.randn(2, 3, 48, 48), torch.randn(2, 3, 48, 48)), (BATCH, BATCH)


class MixerBlock(nn.Module):
    """Token mixing and channel mixing (Tolstikhin et al. 2021), tokens along the last axis."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).mT).mT
        return x + self.channels(self.norm2(x))


class PatchMixer(nn.Module):
    """MLP-Mixer on patches cut by a reshape."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.embed = nn.Linear(8 * 8 * 3, width)
        self.blocks = nn.Sequential(*(MixerBlock(16, width) for _ in range(3)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 3, 4, 8, 4, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, 16, 192)
        return self.head(self.blocks(self.embed(x)).mean(1))


def patch_mixer() -> Made:
    """MLP-Mixer."""
    return PatchMixer(), (torch.randn(2, 3, 32, 32),), (BATCH,)


class Capsules(nn.Module):
    """Capsule network with two rounds of routing by agreement (Sabour et al. 2017)."""

    def __init__(self, kinds: int = 16, size: int = 8, classes: int = 10, out: int = 16) -> None:
        super().__init__()
        self.kinds, self.size = kinds, size
        self.stem = nn.Sequential(nn.Conv2d(1, 64, 5, 2), nn.ReLU(), nn.Conv2d(64, kinds * size, 5, 2))
        self.weight = nn.Parameter(torch.randn(1, kinds * 16, classes, out, size) * 0.1)

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        """Length below one."""
        square = x.square().sum(-1, keepdim=True)
        return square / (1 + square) * x / (square + 1e-8).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).view(-1, self.kinds, self.size, 16).transpose(2, 3).reshape(-1, self.kinds * 16, self.size)
        votes = (self.weight @ self.squash(x)[:, :, None, :, None]).squeeze(-1)
        logits = torch.zeros_like(votes[..., :1])
        for _ in range(2):
            result = self.squash((logits.softmax(2) * votes).sum(1, keepdim=True))
            logits = logits + (votes * result).sum(-1, keepdim=True)
        return result.squeeze(1).norm(dim=-1)


def capsule() -> Made:
    """Capsule network."""
    return Capsules(), (torch.randn(2, 1, 28, 28),), (BATCH,)
