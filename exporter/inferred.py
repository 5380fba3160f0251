"""What a pass over the nodes knows of tensors: their shapes, types, values, and where each size can be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import NodeProto, TensorProto, TypeProto

from exporter.symbols import Dim
from exporter.values import Known, Vector

Dims = tuple[Dim, ...]

INTEGERS = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL})
_LONGEST_VECTOR = 64
_NUMBERS = frozenset({int})


def are_numbers(dims: Iterable[Dim]) -> bool:
    """Say whether there is no symbol among the sizes."""
    return _NUMBERS.issuperset(map(type, dims))


@dataclass(frozen=True)
class Origin:
    """Where the number behind a symbol can be read: the size of an axis of a tensor, or an element of a vector."""

    tensor: str
    axis: int | None = None
    element: int | None = None


@dataclass
class Inferred:
    """What one pass found, by tensor name. A name that is missing from ``dims`` has no known rank.

    Attributes:
        dims: shape; a symbol for an axis whose size only a run knows.
        dtype: ``TensorProto.DataType`` number.
        known: values of small tensors that are the same in every run.
        vectors: integer vectors with symbols among their elements.
        arithmetic: names of known tensors that are shape arithmetic (not small weights).
        origins: where each symbol's number can be read.
        failed: nodes whose outputs could not be inferred.
        opaque: onnx types of what has no dims: sequences, optionals, tensors of unknown rank.
        level: number of subgraphs around the node at hand.
    """

    dims: dict[str, Dims] = field(default_factory=dict)
    dtype: dict[str, int] = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)
    vectors: dict[str, Vector] = field(default_factory=dict)
    arithmetic: set[str] = field(default_factory=set)
    origins: dict[str, Origin] = field(default_factory=dict)
    failed: list[NodeProto] = field(default_factory=list)
    opaque: dict[str, TypeProto] = field(default_factory=dict)
    level: int = 0

    def type_of(self, name: str) -> TypeProto | None:
        """The onnx type of a value; None where nothing is known of it."""
        if name in self.dims:
            return onnx.helper.make_tensor_type_proto(self.dtype[name], list(self.dims[name]))
        return self.opaque.get(name)

    def is_typed(self, name: str) -> bool:
        """Say whether the type of a value is known."""
        return name in self.dims or name in self.opaque

    def set_type(self, name: str, proto: TypeProto) -> None:
        """Record the type of a value that has no dims."""
        self.opaque[name] = proto
        if proto.HasField("tensor_type"):
            self.dtype[name] = proto.tensor_type.elem_type

    def set_tensor(self, name: str, dtype: int, dims: Sequence[Dim]) -> None:
        """Record a tensor's type and shape."""
        self.dtype[name] = dtype
        self.dims[name] = dims = tuple(dims)
        if are_numbers(dims):
            return
        for axis, dim in enumerate(dims):
            if isinstance(dim, str) and dim not in self.origins:
                self.origins[dim] = Origin(name, axis=axis)

    def is_fixed(self, name: str) -> bool:
        """Say whether the size of every axis is a number."""
        return name in self.dims and are_numbers(self.dims[name])

    def vector(self, name: str) -> Vector | None:
        """Elements of an integer vector or scalar: numbers and symbols; None where it is not one."""
        if name in self.vectors:
            return self.vectors[name]
        value = self.known.get(name)
        if value is not None and value.ndim <= 1 and value.dtype.kind in "iub":
            return tuple(map(int, value.ravel().tolist()))
        dims = self.dims.get(name)
        if value is not None or dims is None or len(dims) > 1 or self.dtype.get(name) not in INTEGERS:
            return None
        length = dims[0] if dims else 1
        if not isinstance(length, int) or not 0 < length <= _LONGEST_VECTOR:
            return None
        return self.set_vector(name, (None,) * length)

    def set_vector(self, name: str, elements: Sequence[Dim | None]) -> Vector:
        """Record a vector; an element that is None gets a symbol."""
        whole: list[Dim] = []
        for i, element in enumerate(elements):
            if element is None:
                element = f"={name}[{i}]"
            if isinstance(element, str):
                self.origins.setdefault(element, Origin(name, element=i))
            whole.append(element)
        self.vectors[name] = tuple(whole)
        return self.vectors[name]
