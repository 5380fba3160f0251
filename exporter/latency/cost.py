"""What a pruned graph costs in seconds: times of its kernels, measured on the device, as a function of widths.

Each kernel takes ``fixed + variable * (share of its work that is left)``. Its work is its multiply-accumulates, or for
a kernel without any the elements it makes, with every width rounded up to the blocks the device computes in. The two
parts come from measurements: of the dense model, and then of each pruned one that was tried.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.cost import CostArrays, CostModel, Keep, Terms
from exporter.groups import Groups
from exporter.slots import Fixed
from runtime.profiling import NodeTime, Profile
from runtime.staircase import Staircase

_FIXED_SECONDS = 1.5e-6
"""What starting a kernel takes, until a second measurement tells."""
_APART = 0.05
"""How far two measurements' shares of work must be apart to tell the fixed part from the variable one."""
_FEWEST = 4
_MOST_REST = 0.3


@dataclass(frozen=True, eq=False)
class KernelArrays:
    """The table as arrays: seconds are those outside kernels, and of each the fixed and the variable ones by its work.

    Attributes:
        terms: work, as sums of factors times products of axis sizes.
        owner: (terms,), the kernel a term belongs to.
        blocked: (terms,), whether its axes count in whole blocks.
        block: size of these blocks.
        work: (kernels,), of the dense model, in blocks.
        fixed, variable: (kernels,), seconds; zero for kernels that are gone.
        rest: seconds outside the kernels.
    """

    terms: CostArrays
    owner: NDArray[np.int64]
    blocked: NDArray[np.bool_]
    block: int
    work: NDArray[np.float64]
    fixed: NDArray[np.float64]
    variable: NDArray[np.float64]
    rest: float


class LatencyCost(CostModel):
    """Seconds of one run for any choice of widths. ``macs`` gives seconds, so it takes the place of a ``CostModel``.

    Args:
        groups: the analysis of a graph.
        dense: what its kernels take.
        stairs: the widths that the device likes.
        least: multiples that it computes without padding in any case.
        whole: seconds of what a budget is a share of, where this graph is another one without some of its blocks.
    """

    def __init__(
        self, groups: Groups, dense: Profile, stairs: Staircase, least: int = _FEWEST, whole: float | None = None
    ) -> None:
        super().__init__(groups)
        conv = max(stairs.step("Conv"), stairs.step("depthwise Conv"), least)
        self.steps = (conv, max(stairs.step("MatMul"), least))
        self._kernels = [n for n in dense.nodes if not n.reorder]
        terms = [(k, term) for k, node in enumerate(self._kernels) for term in self._terms_of(node)]
        self._owner = np.array([k for k, _ in terms], np.int64)
        self._kernel_terms = Terms([term for _, term in terms])
        self._block = np.array([conv if "Conv" in n.op else 1 for n in self._kernels], np.float64)
        self._index()
        self._dense_work = self._kernel_work(self.widths)
        self._seconds = np.array([n.seconds for n in self._kernels])
        working = {w.node for w in groups.analysis.work}
        self._hearts = [frozenset(n.keys) & working or frozenset(n.keys) for n in self._kernels]
        self._there = np.ones(len(self._kernels), bool)
        self._fixed = np.minimum(self._seconds / 2, _FIXED_SECONDS)
        total = float(self._seconds.sum())
        self._rest = min(max(dense.busy - total, 0.0), _MOST_REST * total)  # waiting for the processor is not of it
        """Seconds outside these kernels: changes of layout, and the backend's own."""
        self.whole = whole if whole is not None else self.macs(self.widths)

    def without(self, gone: Collection[str]) -> LatencyCost:
        """The same without some nodes, named by their first outputs. It learns with this one, and this one with it.

        A kernel goes with the nodes of it that multiply, or with all of them where none does.
        """
        if not gone:
            return self
        names = frozenset(gone)
        found = copy(self)
        found._there = self._there & np.array([not (heart and heart <= names) for heart in self._hearts], bool)
        found._rest = self._rest * found._there.sum() / max(self._there.sum(), 1)
        return found

    def macs(self, keep: Sequence[int] | Keep) -> float:
        """Seconds of one run when group ``g`` keeps ``keep[g]`` units."""
        left = self._share(keep)
        times = self._fixed + (self._seconds - self._fixed) * left
        return float(times[self._there].sum()) + self._rest

    def kernel_arrays(self) -> KernelArrays:
        """The table as arrays, for those who compute with it in another way."""
        there = self._there.astype(np.float64)
        return KernelArrays(
            self.arrays_of(self._kernel_terms), self._owner, self._block[self._owner] > 1, self.steps[0],
            self._dense_work, self._fixed * there, (self._seconds - self._fixed) * there, self._rest,
        )  # fmt: skip

    def terms(self, kind: str) -> Terms | None:
        """None for ``macs``: seconds are no sum of products of axis sizes."""
        return None if kind == "macs" else super().terms(kind)

    def observe(self, keep: Sequence[int] | Keep, measured: Profile) -> None:
        """Learn from a pruned model: what of each kernel's time does not go with its work."""
        times = {key: node.seconds for node in measured.nodes for key in node.keys}
        left = self._share(keep)
        for k, node in enumerate(self._kernels):
            found = next((times[key] for key in reversed(node.keys) if key in times), None)
            if not self._there[k] or found is None or left[k] > 1 - _APART:
                continue
            variable = (self._seconds[k] - found) / (1 - left[k])
            self._fixed[k] = float(np.clip(self._seconds[k] - variable, 0.0, self._seconds[k]))

    def _share(self, keep: Sequence[int] | Keep) -> NDArray[np.float64]:
        work = self._kernel_work(keep)
        return np.divide(work, self._dense_work, out=np.ones_like(work), where=self._dense_work > 0)

    def _kernel_work(self, keep: Sequence[int] | Keep) -> NDArray[np.float64]:
        """Work of every kernel, shape (kernels,): in blocks for those that compute in blocks."""
        sizes = self.axis_sizes(keep)
        plain = self._kernel_terms.each(sizes)
        blocked = self._kernel_terms.each(np.ceil(sizes / self.steps[0] - 1e-9) * self.steps[0])
        chosen = np.where(self._block[self._owner] > 1, blocked, plain)
        return np.bincount(self._owner, chosen, minlength=len(self._kernels)).astype(np.float64)

    def _terms_of(self, node: NodeTime) -> list[tuple[float, list[int]]]:
        """Factors and axes whose products add up to the work of a kernel; none where nothing of it can be cut."""
        keys = set(node.keys)
        work = [w for w in self.groups.analysis.work if w.node in keys]
        if work:
            return [(float(w.factor), [self._axis(a) for a in w.axes]) for w in work]
        axes = next((a for key in reversed(node.keys) if (a := self.groups.analysis.axes.get((key,)))), None)
        if axes is None:
            return []
        fixed = float(np.prod([a.size for a in axes if isinstance(a, Fixed)], dtype=np.float64))
        return [(fixed, [self._axis(a) for a in axes if not isinstance(a, Fixed)])]
