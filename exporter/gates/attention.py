"""Attention as one operator: hidden head dimensions add nothing to the scores."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from exporter.gates.masker import Masker, gate


@gate("Attention")
def _attention(masker: Masker, node: gs.Node) -> bool:
    """A hidden dimension of Q is multiplied with the same one of K and of its past; heads do not mix."""
    masker.hide(node, 0, [-1])
    return True


@gate("LinearAttention")
def _linear_attention(masker: Masker, node: gs.Node) -> bool:
    """A hidden dimension of the keys must not show in what the state already holds for a key, nor in the result."""
    masker.hide(node, 0, [-1])
    masker.hide(node, 1, [-1])
    return True
