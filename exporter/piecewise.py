"""Prove a model that is too large to be run whole, piece by piece.

The masked original runs one piece of the graph after another. The same piece of the pruned model is given what the
masked original has there, the kept part of it, and what it makes of that is compared. If every piece follows from what
comes before it, the models are equal by induction, and no difference can fade or grow on the way. Weights are no part
of the models that run: they are mapped from their files and fed, so that one piece at a time is in memory. Models of 16
bits are compared in 32, which is faster and sees more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import ModelProto

from exporter import tensors
from exporter.as_in_file import changed_of, check_nodes_read, nodes_of_file, read_later
from exporter.deciding import chooses
from exporter.errors import GoalError, ModelError
from exporter.excerpts import FLOATS, Excerpt, excerpt, in_32_bits, run_excerpt
from exporter.fed_weights import NARROW, Room
from exporter.few_steps import STATE_SHIFT, few_steps, starts_of
from exporter.forced_branches import first_rounds, ways
from exporter.graph import Graph, Node
from exporter.masked import masked_original
from exporter.noise import NOISE_FACTOR, jittered
from exporter.plan import Plan
from exporter.protos import reads
from exporter.relative_difference import Array, difference, fits, is_float, signal, take_axes
from exporter.removal import stand_ins
from exporter.rounding import is_quantized
from exporter.widened import widened_types
from runtime import feeds
from runtime.steps import Count

PIECE_BYTES = 400_000_000
"""Weights of a piece; a node that reads more is a piece of its own."""
_MOST_EXCUSED = 0.1
"""The largest difference, relative to the signal, that noise excuses of what goes round and cannot be shortened."""

_INNER_ELEMENTS = 1 << 25


@dataclass(frozen=True)
class Found:
    """What a proof by pieces found.

    Attributes:
        outputs: largest error of each graph output, relative to its signal.
        error: largest of all tensors compared.
        inner: number of inner tensors compared, in every run.
        pieces: number of pieces.
        warnings: what the reader should know.
    """

    outputs: dict[str, float]
    error: float
    inner: int
    pieces: int
    warnings: tuple[str, ...]


def prove_pieces(
    pruned: Graph,
    graph: Graph,
    plan: Plan,
    sets: Sequence[feeds.Feeds],
    tolerance: float,
    failure: Callable[[str, float], str],
    piece_bytes: int = PIECE_BYTES,
    progress: Callable[[str], None] = lambda _: None,
) -> Found:
    """Prove a pruned graph, piece by piece.

    Args:
        pruned: as ``rewrite`` returned it.
        graph: the dense graph.
        plan: what was carried out.
        sets: inputs of the dense graph, for each run.
        tolerance: largest accepted difference relative to the signal.
        failure: makes the message for a tensor that differs, and by how much.
        piece_bytes: weights of a piece.
        progress: called with a line before each piece.

    Raises:
        GoalError: a tensor differs.
        ModelError: ONNX Runtime does not run a piece, or the model is quantized.
    """
    if is_quantized(graph):
        raise ModelError("a quantized model as large as this cannot be proved: use --no-verify at your own risk.")
    cuts = pieces(graph, piece_bytes)
    wide, small = (replace(g, inferred=widened_types(g.inferred, NARROW)) for g in (graph, pruned))
    walk = _Walk(wide, small, plan, [{n: in_32_bits(v) for n, v in s.items()} for s in sets])
    file = nodes_of_file(graph)
    changed = [changed_of(wide, nodes, file) if file is not None else [] for nodes in cuts]
    of_file = read_later(wide, cuts, changed, file or {})
    for number, nodes in enumerate(cuts, 1):
        progress(Count("comparing pieces with the masked original", number - 1, len(cuts)))
        later = {n for rest in cuts[number:] for node in rest for n in reads(node.proto)}
        later = later.union(graph.outputs, *of_file[number : number + 1])
        check_nodes_read(wide, walk.values, nodes, changed[number - 1], file or {}, tolerance, walk.room)
        walk.compare(nodes, later, tolerance, failure)
        walk.forget(later)
    missing = [n for n in graph.outputs if n in graph.producer and n in pruned.producer and n not in walk.compared]
    if missing:
        raise GoalError(f"output '{missing[0]}' was not compared; this is a defect of Secateur. Nothing was written.")
    warnings = ["proved in pieces, so not run with ONNX Runtime's default optimisation"]
    if ways(graph):
        warnings.append("not proved: branches and loops that these inputs do not lead into")
    return Found(walk.errors_of, walk.worst, len(walk.compared - set(graph.outputs)), len(cuts), tuple(warnings))


def pieces(graph: Graph, limit: int) -> list[list[Node]]:
    """The nodes of the main graph in runs that read at most so many bytes of constants.

    A node that chooses begins another: it chooses by what the masked original has.
    """
    found: list[list[Node]] = []
    seen: set[str] = set()
    held = limit + 1
    for node in graph.nodes:
        if node.depth or node.key in graph.constants:
            continue
        own = {n for n in reads(node.proto) if n in graph.constants}
        held += sum(tensors.nbytes(graph.constants[n]) for n in own - seen)
        if held > limit or chooses(node, graph):
            found.append([])
            seen, held = set(), sum(tensors.nbytes(graph.constants[n]) for n in own)
        seen |= own
        found[-1].append(node)
    return found


_Run = tuple[ModelProto, Excerpt, list[str], list[dict[str, Array]]]


@dataclass
class _Walk:
    """Both models on their way through the graph.

    Attributes:
        values: for each run, what the masked original has of every tensor that is still to be read.
        last: the piece of the masked original that ran last, its outputs, and what it was given.
        own_last: the same of the pruned model.
        done: keys of the nodes of the pruned graph that have run.
        compared: names of the tensors that were compared.
        errors_of: largest difference of each output.
        worst: the largest that noise does not have to excuse.
        room: where weights are while a piece runs.
    """

    graph: Graph
    small: Graph
    plan: Plan
    values: list[dict[str, Array]]
    last: _Run = field(init=False)
    own_last: _Run = field(init=False)
    done: set[str] = field(default_factory=set)
    compared: set[str] = field(default_factory=set)
    errors_of: dict[str, float] = field(default_factory=dict)
    worst: float = 0.0
    room: Room = field(default_factory=Room)

    def __post_init__(self) -> None:
        self.instead = stand_ins(self.plan.drop)
        self.own: list[dict[str, Array]] = [{} for _ in self.values]  # whole numbers the pruned model made
        self.gone = {name for d in self.plan.drop for name in d.interface}

    def kept(self, name: str, values: Array) -> Array:
        """The part of a tensor of the dense graph that the pruned one has."""
        return take_axes(values, self.plan.hide.get(name, {}))

    def _fits(self, name: str, values: Array) -> bool:
        return fits(values, self.plan.hide.get(name, {}))

    def compare(
        self, nodes: Sequence[Node], later: set[str], tolerance: float, failure: Callable[[str, float], str]
    ) -> None:
        """Compare a piece; node by node, each given what the masked original has, where noise excuses more.

        Raises:
            GoalError: a tensor differs.
        """
        made = self.masked(nodes, later)
        got = self.pruned(made[0])
        found = self.errors(made, got, tolerance, failure)
        excused = {name: error for name, error, counts in found if counts and error > tolerance}
        if excused and len(nodes) > 1:
            for place, node in enumerate(nodes, 1):
                self.compare([node], later.union(*(reads(n.proto) for n in nodes[place:])), tolerance, failure)
            return
        for name, error, counts in found:
            if name in self.graph.outputs:
                self.errors_of[name] = max(self.errors_of.get(name, 0.0), error)
            if counts and name not in excused:
                self.worst = max(self.worst, error)
        if excused and self.compare_shortened(nodes, tolerance, failure) is False:
            name = max(excused, key=excused.__getitem__)
            if excused[name] > _MOST_EXCUSED:
                raise GoalError(failure(name, excused[name]))

    def masked(self, nodes: Sequence[Node], later: set[str]) -> list[dict[str, Array]]:
        """Run a piece of the masked original; what it makes, for each run."""
        made = [o for node in nodes for o in node.outputs if o]
        names = [n for n in made if n in later]
        budget = _INNER_ELEMENTS
        for name in made:
            shape = self.graph.shape(name)
            if shape is None or self.graph.inferred.dtype.get(name) not in FLOATS or name in later:
                continue
            budget -= math.prod(shape)
            if budget >= 0:
                names.append(name)
        part = excerpt(self.graph, [n.proto for n in nodes], names, self.values[0])
        model = masked_original(replace(self.graph, model=part.model), self.plan)
        self.last = model, part, names, [{n: v[n] for n in part.inputs} for v in self.values]
        results = run_excerpt(*self.last, "the masked original", self.room)
        for values, found in zip(self.values, results, strict=True):
            values.update(found)
        return results

    def pruned(self, made: Iterable[str]) -> list[dict[str, Array]]:
        """Run the same piece of the pruned model on what the masked original had before it."""
        names = [n for n in made if n in self.small.producer and n not in self.gone]
        if not names:
            return [{} for _ in self.values]
        fresh = set(made)
        before = [
            {
                self.instead.get(n, n): self.kept(n, v)
                for n, v in values.items()
                if n not in fresh and self._handed(n, v)
            }
            | own
            for values, own in zip(self.values, self.own, strict=True)
        ]
        nodes = _needed(self.small, names, before[0])
        part = excerpt(self.small, [n.proto for n in nodes], names, before[0])
        self.done.update(n.key for n in nodes)
        self.compared.update(names)
        self.own_last = part.model, part, names, before
        results = run_excerpt(*self.own_last, "the pruned model", self.room)
        for values, own, found in zip(self.values, self.own, results, strict=True):
            own.update({n: v for n, v in found.items() if not self._handed(n, values[n])})
        return results

    def _handed(self, name: str, values: Array) -> bool:
        """Whether a tensor is the masked original's. The pruned model makes whole numbers itself, since they may be
        sizes, and what is cut nobody knows where at these sizes."""
        return (is_float(values) and self._fits(name, values)) or name not in self.small.producer

    def errors(
        self,
        made: Sequence[Mapping[str, Array]],
        got: Sequence[Mapping[str, Array]],
        tolerance: float,
        failure: Callable[[str, float], str],
        model: ModelProto | None = None,
    ) -> list[tuple[str, float, bool]]:
        """How far the tensors of the last piece are apart, for each run, and whether that counts.

        Of whole numbers what they are computed from decides. What is further apart than is accepted, noise excuses.

        Args:
            made: what the masked original has.
            got: what the pruned model has.
            tolerance: largest accepted difference.
            failure: makes the message for a tensor that differs.
            model: what made it, if not the piece itself.

        Raises:
            GoalError: a tensor differs, and noise does not excuse it.
        """
        noise: list[dict[str, float]] | None = None
        found = []
        for run, (want, have) in enumerate(zip(made, got, strict=True)):
            for name, values in have.items():
                if not self._fits(name, want[name]):
                    continue
                counts = is_float(want[name])
                error = difference(values, self.kept(name, want[name]), signal(want[name]))
                found.append((name, error, counts))
                if counts and error > tolerance:
                    noise = self.noise(made, model) if noise is None else noise
                    if not error <= NOISE_FACTOR * noise[run][name] < math.inf:
                        raise GoalError(failure(name, error))
        return found

    def noise(self, made: Sequence[Mapping[str, Array]], model: ModelProto | None = None) -> list[dict[str, float]]:
        """How far each tensor of the last piece moves, for each run, when what comes in is rounded otherwise.

        What sums over large terms, or is large itself, moves by more than the tolerance; nothing finer can be told.

        Args:
            made: what the piece makes.
            model: another model of the piece.
        """
        own, part, _, before = self.last
        names = list(made[0])
        rng = np.random.default_rng(0)
        moved = [{name: jittered(values, rng) for name, values in each.items()} for each in before]
        other = run_excerpt(model or own, part, names, moved, "the masked original", self.room)
        return [
            {name: difference(have[name], want[name], signal(want[name])) for name in names if is_float(want[name])}
            for have, want in zip(other, made, strict=True)
        ]

    def compare_shortened(
        self, nodes: Sequence[Node], tolerance: float, failure: Callable[[str, float], str]
    ) -> bool | None:
        """Compare the last piece where what goes round in it ends soon, and noise excuses more of them.

        Returns:
            Whether there was something that goes round.

        Raises:
            GoalError: a tensor differs.
        """
        done: bool | None = None
        starts = starts_of([n.proto for n in nodes], self.graph.opsets.get("", 0), self._known)
        for dense, pruned in zip(self._short(self.last, starts), self._short(self.own_last, starts), strict=True):
            names = [n for n in dense[1] if n in pruned[1]] if dense and pruned else []
            if not (dense and pruned and names):
                continue
            done = done or False
            try:
                made = run_excerpt(dense[0], self.last[1], names, self.last[3], "the masked original", self.room)
            except ModelError:  # what lies behind it in a branch is for sequences of one length
                continue
            got = run_excerpt(pruned[0], self.own_last[1], names, self.own_last[3], "the pruned model", self.room)
            self.errors(made, got, tolerance, failure, dense[0])
            done = True
        return done

    def _known(self, name: str) -> Array | None:
        found = self.last[3][0].get(name)
        return self.graph.array(name) if found is None and name in self.graph.constants else found

    def _short(self, run: _Run, starts: Mapping[str, int]) -> list[tuple[ModelProto, list[str]] | None]:
        """A piece with Loops of few rounds, and with sequences of few steps, and what each gives."""
        loops = first_rounds(run[0], STATE_SHIFT)
        return [(loops, run[2]) if loops is not None else None, few_steps(run[0], starts)]

    def forget(self, later: set[str]) -> None:
        """Drop what nobody reads any more."""
        waiting = {n for node in self.small.nodes if node.key not in self.done for n in node.inputs}
        for values in (*self.values, *self.own):
            for name in [n for n in values if n not in later and self.instead.get(n, n) not in waiting]:
                del values[name]


def _needed(graph: Graph, names: Sequence[str], known: Mapping[str, Array]) -> list[Node]:
    """Nodes that lead from known tensors to some others, in order."""
    wanted, found = list(names), {}
    while wanted:
        name = wanted.pop()
        node = graph.producer.get(name)
        if node is None or node.index in found or name in graph.constants or (name in known and name not in names):
            continue
        found[node.index] = node
        wanted.extend(reads(node.proto))
    return [found[i] for i in sorted(found)]
