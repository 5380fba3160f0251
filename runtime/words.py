"""Texts for inputs that hold text: the words that the operators reading them know, else short English ones.

Where an operator knows words (OneHotEncoder, LabelEncoder, TfIdfVectorizer) any other is nothing to it, or an error. So
the nodes are followed from the inputs, column by column: encoders of categories each read one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from runtime.model_files import nodes_in

USUAL = ("a", "the", "one", "day", "time", "year", "good", "new", "people", "water")
NUMERALS = ("0", "1", "2", "3", "5", "10")
"""Texts that are also numbers."""

_MOST_WORDS = 8
_KNOWN = ("cats_strings", "keys_strings", "classes_strings", "pool_strings")
_NEXT = frozenset({"Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze",
                   "StringConcat", "StringNormalizer", "Transpose", "Unsqueeze", "Where"})  # fmt: skip
"""Operators whose results are, or hold, the texts they read."""
_SPLIT = frozenset({"Tokenizer", "StringSplit"})
"""Operators that make words of texts."""
_SELECT = frozenset({"Gather", "ArrayFeatureExtractor"})


@dataclass(frozen=True)
class Words:
    """What an input of text may hold.

    Attributes:
        columns: words for each column, or one tuple for all of them.
        texts: whether an element is made of several words.
    """

    columns: tuple[tuple[str, ...], ...] = (USUAL,)
    texts: bool = False

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> NDArray[np.generic]:
        """Texts of a shape, as objects."""
        count = math.prod(shape)
        found = np.empty(count, object)
        wide = len(self.columns) > 1 and bool(shape) and shape[-1] == len(self.columns)
        for place in range(count):
            words = self.columns[place % shape[-1] if wide else rng.integers(len(self.columns))]
            many = int(rng.integers(1, _MOST_WORDS + 1)) if self.texts else 1
            found[place] = " ".join(words[k] for k in rng.integers(len(words), size=many))
        return found.reshape(tuple(shape))


_Column = tuple[str, int]
"""An input and a number of its last axis; 0 where its columns are not told apart."""


@dataclass
class _Found:
    """What is known of a column."""

    words: dict[str, None]
    texts: bool = False


def words_of(graph: onnx.GraphProto) -> dict[str, Words]:
    """What each input of text may hold, by its name."""
    of: dict[str, list[_Column]] = {}
    found: dict[_Column, _Found] = {}
    for value in graph.input:
        kind = value.type.tensor_type
        if kind.elem_type == onnx.TensorProto.STRING:
            dims = kind.shape.dim
            width = dims[1].dim_value if len(dims) == 2 else 0
            of[value.name] = [(value.name, k) for k in range(max(width, 1))]
            found |= {column: _Found({}) for column in of[value.name]}
    if not of:
        return {}
    values = {t.name: t for t in graph.initializer}
    for node in nodes_in(graph.node):
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            values[node.output[0]] = node.attribute[0].t
        read = [of[name] for name in node.input if name in of]
        if read:
            columns = [column for each in read for column in each]
            _learn(node, [found[column] for column in columns], values)
            _follow(node, of, columns, values)
    return {
        name: Words(tuple(tuple(found[c].words) or USUAL for c in columns), any(found[c].texts for c in columns))
        for name, columns in of.items()
        if any(value.name == name for value in graph.input)
    }


def _learn(node: onnx.NodeProto, columns: Sequence[_Found], values: Mapping[str, onnx.TensorProto]) -> None:
    """Take over the words that a node knows."""
    words = [w for a in node.attribute if a.name in _KNOWN for w in a.strings]
    words += [w for a in node.attribute if a.name == "keys_tensor" for w in a.t.string_data]
    if node.op_type == "Equal":
        words += [w for name in node.input if name in values for w in values[name].string_data]
    told = [word.decode(errors="replace") for word in words]
    if node.op_type == "Cast" and not told and _target(node) != onnx.TensorProto.STRING:
        told = list(NUMERALS)
    for column in columns:
        column.words.update(dict.fromkeys(told))
        column.texts |= node.op_type in _SPLIT


def _target(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "to"), 0)


def _follow(
    node: onnx.NodeProto, of: dict[str, list[_Column]], columns: list[_Column], values: Mapping[str, onnx.TensorProto]
) -> None:
    """Note which columns the outputs of a node hold."""
    if node.op_type in _SELECT and len(node.input) > 1:
        picked = [columns[k] for k in _indices(node, values) if -len(columns) <= k < len(columns)]
        of[node.output[0]] = picked or columns
    elif node.op_type in _NEXT or node.op_type in _SPLIT:
        of |= dict.fromkeys((name for name in node.output if name), columns)


def _indices(node: onnx.NodeProto, values: Mapping[str, onnx.TensorProto]) -> Iterator[int]:
    """Columns that a node selects, where the file tells; none where it selects rows."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0 if node.op_type == "Gather" else -1)
    tensor = values.get(node.input[1])
    if axis in (1, -1) and tensor is not None and math.prod(tensor.dims) <= 4096:
        yield from onnx.numpy_helper.to_array(tensor).ravel().astype(int).tolist()
