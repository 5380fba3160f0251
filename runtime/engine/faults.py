"""Why an engine could not be built: node, operator, reason and a fix, out of what TensorRT reports and logs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from runtime.engine.log import Message, telling
from runtime.errors import BackendMissing, RunError


@dataclass(frozen=True)
class Fault:
    """One reason for which a model does not become an engine.

    Attributes:
        node: name of the node in the ONNX file; empty where TensorRT does not say.
        operator: its operator.
        reason: TensorRT's own words, without source locations.
        fix: what to do about it; empty where nothing is known.
    """

    node: str
    operator: str
    reason: str
    fix: str

    def __str__(self) -> str:
        where = f"{self.operator} '{self.node}': " if self.operator else f"'{self.node}': " if self.node else ""
        return f"{where}{self.reason}" + (f"\n    fix: {self.fix}" if self.fix else "")


class CannotBuild(RunError):
    """TensorRT refuses a model.

    Attributes:
        faults: what it objects to.
    """

    def __init__(self, text: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(text)
        self.faults = tuple(faults)


_FIXES = (
    (
        r"ScopeType",
        "TensorRT does not build this If: where sizes or values of inputs decide which branch is taken, and these do "
        "not change, secateur convert MODEL -o FIXED.onnx --fix NAME:1x3x224x224 --fix NAME=VALUE takes the branch",
    ),
    (
        r"loops with only a trip limit",
        "TensorRT builds loops of a number of rounds that is known beforehand: where it follows from sizes or values "
        "of inputs, fix these with secateur convert --fix; else export without the loop, or run the model with "
        "--backend ort-tensorrt, which leaves it to ONNX Runtime",
    ),
    (
        r"libnvinfer_lean",
        "this package comes without the lean runtime that such engines carry: leave --version-compatible out",
    ),
    (
        r"status == CUDA_SUCCESS|cudaError|CUDA initialization",
        "this step needs the GPU and its driver: build on the machine that has them (without --refit and --strip, "
        "TensorRT for RTX builds anywhere)",
    ),
    (
        r"is read as a shape",
        "make it a constant of the file, with secateur convert MODEL -o FIXED.onnx --fix NAME=VALUE; engines are built "
        "for ranges of sizes, not for values",
    ),
    (
        r"no importer registered|plugin not found|plugin creator|is not supported by TensorRT|unsupported operator",
        "TensorRT does not know this operator: export without it (operators of ONNX Runtime's own domain come from its "
        "optimiser, so build from the file before that), or run the model with --backend ort-tensorrt, which leaves "
        "such nodes to ONNX Runtime",
    ),
    (
        r"no (?:optimization|optimisation) profile|values for profile|self-consistent"
        r"|profile.*(?:not been defined|has not been|dimension|satisf)"
        r"|dynamic or shape inputs|min.*opt.*max|shape tensor",
        "give sizes that this model accepts for its dynamic axes: --shape NAME:MIN..OPT..MAX",
    ),
    (
        r"type mismatch|same (?:input )?types?|differ(?:ent|ing) (?:data )?types|type constraint|incompatible types"
        r"|strongly[- ]typed|types? .*does not match",
        "the types in the ONNX file have to fit each other, as in ONNX Runtime: convert the fp32 file with "
        "secateur build --precision, or put a Cast where the types meet",
    ),
    (
        r"out of memory|outofmemory|insufficient (?:memory|workspace)|workspace|memory pool|cannot allocate",
        "allow more scratch memory (--workspace 4G), smaller sizes (--shape), or a smaller batch",
    ),
    (
        r"could not find any implementation|no implementation|10: internal|no tactic",
        "no kernel computes this layer in this type: keep its node in fp32 (--keep-fp32 NODE), more scratch memory "
        "(--workspace), or choose another --precision",
    ),
    (
        r"convert ONNX dat[ae] type|data type .*not supported|unsupported (?:onnx |tensor )?(?:data )?type"
        r"|(?:double|uint8|int16|string|complex).*support",
        "this type is not one of TensorRT's: cast the tensor to float32, int32 or int64 in the file",
    ),
    (
        r"zero.?point|scale.*(?:positive|constant)|quantize|dequantize|q/dq",
        "TensorRT takes symmetric int8 (zero points of 0, constant scales): quantize so, or leave this node in float",
    ),
    (
        r"Squeeze\w* without an axes input",
        "TensorRT must know beforehand which axes go: fix the sizes of the inputs with secateur convert MODEL -o "
        "FIXED.onnx --fix NAME:1x3x224x224, or name the axes in the node's second input in the file",
    ),
    (
        r"Myelin",
        "TensorRT's own compiler fails: report it to NVIDIA with the file, and try --level 0, another --precision, "
        "axes that stay open (without --fix), or --backend ort-tensorrt, which leaves nodes to ONNX Runtime",
    ),
    (
        r"mismatch|broadcast|dimension|volume|shape|axis",
        "the shapes do not fit at these sizes: check them with --shape, and the file with: python -m onnx.checker FILE",
    ),
)

_FOR_CPUS = frozenset(
    {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm", "MatMulNBits"}
)
"""Operators that compute on integers in ONNX Runtime, and that TensorRT does not know."""
_DRIVER = re.compile(r"status == CUDA_SUCCESS|cudaError\w*|CUDA initialization")
_PLACE = re.compile(
    r"\s*Error Code \d+: Cuda Runtime \(In catchCudaError.*?\)\)+|^(?:\[[^\]]*\]\s*)+"
    r"|\s*In \S+(?: \S+\(\))? at [\w/.:+]+"
    r"|\[?\b\w+\.(?:cpp|h|hpp|cu)\b[:\d\w]*\]?\s*|In function \w+:\s*|^\d+:\s*|I?\w+::\w+:\s*(?=Error Code)"
    r"|^Invalid Node - \S+\s*|^Assertion failed:\s*"
)
_WORDLESS = re.compile(r"^(?:\w+ && )*(?:false|creator)?$")
_IN_NODE = re.compile(
    r"(?:In node \d+|While parsing node number \d+).*?(?:with name: (?P<name>\S*))?\s*(?:and operator: (?P<op>\w+))",
    re.IGNORECASE,
)
_LISTED = re.compile(r"name: (?P<name>[^)\s]+)[^)]*?(?:op_type: |operator: )\"?(?P<op>\w+)")
_FEWEST = 3


def fix_for(reason: str, operator: str = "") -> str:
    """What may help against a reason, and an operator, empty where nothing is known."""
    if operator in _FOR_CPUS:
        return "this file is quantized for CPUs: quantize the float model with --precision int8 --profile tensorrt"
    return next((fix for pattern, fix in _FIXES if re.search(pattern, reason, re.IGNORECASE)), "")


def parser_faults(parser: Any) -> list[Fault]:
    """What a parser objects to.

    Args:
        parser: an ``OnnxParser`` that has refused a model.
    """
    found: dict[Fault, None] = {}
    for k in range(int(parser.num_errors)):
        error = parser.get_error(k)
        reason = _reason(str(_said(error.desc)))
        code = _code(_said(getattr(error, "code", None)))
        if _WORDLESS.match(reason):
            reason = "this operator is not supported by TensorRT" if "UNSUPPORTED" in code else code or "refused"
        node, operator = (str(_said(getattr(error, which, None)) or "") for which in ("node_name", "node_operator"))
        found.setdefault(Fault(node, operator, reason, fix_for(reason, operator)))
    return list(found)


def log_faults(messages: Sequence[Message], model: onnx.ModelProto) -> list[Fault]:
    """What the log says against a model, in order; the node is the one whose name the line holds.

    Args:
        messages: the log.
        model: whose nodes to look for.
    """
    found: dict[Fault, None] = {}
    for message in telling(messages, "error"):
        node, operator = _place(message.text, model)
        reason = _reason(message.text)
        found.setdefault(Fault(node, operator, reason, fix_for(reason, operator)))
    return list(found)


def refused(path: str, title: str, faults: Sequence[Fault], most: int = 5) -> RunError:
    """The error to raise: ``BackendMissing`` where all that is lacking is a driver."""
    if faults and any(_DRIVER.search(f.reason) for f in faults):
        return BackendMissing(f"{title} needs a GPU and its driver to build {path} so: {faults[0]}")
    if not faults:
        return CannotBuild(f"{title} builds no engine from {path} and does not say why. See: --log verbose")
    lines = [f"{title} builds no engine from {path}:", *(f"  {fault}" for fault in faults[:most])]
    if len(faults) > most:
        lines.append(f"  and {len(faults) - most} more; all of them with --log error")
    return CannotBuild("\n".join(lines), faults)


def _said(value: Callable[[], Any] | Any) -> Any:
    """A value, or what it returns: older versions have methods where newer ones have properties."""
    return value() if callable(value) else value


def _code(value: Any) -> str:
    name = getattr(value, "name", None)
    return str(name) if name and str(name) not in {"SUCCESS", "INTERNAL_ERROR"} else ""


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    found = " ".join(lines)
    for _ in range(3):
        found = _PLACE.sub("", found).strip()
    quoted = re.search(r'&& "([^"]+)"', found)  # the text of an assertion stands behind its condition
    return (quoted.group(1) if quoted else found).rstrip(". ") or text.strip()


def _place(text: str, model: onnx.ModelProto) -> tuple[str, str]:
    """Name and operator of the node a line is about: as it says itself, or the longest name that occurs in it."""
    for pattern in (_IN_NODE, _LISTED):
        said = pattern.search(text)
        if said is not None and said.group("op"):
            return (said.group("name") or "").strip(), said.group("op")
    best: tuple[str, str] = ("", "")
    for name, node in _names(model):
        if len(name) > len(best[0]) and re.search(rf"(?<![\w./]){re.escape(name)}(?![\w/])", text):
            best = (name, node.op_type)
    return best


def _names(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    for node in model.graph.node:
        for name in (node.name, *node.output):
            if len(name) >= _FEWEST:
                yield name, node
