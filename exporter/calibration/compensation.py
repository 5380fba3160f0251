"""Compensation: change the weights that stay so that the layers' outputs stay, layer after layer.

Each reader of what changed is fitted anew, in the order of the graph: least squares on calibration inputs, with the
pruned network's own activations as inputs and the original network's output as the target, less what the pruned
shortcut brings, so that errors do not add up from layer to layer (He et al., "Channel pruning for accelerating very
deep neural networks", ICCV 2017). No labels and no gradients.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from exporter.calibration.branches import along
from exporter.calibration.cache import Cache
from exporter.calibration.choices import choose_alike
from exporter.calibration.fit import Fit, Refit
from exporter.calibration.fit_journal import fit_journal
from exporter.calibration.moments import Moments
from exporter.calibration.pairs import find_pairs
from exporter.calibration.readers import find_readers
from exporter.calibration.renewed import with_values
from exporter.calibration.runner import Runner
from exporter.calibration.targets import find_target
from exporter.calibration.threads import threads_for
from exporter.graph import Graph
from exporter.plan import Plan
from exporter.protos import reads
from runtime.samples import Samples
from runtime.steps import Count


def compensate(
    pruned: Graph,
    graph: Graph,
    plan: Plan,
    samples: Samples,
    batch: int,
    step: Callable[[str], None] = lambda _: None,
    *,
    quick: bool = False,
    cache: Cache | None = None,
) -> tuple[Graph, list[Refit]]:
    """Fit the weights that stay to calibration inputs.

    A refit that does not help on the held-out eighth of the samples is not applied.

    Args:
        pruned: as ``rewrite`` returned it.
        graph: the dense graph.
        plan: what was carried out.
        samples: calibration inputs of the dense graph.
        batch: samples in one run.
        step: called with a line before each layer.
        quick: each layer once, alone and to fewer rows: good enough to compare plans by.
        cache: where layers are kept as they are fitted, for the next run to go on if this one is killed.

    Returns:
        The pruned graph with new weights, and what became of each reader.

    Raises:
        ModelError: a model does not run on the samples.
    """
    whole = pruned
    pruned, graph = along((pruned, graph), samples, batch)
    own, dense = Runner(pruned, samples, batch), Runner(graph, samples, batch)
    choose_alike(own, graph, samples, batch)
    touched = _touched(pruned, plan)
    readers = find_readers(pruned)
    todo = [r for r in readers if r.source in touched]
    later = {r.weight for r in todo}
    pairs = find_pairs(pruned, readers) if not quick else {}
    second_of = {first.weight: p.second.weight for p in pairs.values() for first in p.firsts}
    journal = fit_journal(cache, pruned, graph, plan, samples, batch)
    known: dict[str, Moments] = {}
    refits = []
    for i, reader in enumerate(todo, 1):
        note = f"{journal.reused} from an interrupted run" if journal.reused else ""
        step(Count("fitting the layers that stay", i - 1, len(todo), note=note))
        target = find_target(pruned, graph, reader, later)
        later.discard(reader.weight)
        dense.advance([target.tensor])
        pair = pairs.get(reader.weight)
        waiting = [p for p in pairs.values() if p.second.weight in later | {reader.weight}]
        own.held = {first.source for p in waiting for first in p.firsts}
        own.advance([reader.source, *([target.other] if target.other else [])])
        fit = Fit(reader, target, own, dense, plan, quick)
        firsts = [known.pop(first.weight, None) for first in pair.firsts] if pair is not None else []
        second = second_of.get(reader.weight)
        with threads_for(fit.present.shape[1]):
            found = journal.known(reader.weight)
            if found is None:
                started = time.perf_counter()
                found = fit.fitted(pair, firsts)
                journal.keep(reader.weight, found, time.perf_counter() - started)
            else:
                own.weights |= found.alone
                if second is not None and not journal.ahead(second):
                    fit.see()
            if second is not None:
                known[reader.weight] = fit.moments
        refits.append(Refit(reader.weight, found.before, found.after, found.damping))
        if pair is not None and found.together:
            own.weights |= found.together
            own.rewind(pair.again)
    return with_values(whole, own.weights), refits


def _touched(graph: Graph, plan: Plan) -> set[str]:
    """Tensors of the pruned graph that do not hold what they held."""
    found: set[str] = set(plan.hide)
    for node in graph.nodes:
        if found & reads(node.proto):
            found.update(o for o in node.outputs if o)
    return found
