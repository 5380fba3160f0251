"""The table of the masked original: what a hidden slot must look like to each operator that sums or normalises.

    sums (Conv, Gemm, MatMul, Einsum, ReduceSum, ...)   hidden slots read as zero, or the neutral element
    recurrent layers                                    the same, for the input and the former state
    means                                               the same, and divided by the number of slots that stay
    LayerNormalization and the like                     statistics over the slots that stay
    Softmax, TopK                                       hidden slots lose against all others: minus infinity

Nothing else changes: values in hidden slots are whatever they are, because nobody reads them. The table knows nothing
of ``exporter.rules``, nor they of it.
"""

from exporter.gates import (  # noqa: F401  (each module registers its gates)
    attention,
    contraction,
    contrib,
    normalisation,
    recurrent,
    reduction,
    selection,
)
from exporter.gates.masker import GATES, Gate, Masker, gate

__all__ = ["GATES", "Gate", "Masker", "gate"]
