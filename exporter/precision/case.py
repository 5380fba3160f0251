"""One conversion: a model made for a choice of nodes, and how far its outputs are from the original's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
from onnx import TensorProto

from exporter.calibration.portioned import Portioned
from exporter.forced_branches import Way
from exporter.graph import Graph
from exporter.normalise import normalise
from exporter.precision.comparing import Outputs, compare, differences, typed
from exporter.precision.lowering import Operands
from exporter.precision.rewriting import rewrite_types
from exporter.precision.rounded import rounded_model
from exporter.precision.values import Retyped, convert_values
from exporter.tensors import Array
from runtime.backends import Session
from runtime.feeds import Feeds


@dataclass(frozen=True)
class Made:
    """A model in half precision.

    Attributes:
        model: the model.
        lowered: operands that are half precision, by the node's first output.
        retyped: constants left outside the model.
        casts: casts that were added.
    """

    model: onnx.ModelProto
    lowered: Mapping[str, Operands]
    retyped: Retyped
    casts: int


@dataclass(frozen=True)
class Compared:
    """How far outputs are from the original's.

    Attributes:
        errors: largest difference of each, as a share of its standard deviation.
        share: mean square of the differences, as a share of the outputs' variance.
    """

    errors: Mapping[str, float]
    share: float

    @property
    def error(self) -> float:
        """The largest difference of any output."""
        return max(self.errors.values(), default=0.0)

    def or_worse(self, other: Compared) -> Compared:
        """The larger of both, output by output."""
        errors = {name: max(error, other.errors[name]) for name, error in self.errors.items()}
        return Compared(errors, max(self.share, other.share))


@dataclass(frozen=True)
class Case:
    """What is converted, and what results are compared with.

    Attributes:
        graph: the fp32 graph; it stays as it is.
        low: FLOAT16 or BFLOAT16.
        kinds: ``TensorProto.DataType`` by tensor name.
        keep_io: whether inputs and outputs keep their types.
        feeds: inputs.
        dense: what runs the graph; None for one too large for one message.
        want: what it gives for each of ``feeds``.
        around: ways through branches that inputs may pass by.
    """

    graph: Graph
    low: int
    kinds: Mapping[str, int]
    keep_io: bool
    feeds: Sequence[Feeds]
    dense: Session | None
    want: Sequence[Outputs]
    around: Sequence[Way]

    def make(self, lowered: Mapping[str, Operands]) -> Made:
        """The model in which these nodes are half precision."""
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        retyped = Retyped(self.graph, self.low, partial(convert_values, low=self.low))
        casts = rewrite_types(model, self.low, lowered, self.kinds, self.graph.constants, retyped, self.keep_io)
        return Made(model, lowered, retyped, casts)

    def compare(self, made: Made, written: Path | None = None) -> Compared:
        """Judge a model, or the file it was written to, of which ONNX Runtime maps the weights.

        The original runs with every result rounded, which is what tensor cores do that add in fp32. ONNX Runtime's CPU
        computes no bf16, and fp16 in fp32 from layer to layer, without rounding between: that is looked at too, since
        it is what the file gives there.
        """
        rounded, outside = rounded_model(self.graph, made.lowered, self.low, self.keep_io)
        found = self._compared(rounded, outside, self.graph.folder)
        if self.low != TensorProto.FLOAT16:
            return found
        if written is None:
            return found.or_worse(self._compared(made.model, made.retyped, self.graph.folder))
        model = onnx.load(written, load_external_data=False)
        return found.or_worse(self._compared(model, {}, written.parent))

    def _compared(self, model: onnx.ModelProto, outside: Mapping[str, Array], folder: Path) -> Compared:
        """Judge a model whose external data lies in ``folder``, but for the values of ``outside``."""
        if self.dense is not None:
            return Compared(*compare(self.want, self.graph, model, self.feeds, self.around))
        session = self._portioned(model, outside, folder)
        runs = session.runs(typed(self.feeds, session), self.graph.outputs)
        return Compared(*differences(self.want, runs))

    def _portioned(self, model: onnx.ModelProto, outside: Mapping[str, Array], folder: Path) -> Portioned:
        """What runs a large model piece by piece, at the sizes of the original; its data lies in ``folder``."""
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return Portioned(normalise(copy, folder, self.graph.source, self.graph.binding.shapes), outside)
