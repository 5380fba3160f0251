"""Recurrent layers: hidden slots of the input and of the former state read as zero."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from exporter.gates.masker import Masker, gate


@gate("RNN", "GRU", "LSTM")
def _recurrent(masker: Masker, node: gs.Node) -> bool:
    """The state never leaves the node between two steps, so what reads it is hidden: the last axis of R."""
    masker.hide(node, 0, [2])
    masker.hide(node, 2, [2])
    return True
