"""One proof: the models run on the same inputs, and everything that can differ is compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import onnx

from exporter.as_they_are import TOLERANCE, check_read, dense_runs, in_own_numbers, run_dense, tolerance_of
from exporter.errors import GoalError, ModelError
from exporter.finer import in_types_of
from exporter.forced_branches import force, name_of, ways
from exporter.graph import Graph
from exporter.inner_tensors import inner_tensors
from exporter.interface import shrunk
from exporter.masked import hides, masked_original
from exporter.noise import NOISE_FACTOR, rounding_noise
from exporter.normalise import inline_data
from exporter.optimised import Optimised
from exporter.piecewise import prove_pieces
from exporter.plan import Plan
from exporter.proof import Proof
from exporter.proof_inputs import check_ids, known_parts, seeded_runs, seeded_sets
from exporter.relative_difference import Array, difference, fits, is_float, signal, take_axes
from exporter.rounding import code_error, code_tensors, given, hand_over, is_quantized
from exporter.sessions import open_given, open_own, run_own, with_outputs
from runtime import feeds
from runtime.backends import Session, SessionOptions, open_session
from runtime.errors import RunError
from runtime.nouns import counted
from runtime.steps import Count

_STRICTER = 10.0
"""Pieces are held to a tenth of what whole models are: what rounding does to one node is far less."""

Progress = Callable[[str], None]


class Prover:
    """Proves one pair of graphs, whole or in pieces; see ``exporter.verifier``."""

    def __init__(
        self,
        pruned: Graph,
        graph: Graph,
        plan: Plan,
        tolerance: float | None,
        progress: Progress,
        as_they_are: tuple[Graph, Graph] | None = None,
        warnings: Sequence[str] = (),
        deciding: Sequence[str] = (),
    ) -> None:
        self.pruned, self.graph, self.plan, self.progress = pruned, graph, plan, progress
        self.as_they_are = as_they_are  # what the two were made of that are compared
        own = as_they_are[1] if as_they_are else graph
        self.tolerance, self.own_tolerance = (tolerance_of(g) if tolerance is None else tolerance for g in (graph, own))
        self.gone = {name for drop in plan.drop for name in drop.interface}
        self.warnings = [f"gone from the interface: {', '.join(sorted(self.gone))}"] if self.gone else []
        self.warnings += warnings
        self.ids = {
            cut.name: feeds.Constraint(choices=cut.keep) for cut in shrunk(plan, graph) if cut.ids
        }  # the only ids that both models know
        self.codes, self.loose = code_tensors(graph, pruned)
        self.deciding = [name for name in deciding if name not in self.codes]
        self.given = [*self.codes, *self.deciding]
        self.noise: dict[str, float] = {}
        self.apart: dict[str, float] = {}  # deciding tensors that differ by no more than their noise
        self.inner_error = 0.0

    def prove(self, runs: int, recorded: list[feeds.Feeds]) -> Proof:
        """Run the models whole, on recorded inputs or on so many seeded ones."""
        self.progress("running the dense model")
        self._check_signature()
        inner = inner_tensors(self.graph, self.pruned, self.codes)
        dense = open_given(with_outputs(inline_data(self.graph.model, self.graph.folder), inner), "the model")
        names = [o.name for o in dense.outputs if o.name not in inner and o.name not in self.gone]
        sets = self._sets(dense, names, runs, recorded)
        references = [run_dense(dense, f, names) for f in sets]
        scales = {n: signal(v) for n, v in run_dense(dense, sets[0], inner).items()}
        own_pruned, own = self.as_they_are or (self.pruned, self.graph)
        runs_of_own = dense_runs(own, sets, names) if self.as_they_are else list(zip(sets, references, strict=True))
        check_read(own, *runs_of_own[0], self.own_tolerance)
        self.progress("building the masked original")
        more = [*inner, *(n for n in self.given if n not in (*names, *inner))]
        masked = open_own(with_outputs(masked_original(self.graph, self.plan), more), "the masked original")
        known, said = known_parts(sets, masked, self.given, self.graph, self.plan)
        self.warnings += said
        sets, references = [sets[i] for i in known], [references[i] for i in known]
        runs_of_own = [runs_of_own[i] for i in known]
        pruned = plain = open_own(with_outputs(self._own_model(), inner), "the pruned model")
        if self.given:
            fed = self._own_model()
            hand_over(fed, self.given, self.graph)
            pruned = open_own(with_outputs(fed, more), "the pruned model")
        errors, change = dict[str, float](), 0.0
        fine: list[dict[str, Array]] = []
        for number, (feed, reference) in enumerate(zip(sets, references, strict=True), 1):
            self.progress(Count("comparing with the masked original", number - 1, len(sets)))
            asked = list(dict.fromkeys([*names, *self.given, *(inner if number == 1 else ())]))
            want = run_own(masked, feed, "the masked original", asked)
            handed = given({name: self._kept(name, want[name]) for name in self.given})
            got = run_own(pruned, self._kept_feed(feed) | handed, "the pruned model", asked)
            fine.append({name: self._kept(name, want[name]) for name in names})
            if number == 1:
                self._compare_inner(scales, want, got, feed)
            self._compare_given(want, got, feed)
            for name in names:
                scale = signal(reference[name])
                error = difference(got[name], self._kept(name, want[name]), scale)
                errors[name] = max(errors.get(name, 0.0), error)
                change = max(change, difference(got[name], self._kept(name, reference[name]), scale))
                if error > self.tolerance and is_float(reference[name]):
                    self._see_noise(name, error, scale, want, feed)
        worst, pieces = self._judge(sets, {n: e for n, e in errors.items() if is_float(references[0][n])}, errors)
        if change <= self.tolerance and hides(self.plan):
            self.warnings.append("the outputs do not react to the cut on these inputs; only inner tensors prove it")
        self.progress("running the result with default optimisation")
        all_runs = [(f, r, self._kept_feed(f)) for f, r in runs_of_own]
        if self.as_they_are:
            plain = in_own_numbers(own, own_pruned, self.plan, all_runs, fine, self.own_tolerance)
        as_used = Optimised(own, own_pruned, plain, names, self.own_tolerance, is_quantized(own))
        self.warnings += as_used.check(all_runs)
        return Proof(
            worst, errors, self.tolerance, change, len({*inner, *self.given}), len(sets), _shapes(sets),
            tuple(self.warnings), pieces,
        )  # fmt: skip

    def prove_pieces(self, recorded: list[feeds.Feeds], piece_bytes: int) -> Proof:
        """Run the models piece by piece; see ``exporter.piecewise``."""
        self._check_signature()
        check_ids(self.ids, recorded)
        sets = recorded or seeded_sets(self.graph, self.ids)
        found = prove_pieces(
            self.pruned, self.graph, self.plan, sets, self.tolerance, self._difference_at, piece_bytes, self.progress
        )
        ran, said = _shapes(sets), (*self.warnings, *found.warnings)
        return Proof(found.error, found.outputs, self.tolerance, None, found.inner, len(sets), ran, said, found.pieces)

    def _see_noise(self, name: str, error: float, scale: float, want: Mapping[str, Array], feed: feeds.Feeds) -> None:
        """Keep how far rounding moves an output that differs; zero where that explains no such difference."""
        self.progress("measuring rounding noise")
        noise = rounding_noise(self.graph, self.plan, self.given, {name: scale}, want, feed)[name]
        before = self.noise.get(name, noise)
        self.noise[name] = max(noise, before) if before and error <= NOISE_FACTOR * noise < math.inf else 0.0

    def _judge(
        self, sets: Sequence[feeds.Feeds], exact: Mapping[str, float], errors: dict[str, float]
    ) -> tuple[float, int]:
        """Largest error that counts, and in how many pieces the models ran.

        Whole numbers (a class, an index) flip on differences far below the tolerance: what they come from counts. Nor
        do outputs count that differ by no more than what rounding does to them. As this alone would let errors of that
        size pass, the model is then proved piece by piece: no piece gets what those before it rounded.
        """
        by_way = self._compare_ways(sets[0], list(errors))
        worst = max([self.inner_error, *by_way.values(), *(e for n, e in exact.items() if not self.noise.get(n))])
        if worst > self.tolerance:
            raise GoalError(self._failure({n: max(e, by_way.get(n, 0.0)) for n, e in exact.items()}))
        pieces = 1
        if any(self.noise.values()):
            tolerance = min(self.tolerance, TOLERANCE) / _STRICTER
            told = partial(self._difference_at, accepted=tolerance)
            try:
                found = prove_pieces(self.pruned, self.graph, self.plan, sets, tolerance, told, 1, self.progress)
            except ModelError as error:  # it does not go in pieces
                raise GoalError(self._failure(exact)) from error
            worst, pieces, apart = max(worst, found.error), found.pieces, {**self.apart, **exact}
            self.warnings += [
                f"{'output' if name in exact else 'tensor'} '{name}' differs by {apart[name]:.2g} in 32 bits, and by "
                f"{noise:.2g} when weights and inputs are rounded otherwise; so it was proved in "
                f"{counted(pieces, 'piece')}, each given what the original has before it"
                for name, noise in self.noise.items()
            ]
        errors |= {n: max(errors[n], e) for n, e in by_way.items()}
        return worst, pieces

    def _sets(self, dense: Session, names: Sequence[str], runs: int, recorded: list[feeds.Feeds]) -> list[feeds.Feeds]:
        check_ids(self.ids, recorded)
        sets = [in_types_of(dense.inputs, feed) for feed in recorded]
        return sets or list(seeded_runs(self.graph, dense, names, runs, self.ids))

    def _own_model(self) -> onnx.ModelProto:
        return inline_data(self.pruned.model, self.pruned.folder)

    def _kept(self, name: str, values: Array) -> Array:
        """The part of a tensor of the dense graph that the pruned one has."""
        return take_axes(values, self.plan.hide.get(name, {}))

    def _fits(self, name: str, values: Array) -> bool:
        return fits(values, self.plan.hide.get(name, {}))

    def _kept_feed(self, feed: feeds.Feeds) -> feeds.Feeds:
        """Inputs of the pruned model: of an axis that shrank, the kept part; none that went with a block."""
        return {name: self._kept(name, values) for name, values in feed.items() if name not in self.gone}

    # -- the other checks ---------------------------------------------------------------------------------------

    def _check_signature(self) -> None:
        """Inputs and outputs keep their names and types; those that go with a block are gone."""

        def signature(graph: Graph) -> list[tuple[str, int]]:
            values = [v for v in graph.model.graph.input if v.name in graph.inputs] + list(graph.model.graph.output)
            return [(v.name, v.type.tensor_type.elem_type) for v in values]

        before, after = [v for v in signature(self.graph) if v[0] not in self.gone], signature(self.pruned)
        if before != after:
            raise GoalError(f"the pruned model's inputs and outputs are {after}, the original's {before}.")

    def _compare_ways(self, feed: feeds.Feeds, names: Sequence[str]) -> dict[str, float]:
        """Compare every branch and body, wherever the inputs lead; those that do not run are named."""
        errors: dict[str, float] = {}
        found = ways(self.graph)
        if not found:
            return errors
        self.progress(f"comparing {counted(len(found), 'way')} through the branches")
        dense = inline_data(self.graph.model, self.graph.folder)
        masked = masked_original(self.graph, self.plan)
        pruned = inline_data(self.pruned.model, self.pruned.folder)
        missed = []
        plain = SessionOptions(optimize=False)
        for way in found:
            where = name_of(self.graph, way)
            for short in (True, False):
                try:
                    reference = open_session(force(dense, way, short), options=plain).run(feed, names)
                    break
                except RunError:
                    continue
            else:
                missed.append(where)
                continue
            want = run_own(open_own(force(masked, way, short), f"the masked original, {where},"), feed, where, names)
            own = open_own(force(pruned, way, short), f"the pruned model, {where},")
            got = run_own(own, self._kept_feed(feed), f"the pruned model, {where},", names)
            for name in (n for n in names if is_float(reference[n])):
                error = difference(got[name], self._kept(name, want[name]), signal(reference[name]))
                errors[name] = max(errors.get(name, 0.0), error)
        if missed:
            self.warnings.append(f"not proved, because inputs of these sizes do not run there: {', '.join(missed)}")
        return errors

    # -- inside -------------------------------------------------------------------------------------------------

    def _compare_inner(
        self, scales: Mapping[str, float], want: Mapping[str, Array], got: Mapping[str, Array], feed: feeds.Feeds
    ) -> None:
        """Compare inner tensors in the order of the graph: the first that differs is where the cut went wrong.

        What rounded weights explain is no difference; what it takes rounded inputs to explain, the pieces decide.
        """
        noise: dict[str, float] | None = None
        for name, scale in scales.items():
            if not self._fits(name, want[name]):
                continue
            error = difference(got[name], self._kept(name, want[name]), scale)
            if error > self.tolerance:
                if noise is None:
                    self.progress("measuring rounding noise")
                    noise = rounding_noise(self.graph, self.plan, self.given, scales, want, feed, inputs=False)
                if error <= NOISE_FACTOR * noise[name]:
                    continue
                self._see_noise(name, error, scale, want, feed)
                if self.noise[name]:
                    self.apart[name] = error
                    continue
            self.inner_error = max(self.inner_error, error)
            if error > self.tolerance:
                raise GoalError(self._difference_at(name, error))

    def _compare_given(self, want: Mapping[str, Array], got: Mapping[str, Array], feed: feeds.Feeds) -> None:
        """Compare what is handed over, each computed from what is before it as the masked original has that."""
        for name in self.given:
            kept, scale = self._kept(name, want[name]), signal(want[name])
            by_value = name in self.deciding
            error = difference(got[name], kept, scale) if by_value else code_error(got[name], kept, self.tolerance)
            if by_value and error > self.tolerance:
                self._see_noise(name, error, scale, want, feed)
                if self.noise[name]:
                    self.apart[name] = max(error, self.apart.get(name, 0.0))
                    continue
            self.inner_error = max(self.inner_error, error)
            if error > self.tolerance:
                raise GoalError(self._difference_at(name, error))

    def _difference_at(self, name: str, error: float, accepted: float | None = None) -> str:
        node = self.graph.producer[name]
        return (
            f"the pruned model differs from the masked original, first at {node.label}: tensor '{name}', "
            f"relative error {error:.3g} (accepted: {accepted or self.tolerance:g}). Nothing was written.\n"
            f"{self._rounded()}If the plan is Secateur's own this is a defect; keep the layer with --keep "
            f"'{node.proto.name or name}' and report it with the model."
        )

    def _rounded(self) -> str:
        text = f"There was no room to hand over {counted(self.loose, 'tensor')} of codes: try smaller --shape sizes.\n"
        return text if self.loose else ""

    def _failure(self, errors: Mapping[str, float]) -> str:
        name = max(errors, key=errors.__getitem__)
        return (
            f"the pruned model differs from the masked original: output '{name}', relative error {errors[name]:.3g} "
            f"(accepted: {self.tolerance:g}). Nothing was written.\n{self._rounded()}"
            "If the plan is Secateur's own this is a defect; please report it with the model."
        )


def _shapes(sets: Sequence[feeds.Feeds]) -> tuple[Mapping[str, tuple[int, ...]], ...]:
    return tuple({n: v.shape for n, v in f.items()} for f in sets)
