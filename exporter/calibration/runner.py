"""Run a graph piece by piece over calibration inputs, every node once, keeping only what is still to be read."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import cast

import numpy as np
import onnx

from exporter.ahead import TWO, made_ahead
from exporter.calibration.single_products import products_in_single
from exporter.calibration.store import MEMORY, Shelf, Store
from exporter.errors import ModelError
from exporter.external_parts import is_described
from exporter.fed_weights import Room, in_room
from exporter.graph import Graph, Node, bare_model
from exporter.protos import reads
from exporter.sessions import not_calibrated
from exporter.tensors import Array, expect, nbytes, read
from runtime.backends import Session, SessionOptions, open_session
from runtime.errors import RunError
from runtime.samples import Samples

Stretch = tuple[Session, list[str], list[str]]
"""A session of some nodes, and the names of its inputs and outputs."""

Stretches = dict[tuple[tuple[int, ...], tuple[str, ...]], Stretch]
"""By the nodes and outputs."""

_STRETCHES = 8
"""In how many a graph is cut at most."""

LARGE = 1 << 29
"""Bytes of weights beyond which nodes run in portions, each with a session that is closed before the next is opened."""

_PORTION = 1 << 27
"""Bytes of weights of a portion, unless a node alone has more."""

_FEW = 8
"""Batches for which weights are not laid out anew, and large new ones are fed: copies of them would take longer."""

_APART = 1 << 16
"""Bytes of a constant that is fed rather than put into a model."""

_RENEWED = 1 << 28
"""Bytes of new weights that are held in memory."""


class Runner:
    """A graph on its way through the calibration inputs.

    ``advance`` runs the nodes that the named tensors need and that have not run yet. What later nodes read is kept, in
    memory up to ``MEMORY`` and in temporary files beyond; all else is dropped. The weights of a node may be changed
    until it runs.

    Attributes:
        graph: the graph.
        weights: new values of constants, for the nodes that have not run.
        held: tensors to keep once they are there, though nothing reads them any more.
        batches: number of batches.
        counts: samples in each batch.
        rows: number of samples.
    """

    def __init__(self, graph: Graph, samples: Samples, batch: int, memory: int = MEMORY) -> None:
        self.graph = graph
        self.weights = Shelf(_RENEWED)
        self.held: set[str] = set()
        self._waiting = {n.index: n for n in graph.nodes if n.depth == 0 and n.key not in graph.constants}
        self._reads = {i: reads(n.proto) for i, n in self._waiting.items()}
        self._store, self._room = Store(memory), Room()
        self._large = self._size(list(self._waiting.values())) > LARGE
        self.counts = samples.counts(batch)
        for feed in samples.batches(batch):
            for name, values in feed.items():
                self._store.add(name, values)
        self.batches, self.rows = len(self.counts), len(samples)

    def advance(self, names: Sequence[str]) -> None:
        """Run until these tensors are there; they stay until the next call."""
        needed = self._needed(names)
        for node in needed:
            del self._waiting[node.index]
        later = set().union(names, self.held, self.graph.outputs, *(self._reads[i] for i in self._waiting))
        made = {o for node in needed for o in node.outputs if o}
        if needed:
            self._run(needed, sorted(made & later), self.weights, self._store, range(self.batches))
        self._store.keep(later)

    def take(self, other: Runner, names: Mapping[str, Node | None]) -> None:
        """Hold tensors as another runner has them, over the same batches.

        Args:
            other: the other runner.
            names: by name the node that then runs for the one that makes the tensor, None for none.
        """
        for name, instead in names.items():
            index = self.graph.producer[name].index
            del self._waiting[index]
            if instead is not None:
                self._waiting[index], self._reads[index] = instead, reads(instead.proto)
            for values in other.values(name):
                self._store.add(name, values)

    def rewind(self, nodes: Iterable[Node]) -> None:
        """Let nodes run again, whose inputs are still there: their weights have changed."""
        for node in nodes:
            self._waiting[node.index] = node
            self._store.keep(self._store.arrays.keys() - set(node.outputs))

    def values(self, name: str, some: Iterable[int] | None = None) -> Iterator[Array]:
        """A tensor that is there, batch by batch; of some batches alone, where their numbers are given."""
        return (self._store.array(name, b) for b in (range(self.batches) if some is None else some))

    def branch(
        self,
        names: Sequence[str],
        weights: Mapping[str, Array],
        kept: Stretches | None = None,
        count: int | None = None,
    ) -> Iterator[dict[str, Array]]:
        """What these tensors would be if constants had other values, batch by batch; the runner stays where it is.

        Args:
            names: of the tensors.
            weights: the other values.
            kept: what other calls have opened and may be used again; the nodes then run in stretches, and those that
                no other value concerns are put there. What is large is not kept.
            count: how many of the first batches; all by default.
        """
        rest = [n for n in names if n not in self._store.arrays]
        values = ChainMap(cast(MutableMapping[str, Array], weights), self.weights)
        nodes, batches = self._needed(rest), range(self.batches)[:count]
        if self._size(nodes) > LARGE:
            made = Store(MEMORY)
            self._run(nodes, rest, values, made, batches)
            for b in batches:
                yield {n: (made if n in made.arrays else self._store).array(n, b) for n in names}
            return
        stretches = self._stretches(nodes, set(rest), values, {} if kept is None else kept, kept is not None)
        for b in batches:
            found: dict[str, Array] = {}
            for session, inputs, outputs in stretches:
                found |= self._feed(session, inputs, outputs, b, found)
            yield {n: found[n] if n in found else self._store.array(n, b) for n in names}

    def _stretches(
        self, nodes: list[Node], wanted: set[str], weights: Mapping[str, Array], kept: Stretches, several: bool
    ) -> list[Stretch]:
        """Sessions that run some nodes one after another, with what each is fed and gives."""
        length = -(-len(self.graph.nodes) // _STRETCHES) if several else len(self.graph.nodes)
        result: list[Stretch] = []
        for _, part in groupby(reversed(nodes), lambda node: node.index // length):
            run = list(part)[::-1]
            outputs = sorted({o for node in run for o in node.outputs} & wanted)
            read = set().union(*(self._reads[node.index] for node in run))
            wanted = wanted | read
            key = (tuple(node.index for node in run), tuple(outputs))
            changed = bool(read & weights.keys())
            stretch = None if changed else kept.get(key)
            if stretch is None:
                stretch = (*self._session(run, outputs, weights), outputs)
            if not changed:
                kept[key] = stretch
            result.insert(0, stretch)
        return result

    def _needed(self, names: Iterable[str]) -> list[Node]:
        """Waiting nodes that these tensors depend on, in order."""
        wanted = {n for n in names if n not in self._store.arrays}
        needed = []
        for node in sorted(self._waiting.values(), key=lambda n: -n.index):
            if wanted.intersection(node.outputs):
                needed.append(node)
                wanted |= {n for n in self._reads[node.index] if n not in self._store.arrays}
        return needed[::-1]

    def _run(
        self, nodes: list[Node], names: Iterable[str], weights: Mapping[str, Array], store: Store, batches: range
    ) -> None:
        """Run nodes, in portions where they have many weights, and put what these tensors are into a store."""
        portions = self._portions(nodes)
        needed = [set().union(*(self._reads[node.index] for node in part)) for part in portions]
        with ThreadPoolExecutor(1) as reader:
            for k, part in enumerate(portions):
                for following in needed[k + 1 : k + 2]:
                    reader.submit(self._expect, following)
                later = set(names).union(*needed[k + 1 :])
                outputs = sorted({o for node in part for o in node.outputs} & later)
                apart: dict[str, Array] | None = {} if self._large and len(batches) <= _FEW else None
                session, inputs = self._session(part, outputs, weights, apart)
                for b in batches:
                    own = {n: store.array(n, b) for n in inputs if n in store.arrays} | (apart or {})
                    found = self._feed(session, inputs, outputs, b, own)
                    for name in outputs:
                        store.add(name, found[name])
                for name in {o for before in portions[: k + 1] for node in before for o in node.outputs} - later:
                    store.drop(name)

    def _expect(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.graph.constants:
                expect(self.graph.constants[name], self.graph.folder)

    def _portions(self, nodes: list[Node]) -> list[list[Node]]:
        """All nodes, or, where their weights are large, so many at a time that these are not."""
        if self._size(nodes) <= LARGE:
            return [nodes]
        portions: list[list[Node]] = [[]]
        size = 0
        for node in nodes:
            own = self._size([node])
            if portions[-1] and size + own > _PORTION:
                portions.append([])
                size = 0
            portions[-1].append(node)
            size += own
        return portions

    def _size(self, nodes: Sequence[Node]) -> int:
        """Bytes of the weights that nodes read."""
        read = set().union(*(self._reads[node.index] for node in nodes))
        return sum(nbytes(self.graph.constants[name]) for name in read if name in self.graph.constants)

    def _feed(
        self, session: Session, inputs: Sequence[str], names: Sequence[str], b: int, own: Mapping[str, Array]
    ) -> dict[str, Array]:
        try:
            return session.run({n: own[n] if n in own else self._store.array(n, b) for n in inputs}, names)
        except RunError as error:
            raise not_calibrated(error) from error

    def _session(
        self,
        nodes: Sequence[Node],
        outputs: Sequence[str],
        weights: Mapping[str, Array],
        apart: dict[str, Array] | None = None,
    ) -> tuple[Session, list[str]]:
        """A session of some nodes, and the names of its inputs.

        With ``apart``, as ``piece`` has it, the session is for a few runs before the next one is opened.
        """
        model, inputs = piece(self.graph, nodes, outputs, weights, apart)
        if apart is not None:
            taken = products_in_single(model, _APART)
            apart |= in_room(taken, self.graph.folder, self._room)
            inputs += taken
        try:
            folder = self.graph.folder.absolute()
            options = SessionOptions(spinning=False, packing=apart is None, rounding=False, folder=folder)
            return open_session(model.SerializeToString(), options=options), inputs
        except RunError as error:
            raise ModelError(f"a part of the model cannot be run for calibration: {error}") from error


def piece(
    graph: Graph,
    nodes: Sequence[Node],
    outputs: Sequence[str],
    weights: Mapping[str, Array],
    apart: dict[str, Array] | None = None,
) -> tuple[onnx.ModelProto, list[str]]:
    """Some nodes of a graph as a model, and the names of the tensors it is to be fed.

    Args:
        graph: the graph.
        nodes: top-level nodes, in order.
        outputs: tensors to return.
        weights: values of constants that differ from the file's. Others that lie outside are left there.
        apart: gets the large ones of ``weights``, which are then inputs too: no copy of them is made.
    """
    model, before = bare_model(graph, [node.proto for node in nodes], outputs)
    constants = {name: graph.constants[name] for name in before if name in graph.constants}
    new = [name for name, tensor in constants.items() if name in weights or is_described(tensor)]

    def value_of(name: str) -> Array:
        return np.asarray(weights[name] if name in weights else read(constants[name], graph.folder), order="C")

    inputs, as_before = [], constants.keys() - set(new)
    for name, values in made_ahead(new, value_of, 0 if apart is None else TWO):
        if apart is None or values.nbytes < _APART:
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
            continue
        inputs.append(name)
        apart[name] = values
        kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, values.shape))
    for name in before:
        if name in as_before:
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(constants[name])
            tensor.name = name
        elif name not in constants and (of := graph.inferred.type_of(name)) is not None:
            inputs.append(name)
            value = model.graph.input.add(name=name)
            value.type.CopyFrom(of)
            if of.HasField("tensor_type"):
                for dim in value.type.tensor_type.shape.dim:
                    dim.Clear()
                    if (length := graph.fixed_length(name)) is not None:
                        dim.dim_value = length
    return model, inputs
