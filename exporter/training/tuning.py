"""Fine-tuning: train the weights of a graph on labels, on what the original gives, or on both, and keep the best."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from exporter.autograd import OnnxModule, to_torch, write_back
from exporter.calibration.cache import content
from exporter.errors import GoalError, ModelError, UsageError
from exporter.graph import Graph
from exporter.training.agreement import verified
from exporter.training.augment import augmented
from exporter.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from exporter.training.devices import placed
from exporter.training.labels import knowing
from exporter.training.options import TuneOptions, check_blends
from exporter.training.scores import Step, batches, rows_in, runs_in, steps_of
from exporter.training.targets import Target
from exporter.training.team import ALONE, Team
from runtime.nouns import counted
from runtime.samples import Samples
from runtime.steps import Count

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda p, lr, decay: torch.optim.AdamW(p, lr=lr, weight_decay=decay),
    "adam": lambda p, lr, decay: torch.optim.Adam(p, lr=lr, weight_decay=decay),
    "sgd": lambda p, lr, decay: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True, weight_decay=decay),
}

_SPARSE = 0.1
"""Share of zeros from which on a weight of two axes or more is taken for pruned."""

_OTHERS = {
    "model": "another model",
    "data": "other data or labels",
    "target": "another target (loss, teacher, matches)",
    "options": "other options",
}
"""What a checkpoint is of that does not fit, by the part of its identity."""

_WARM_UP = 0.05
_LONGEST_GRADIENT = 5.0


@dataclass(frozen=True)
class Tuned:
    """What ``tune`` did.

    Attributes:
        graph: with the best weights.
        before, after: loss on the samples held out.
        history: after each epoch, (steps, loss of training, loss on the samples held out).
        best: steps after which the best weights were there; 0 where training did not help.
        held: number of samples held out.
        sparse: weights whose zeros were kept.
        difference: largest difference between torch and ONNX Runtime on the result.
        seconds: wall time.
        resumed: step from which a checkpoint was continued, or 0.
    """

    graph: Graph
    before: float
    after: float
    history: tuple[tuple[int, float, float], ...]
    best: int
    held: int
    sparse: tuple[str, ...]
    difference: float
    seconds: float
    resumed: int = 0


@dataclass
class _Run:
    """A training run on its way."""

    module: OnnxModule
    target: Target
    options: TuneOptions
    masters: dict[str, Tensor]
    masks: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    total: int
    team: Team = ALONE
    identity: dict[str, str] = field(default_factory=dict)
    done: int = 0
    best: float = math.inf
    best_step: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[tuple[int, float, float]] = field(default_factory=list)


def tune(
    graph: Graph,
    samples: Samples,
    target: Target,
    options: TuneOptions,
    device: torch.device | None = None,
    step: Step = lambda _: None,
    team: Team = ALONE,
) -> Tuned:
    """Train the weights of a graph.

    Zeros of weights that hold many (2:4 and other sparsity) stay zero. Weights of 16 bits are trained on copies of 32.
    What a BatchNormalization remembers of its inputs stays as it is, as in the file.

    Args:
        graph: stays as it is.
        samples: inputs, with labels where the target needs them.
        target: what is made small; see ``make_target``.
        options: how to train.
        device: where; the CPU by default.
        step: called with a line now and then.
        team: processes that train together, this one among them; each calls this with the same arguments.

    Returns:
        The graph with the weights that did best on the samples held out.

    Raises:
        Unsupported: an operator is not implemented in torch.
        UsageError: too few samples, images are blended where labels judge, the checkpoint is of another run, or batches
            cannot be shared by processes.
        GoalError: the loss is not a number, or the model differs between torch and ONNX Runtime, before or after.
    """
    started = time.perf_counter()
    check_blends(options.augment, samples.answers is not None, target.teacher is not None)
    where = device or torch.device("cpu")
    mixed = samples.shuffled(options.seed)
    runs = len(mixed) // mixed.run
    cut = (runs - max(int(runs * options.hold), 1)) * mixed.run
    if cut < 1:
        why = f": the model takes {mixed.run} at a time" if mixed.run > 1 else ""
        raise UsageError(f"{counted(len(samples), 'sample is', 'samples are')} too few to hold some out{why}.")
    train, held = mixed.part(0, cut), mixed.part(cut, len(mixed))
    module = placed(to_torch(graph), where)
    size = min(options.batch, 8)
    verified(graph, module, held, size, "model")
    if not module.weights:
        raise ModelError("the model has no weights that can be trained.")
    run = _begin(module, replace(target, loss=knowing(target.loss, samples.labels)), options, train, team)
    if options.checkpoint is not None:
        run.identity = _identity(graph, samples, run)
    resumed = _resume(run)
    team.agreed(resumed)
    before = _judge(run, held) if not resumed else run.history[0][2]
    if not resumed:
        run.history.append((0, math.nan, before))
        _remember(run, before)
    while run.done < run.total and not _stale(run):
        trained = _epoch(run, train, where, step)
        found = _judge(run, held)
        run.history.append((run.done, trained, found))
        _remember(run, found)
        step(f"step {run.done} of {run.total}: loss {trained:.4g}, held out {found:.4g}, best {run.best:.4g}")
        if options.checkpoint is not None and team.rank == 0:
            write_checkpoint(options.checkpoint, _checkpoint(run))
    with torch.no_grad():
        for name, weight in module.weights.items():
            weight.copy_(run.best_weights[name])
    tuned = write_back(module, graph)
    return Tuned(
        tuned, before, run.best, tuple(run.history), run.best_step, len(held), tuple(run.masks),
        verified(tuned, module, held, size), time.perf_counter() - started, resumed,
    )  # fmt: skip


def _begin(module: OnnxModule, target: Target, options: TuneOptions, train: Samples, team: Team) -> _Run:
    if team.count > 1 and (train.store.single or train.store.fixed):
        raise UsageError(
            f"the model takes {counted(train.run, 'sample')} in every run, so {team.count} processes "
            "cannot share a batch. Start one process, or export the model with a dynamic batch axis."
        )
    weights = module.weights
    short = (torch.float16, torch.bfloat16)
    masters = {n: w.detach().float().requires_grad_() if w.dtype in short else w for n, w in weights.items()}
    masks = {}
    for name, weight in weights.items():
        zeros = weight.detach() == 0
        if weight.ndim >= 2 and float(zeros.float().mean()) >= _SPARSE:
            masks[name] = ~zeros
    per_epoch = math.ceil(len(train.counts(options.batch)) / runs_in(train, options.batch))
    total = options.steps or options.epochs * per_epoch
    optimizer = _OPTIMIZERS[options.optimizer](list(masters.values()), options.lr, options.decay)
    return _Run(module, target, options, masters, masks, optimizer, total, team)


def _rate(run: _Run) -> float:
    """Share of the highest learning rate at a step."""
    warm = max(run.total * _WARM_UP, 1)
    if run.done < warm:
        return (run.done + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (run.done - warm) / max(run.total - warm, 1)))


def _epoch(run: _Run, train: Samples, where: torch.device, step: Step) -> float:
    """One pass over the data, or what is left of the steps; the mean loss."""
    options, number = run.options, len(run.history)
    draw = torch.Generator().manual_seed(options.seed * 1_000_003 + number)
    total, count = 0.0, 0
    for group in steps_of(train.shuffled(options.seed + number), options.batch, where):
        if run.done >= run.total:
            break
        for settings in run.optimizer.param_groups:
            settings["lr"] = options.lr * _rate(run)
        run.module.zero_grad()
        changed = augmented([inputs for inputs, _ in group], options.augment, draw)
        found = 0.0
        for inputs, (_, labels) in zip(changed, group, strict=True):
            mine, answers, part = run.team.share(inputs, labels)
            with torch.autocast(where.type, torch.bfloat16, enabled=options.amp):
                loss = part / len(group) * run.target(run.module, mine, answers)[0]
            loss.backward()  # type: ignore[no-untyped-call]
            found += float(run.team.sum(loss.detach()))
        if not math.isfinite(found):
            raise GoalError(f"the loss is {found} at step {run.done}. Train with a smaller --lr, or check the data.")
        run.team.add_gradients(run.module.weights.values())
        _update(run)
        total, count = total + found, count + 1
        run.done += 1
        step(Count("training steps", run.done, run.total, note=f"loss {total / count:.4g}"))
    return total / max(count, 1)


def _update(run: _Run) -> None:
    """A step of the optimizer, after which zeros are zero again and 16-bit weights follow their copies."""
    weights = run.module.weights
    for name, master in run.masters.items():
        weight = weights[name]
        if master is not weight:
            master.grad = None if weight.grad is None else weight.grad.float()
        if master.grad is not None and name in run.masks:
            master.grad.mul_(run.masks[name])
    torch.nn.utils.clip_grad_norm_(list(run.masters.values()), _LONGEST_GRADIENT)
    run.optimizer.step()
    with torch.no_grad():
        for name, master in run.masters.items():
            if name in run.masks:
                master.mul_(run.masks[name])
            if master is not weights[name]:
                weights[name].copy_(master)


def _judge(run: _Run, held: Samples) -> float:
    """Mean loss on the samples held out; of several processes each judges some batches, and all get the mean."""
    total, count, team = 0.0, 0, run.team
    with torch.no_grad():
        for number, (inputs, labels) in enumerate(batches(held, run.options.batch, run.module.device)):
            if number % team.count == team.rank:
                size = rows_in(held, inputs)
                total += float(run.target(run.module, inputs, labels)[0]) * size
                count += size
    if team.count > 1:
        total, count = team.sum(torch.tensor([total, count], device=run.module.device)).tolist()
    return total / max(count, 1)


def _remember(run: _Run, found: float) -> None:
    if found < run.best:
        run.best, run.best_step = found, run.done
        run.best_weights = {n: w.detach().clone() for n, w in run.module.weights.items()}
    elif not run.best_weights:
        raise GoalError(f"the loss on the samples held out is {found} before training; check the data and labels.")


def _stale(run: _Run) -> bool:
    """Say whether the last epochs brought nothing."""
    patience = run.options.patience
    since = [s for s, _, _ in run.history if s > run.best_step]
    return bool(patience) and len(since) >= patience


def _identity(graph: Graph, samples: Samples, run: _Run) -> dict[str, str]:
    """What a checkpoint must have in common with a run to be continued by it."""
    o, labels = run.options, samples.labels
    told = hashlib.sha256(b"" if labels is None else f"{labels.dtype.str}{labels.shape}".encode() + labels.tobytes())
    return {
        "model": content(graph),
        "data": f"{samples.digest} {told.hexdigest()}",
        "target": run.target.about,
        "options": f"{o.optimizer} {o.lr} {o.decay} {o.batch} {o.augment} {o.hold} {o.seed} {o.amp} {run.total}",
    }


def _checkpoint(run: _Run) -> Checkpoint:
    return Checkpoint(
        run.identity, run.done, run.best, run.best_step, list(run.history), run.optimizer.state_dict(),
        {n: m.detach() for n, m in run.masters.items()}, run.best_weights,
    )  # fmt: skip


def _resume(run: _Run) -> int:
    """Go on from a checkpoint; returns its step, or 0 where there is none."""
    path = run.options.checkpoint
    if path is None or not path.is_file():
        return 0
    found = read_checkpoint(path)
    differ = [words for key, words in _OTHERS.items() if found.identity.get(key) != run.identity[key]]
    if differ:
        raise UsageError(
            f"the checkpoint {path} is of {' and '.join(differ)}. Give what it was made with, another --checkpoint, or "
            "delete it."
        )
    run.done, run.best, run.best_step, run.history = found.step, found.best, found.best_step, found.history
    run.best_weights = found.best_weights
    run.optimizer.load_state_dict(found.optimizer)
    with torch.no_grad():
        for name, master in run.masters.items():
            master.copy_(found.weights[name])
            if name in run.masks:
                master.mul_(run.masks[name])
            run.module.weights[name].copy_(master)
    return run.done
