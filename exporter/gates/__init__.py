"""The table of the masked original: what a hidden slot must look like to each operator that sums or normalises.

    sums (Conv, Gemm, MatMul, Einsum, ReduceSum, ...)   hidden slots read as zero, or the neutral element
    means                                               the same, and divided by the number of slots that stay
    LayerNormalization and the like                     statistics over the slots that stay

Nothing else changes: values in hidden slots are whatever they are, because nobody reads them. The table knows nothing
of ``exporter.rules``, nor they of it.
"""

from exporter.gates import contraction, normalisation, reduction  # noqa: F401  (each module registers its gates)
from exporter.gates.masker import GATES, Gate, Masker, gate

__all__ = ["GATES", "Gate", "Masker", "gate"]
