"""What advice rests on: the analysis of a model, what its file holds, and where its time goes on a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import TensorProto

from exporter.blocks import Blocks, find_blocks
from exporter.calibration.damages import Damage, damages
from exporter.calibration.data import calibration_of
from exporter.cost import CostModel
from exporter.errors import GoalError, UsageError
from exporter.graph import Graph
from exporter.groups import Groups, find_groups
from exporter.importance import score
from exporter.model_file import load
from exporter.plan import Plan
from exporter.planner import make_plan
from exporter.pruner import Totals, totals
from exporter.quantization.layers import LAYERS, PRODUCTS, QUANTIZED, RECURRENT
from exporter.report import prunable_parameters
from exporter.sparsity.choice import choose_weights
from exporter.sparsity.layers import benefit
from exporter.sparsity.patterns import parse_pattern
from runtime.backends import SessionOptions, available
from runtime.backends.ort import PROVIDERS
from runtime.errors import BackendMissing, RunError
from runtime.profiling import Profile, profile
from runtime.roofline import Peaks, held_back, peaks
from runtime.runners import Asked

_CODES = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4)
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_SAMPLES = 64
_MOST_WORK = 2e10
"""Multiply-accumulates that a look at the damage may take: inputs times groups times those of the model."""


@dataclass(frozen=True)
class Timing:
    """Where a model's time goes.

    Attributes:
        profile: the kernels.
        shares: of the kernels' time, by what holds them back, as ``runtime.roofline.bottleneck`` calls it.
        working: share of the time in kernels that multiply and accumulate.
        products: share in those that multiply matrices.
    """

    profile: Profile
    shares: Mapping[str, float]
    working: float
    products: float


@dataclass(frozen=True)
class Facts:
    """What is known of a model on a device.

    Attributes:
        path: the file.
        graph, groups, blocks, before: its analysis.
        prunable: parameters in some unit.
        cut: a plan for half of the multiply-accumulates, or of the units where that is out of reach; None where there
            is no group.
        budget: the option of ``prune`` that asks for it.
        left: share of the multiply-accumulates that ``cut`` leaves.
        weights: weights of layers; those among them that can be 2:4; those where sparse kernels may gain.
        embedded: share of the parameters in tables that rows are looked up in.
        layers: layers with a 32-bit weight that ``quantize`` takes.
        matrices: share of their weights that is in products of matrices, which compute on integers without data too.
        recurrent: recurrent layers.
        codes, halves: share of the parameters in 8 bits or fewer, and in 16.
        quantized: whether nodes compute with codes.
        device: the backend.
        missing: why it cannot be used here; "" where it can.
        timing: where the time goes; None where it was not measured,
        unmeasured: and why.
        calib: what was given as data; None without.
        damage: predicted damage of halving each group alone; None where it was not looked at,
        unlooked: and why.
        shapes: ``--shape`` as it was given.
    """

    path: Path
    graph: Graph
    groups: Groups
    blocks: Blocks
    before: Totals
    prunable: int
    cut: Plan | None
    budget: str
    left: float
    weights: tuple[int, int, int]
    embedded: float
    layers: int
    matrices: float
    recurrent: int
    codes: float
    halves: float
    quantized: bool
    device: str
    missing: str
    timing: Timing | None
    unmeasured: str
    calib: str | None
    damage: Sequence[Damage] | None
    unlooked: str
    shapes: Sequence[str]

    def share(self, *kinds: str) -> float:
        """Share of the measured time that these bottlenecks hold; 0 where nothing was measured."""
        return sum(self.timing.shares.get(k, 0.0) for k in kinds) if self.timing is not None else 0.0


def gather(
    path: Path,
    *,
    device: str = "ort-cpu",
    threads: int = 1,
    calib: str | None = None,
    measure: bool = True,
    seconds: float = 3.0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    given: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Facts:
    """Find out what advice rests on.

    Args:
        path: the file.
        device: a name in ``runtime.backends.BACKENDS``; one that is not usable here is judged without measuring.
        threads: inside one operator, for the measurement.
        calib: inputs, as ``prune --calib`` takes them.
        measure: profile the model.
        seconds: most time for the runs of that.
        shapes: of inputs with dynamic axes.
        given: the same as it was typed, for the commands.
        progress: called with a line before each step.

    Raises:
        BackendMissing: there is no backend of that name.
        ModelError, UsageError: the model or the data cannot be read.
    """
    step = progress or (lambda _: None)
    backends = available()
    if device not in backends:
        raise BackendMissing(f"there is no backend '{device}'. Choose from: {', '.join(sorted(backends))}.")
    missing = backends[device].missing
    step("reading and analysing the model")
    graph = load(path, shapes)
    groups = find_groups(graph)
    blocks = find_blocks(groups)
    before = totals(graph, groups)
    step("choosing units for half of the work")
    cut, budget, left = _cut(groups)
    taken, other = choose_weights(graph, parse_pattern("2:4"))
    everything = [*taken, *(x.weight for x in other)]
    floats = [w for w in everything if w.dtype == TensorProto.FLOAT and w.uses[0].node.op in LAYERS]
    operators = {node.op for node in graph.nodes}
    sizes = _sizes(graph)
    total = max(sum(sizes.values()), 1)
    timing, unmeasured = _timed(path, device, missing, threads, measure, seconds, shapes, step)
    damage, unlooked = _damage(groups, before, calib, step)
    return Facts(
        path,
        graph,
        groups,
        blocks,
        before,
        prunable_parameters(groups),
        cut,
        budget,
        left,
        (
            sum(w.size for w in everything),
            sum(w.size for w in taken),
            sum(w.size for w in taken if benefit(w) == "likely"),
        ),
        _embedded(graph, sizes, total),
        len(floats),
        sum(w.size for w in floats if w.uses[0].node.op in PRODUCTS) / max(sum(w.size for w in floats), 1),
        sum(1 for node in graph.nodes if node.op in RECURRENT),
        sum(n for name, n in sizes.items() if graph.constants[name].data_type in _CODES) / total,
        sum(n for name, n in sizes.items() if graph.constants[name].data_type in _HALVES) / total,
        bool(operators & set(QUANTIZED)),
        device,
        missing,
        timing,
        unmeasured,
        calib,
        damage,
        unlooked,
        given,
    )


def _cut(groups: Groups) -> tuple[Plan | None, str, float]:
    """What is left at half of the work, by magnitude; at half of the units where that is out of reach."""
    if not len(groups):
        return None, "", 1.0
    scores = score(groups, by="l2")
    model = CostModel(groups)
    plan, budget = None, "--macs 0.5"
    try:
        plan = make_plan(groups, scores, macs=0.5)
    except (GoalError, UsageError):
        budget = "--ratio 0.5"
        try:
            plan = make_plan(groups, scores, ratio=0.5)
        except (GoalError, UsageError):
            return None, "", 1.0
    widths = {g.name: len(g.keep) for g in plan.groups}
    left = model.macs([widths[g.name] for g in groups]) / max(model.macs(model.widths), 1.0)
    return plan, budget, left


def _sizes(graph: Graph) -> dict[str, int]:
    """Elements of every constant that was trained."""
    return {name: math.prod(graph.constants[name].dims) for name in graph.trained}


def _embedded(graph: Graph, sizes: Mapping[str, int], total: int) -> float:
    """Share of the parameters in matrices that rows are selected from by data."""
    tables = {
        node.inputs[0]
        for node in graph.nodes
        if node.op == "Gather" and node.inputs[0] in graph.trained and node.inputs[1] not in graph.constants
    }
    return sum(sizes[name] for name in tables) / total


def _timed(
    path: Path,
    device: str,
    missing: str,
    threads: int,
    measure: bool,
    seconds: float,
    shapes: Mapping[str, tuple[int, ...]] | None,
    step: Callable[[str], None],
) -> tuple[Timing | None, str]:
    if not measure:
        return None, "--no-measure"
    if missing:
        return None, f"{device} cannot be used here: {missing}"
    if device not in PROVIDERS:
        return None, f"kernels are timed through ONNX Runtime, not {device}"
    try:
        found = profile(
            path, Asked(device, SessionOptions(threads=threads), shapes or {}), seconds=seconds, progress=step
        )
    except RunError as error:
        return None, f"it does not run here: {str(error).splitlines()[0]}"
    step("measuring what this machine does at its best")
    return _timing(found, peaks(device, threads)), ""


def _timing(found: Profile, machine: Peaks) -> Timing:
    total = found.kernels or 1.0
    shares = {kind: seconds / total for kind, seconds in held_back(found.nodes, machine).items()}
    working = sum(n.seconds for n in found.nodes if n.macs) / total
    products = sum(n.seconds for n in found.nodes if n.macs and set(PRODUCTS) & set(n.op.split("+"))) / total
    return Timing(found, shares, working, products)


def _damage(
    groups: Groups, before: Totals, calib: str | None, step: Callable[[str], None]
) -> tuple[Sequence[Damage] | None, str]:
    if calib is None:
        return None, "there are no data"
    calibration = calibration_of(calib, groups.graph, limit=_SAMPLES)
    work = (before.macs or 0) * len(calibration.fit) * max(len(groups), 1)
    if not len(groups):
        return None, "there is nothing to cut"
    if work > _MOST_WORK:
        return None, "it would take long for a model of this size"
    return damages(groups, calibration, shares=(0.5,), step=step), ""
