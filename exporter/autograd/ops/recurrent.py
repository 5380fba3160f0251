"""Recurrent layers, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from exporter.autograd.registry import Site, op

Activation = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, tuple[Callable[[Tensor, float, float], Tensor], float, float]] = {
    "relu": (lambda x, a, b: torch.relu(x), 0.0, 0.0),
    "tanh": (lambda x, a, b: torch.tanh(x), 0.0, 0.0),
    "sigmoid": (lambda x, a, b: torch.sigmoid(x), 0.0, 0.0),
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "leakyrelu": (lambda x, a, b: F.leaky_relu(x, a), 0.01, 0.0),
    "thresholdedrelu": (lambda x, a, b: torch.where(x > a, x, torch.zeros_like(x)), 1.0, 0.0),
    "scaledtanh": (lambda x, a, b: a * torch.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, a, b: torch.clamp(a * x + b, 0.0, 1.0), 0.2, 0.5),
    "elu": (lambda x, a, b: F.elu(x, a), 1.0, 0.0),
    "softsign": (lambda x, a, b: F.softsign(x), 0.0, 0.0),
    "softplus": (lambda x, a, b: F.softplus(x), 0.0, 0.0),
}
"""What the standard names, with the default alpha and beta."""

_TAKES_ALPHA = {"affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu"}
_TAKES_BETA = {"affine", "scaledtanh", "hardsigmoid"}

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State], State]


def _activations(
    site: Site,
    names: Sequence[str | bytes] | None,
    default: Sequence[str],
    count: int,
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
    clip: float | None,
    unclipped: int = -1,
) -> list[Activation]:
    """The activations of all directions in order; alphas and betas go to those that take one.

    Inputs are clipped, but those of activation ``unclipped`` of each direction's ``len(default)``.
    """
    chosen = [n.decode() if isinstance(n, bytes) else n for n in names] if names else list(default) * count
    left_alpha, left_beta = list(alphas or ()), list(betas or ())
    found: list[Activation] = []
    for number, name in enumerate(chosen):
        key = name.lower()
        if key not in _ACTIVATIONS:
            raise site.refuse(f"its activation '{name}' is not implemented")
        function, alpha, beta = _ACTIVATIONS[key]
        alpha = left_alpha.pop(0) if key in _TAKES_ALPHA and left_alpha else alpha
        beta = left_beta.pop(0) if key in _TAKES_BETA and left_beta else beta
        found.append(_clipped(function, alpha, beta, None if number % len(default) == unclipped else clip))
    return found


def _clipped(
    function: Callable[[Tensor, float, float], Tensor], alpha: float, beta: float, clip: float | None
) -> Activation:
    return lambda x: function(x if clip is None else x.clamp(-clip, clip), alpha, beta)


def _sequence(
    cell: Cell, inputs: Tensor, state: State, lengths: Tensor | None, backwards: bool
) -> tuple[Tensor, State]:
    """Run a cell over the steps of ``inputs`` [T, B, ...]; returns the first state at each [T, B, H], and the last."""
    steps = range(inputs.shape[0])
    outputs: list[Tensor] = [state[0]] * len(steps)
    for t in reversed(steps) if backwards else steps:
        after = cell(inputs[t], state)
        if lengths is not None:
            here = (t < lengths).unsqueeze(1)
            outputs[t] = torch.where(here, after[0], torch.zeros_like(after[0]))
            state = tuple(torch.where(here, new, old) for new, old in zip(after, state, strict=True))
        else:
            outputs[t], state = after[0], after
    return torch.stack(outputs) if outputs else inputs.new_zeros(0, *state[0].shape), state


def _recurrent(
    site: Site,
    x: Tensor,
    w: Tensor,
    initial: Sequence[Tensor | None],
    lengths: Tensor | None,
    direction: str,
    layout: int,
    hidden: int,
    prepare: Callable[[int, Tensor], tuple[Tensor, Cell]],
) -> tuple[Tensor, ...]:
    """All directions: (Y, one last state for each initial one), in the layout asked for.

    Of a sequence without steps the last states are zero, as in ONNX Runtime.
    """
    if layout:
        x = x.transpose(0, 1)
        initial = [None if s is None else s.transpose(0, 1) for s in initial]
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    zero = torch.zeros(x.shape[1], hidden, dtype=x.dtype, device=x.device)
    ys, lasts = [], []
    for d, back in enumerate(backwards):
        inputs, cell = prepare(d, x)
        state = tuple(zero if s is None else s[d] for s in initial)
        y, last = _sequence(cell, inputs, state, lengths, back)
        ys.append(y)
        lasts.append(last)
    whole = torch.stack(ys, 1)  # [T, D, B, H]
    finals = [torch.stack([last[k] for last in lasts]) for k in range(len(initial))]
    if lengths is not None:
        finals = [f * (lengths > 0).to(f)[:, None] for f in finals]
    if layout:
        return whole.permute(2, 0, 1, 3), *(f.transpose(0, 1) for f in finals)
    return whole, *finals


@op("RNN")
def _rnn(
    site: Site,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """H = f(x W' + h R' + b)."""
    size = r.shape[-1]
    functions = _activations(site, activations, ["Tanh"], len(w), activation_alpha, activation_beta, clip)

    def prepare(d: int, values: Tensor) -> tuple[Tensor, Cell]:
        given = values @ w[d].t()
        if b is not None:
            given = given + b[d, :size] + b[d, size:]
        return given, lambda v, state: (functions[d](v + state[0] @ r[d].t()),)

    return _recurrent(site, x, w, [h0], lengths, direction, layout, size, prepare)


@op("GRU")
def _gru(
    site: Site,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:
    """Gates z, r, h in this order; the reset gate acts before or after the state's matrix."""
    size = r.shape[-1]
    functions = _activations(site, activations, ["Sigmoid", "Tanh"], len(w), activation_alpha, activation_beta, clip)

    def prepare(d: int, values: Tensor) -> tuple[Tensor, Cell]:
        gate, candidate = functions[2 * d], functions[2 * d + 1]
        given = values @ w[d].t()
        inner = None
        if b is not None:
            given, inner = given + b[d, : 3 * size], b[d, 3 * size :]

        def cell(v: Tensor, state: State) -> State:
            h = state[0]
            own = h @ r[d, : 2 * size].t()
            if inner is not None:
                own = own + inner[: 2 * size]
            update, reset = gate(v[:, : 2 * size] + own).chunk(2, 1)
            last = None if inner is None else inner[2 * size :]
            if linear_before_reset:
                back = reset * F.linear(h, r[d, 2 * size :], last)
            else:
                back = F.linear(reset * h, r[d, 2 * size :], last)
            fresh = candidate(v[:, 2 * size :] + back)
            return ((1 - update) * fresh + update * h,)

        return given, cell

    return _recurrent(site, x, w, [h0], lengths, direction, layout, size, prepare)


@op("LSTM")
def _lstm(
    site: Site,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """Gates i, o, f, c in this order; peepholes (``p``) let gates see the cell.

    ONNX Runtime does not clip the cell before its activation, though the standard speaks of all activations.
    """
    size = r.shape[-1]
    kinds = ["Sigmoid", "Tanh", "Tanh"]
    functions = _activations(site, activations, kinds, len(w), activation_alpha, activation_beta, clip, unclipped=2)

    def prepare(d: int, values: Tensor) -> tuple[Tensor, Cell]:
        gate, candidate, shown = functions[3 * d : 3 * d + 3]
        given = values @ w[d].t()
        if b is not None:
            given = given + b[d, : 4 * size] + b[d, 4 * size :]
        peep = None if p is None else p[d].chunk(3)

        def cell(v: Tensor, state: State) -> State:
            h, c = state
            i, o, f, new = (v + h @ r[d].t()).chunk(4, 1)
            if peep is not None:
                i, f = i + peep[0] * c, f + peep[2] * c
            i = gate(i)
            f = 1 - i if input_forget else gate(f)
            c = f * c + i * candidate(new)
            o = gate(o if peep is None else o + peep[1] * c)
            return o * shown(c), c

        return given, cell

    return _recurrent(site, x, w, [h0, c0], lengths, direction, layout, size, prepare)
