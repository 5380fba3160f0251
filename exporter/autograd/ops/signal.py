"""Fourier transforms."""

from __future__ import annotations

import torch
from torch import Tensor

from exporter.autograd.registry import Ints, Site, op

_AXIS_INPUT_OPSET = 20


@op("DFT")
def _dft(
    site: Site,
    x: Tensor,
    length: Ints | None = None,
    at: Ints | None = None,
    *,
    axis: int = 1,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """Along an axis; the last axis holds real and imaginary parts."""
    where = axis
    if site.opset >= _AXIS_INPUT_OPSET:
        where = -2 if at is None else at[0]
    where %= x.ndim
    count = length[0] if length else None
    if inverse and onesided:
        full = torch.view_as_complex(x.contiguous())
        real: Tensor = torch.fft.irfft(full, count, where)
        return real.unsqueeze(-1)
    value = x[..., 0] if x.shape[-1] == 1 else torch.view_as_complex(x.contiguous())
    if onesided:
        return torch.view_as_real(torch.fft.rfft(value.real if value.is_complex() else value, count, where))
    found = torch.fft.ifft(value, count, where) if inverse else torch.fft.fft(value, count, where)
    return torch.view_as_real(found)


@op("STFT")
def _stft(
    site: Site, x: Tensor, step: Ints, window: Tensor | None = None, length: Ints | None = None, *, onesided: int = 1
) -> Tensor:
    """Transforms of overlapping frames [batch, frames, frequencies, 2].

    A signal without an axis of real and imaginary parts, [batch, length], is no case of the standard; torch's exporter
    writes it, and ONNX Runtime takes it as real.
    """
    size = length[0] if length else (window.shape[0] if window is not None else None)
    if size is None:
        raise site.refuse("it has neither a window nor a frame length")
    parts = x if x.ndim > 2 else x.unsqueeze(-1)
    value = parts[..., 0] if parts.shape[-1] == 1 else torch.view_as_complex(parts.contiguous())
    frames = value.unfold(1, size, step[0])
    if window is not None:
        frames = frames * window
    if onesided:
        return torch.view_as_real(torch.fft.rfft(frames, dim=-1))
    return torch.view_as_real(torch.fft.fft(frames, dim=-1))
