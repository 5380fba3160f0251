"""The precisions, and what each asks of onnxruntime.quantization under a profile."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.errors import UsageError

PROFILES = ("cpu", "tensorrt")
METHODS = ("minmax", "entropy", "percentile")


@dataclass(frozen=True)
class Precision:
    """How numbers are stored.

    Attributes:
        name: as it is typed.
        weight: of the weights, a type of ``onnx.TensorProto``.
        activation: of the tensors between layers; "" leaves them in float.
        bits: of a weight.
        opset: the lowest operator set that knows it.
        about: one line for the reader.
        dynamic: whether what a layer reads is rounded by the range it has in each run.
    """

    name: str
    weight: str
    activation: str
    bits: int
    opset: int
    about: str
    dynamic: bool = False

    @property
    def matrices(self) -> bool:
        """Whether it is for layers whose weight is a matrix."""
        return self.bits == 4 or self.dynamic

    @property
    def ranged(self) -> bool:
        """Whether the ranges of tensors are found beforehand, on calibration inputs."""
        return bool(self.activation) and not self.dynamic

    @property
    def integers(self) -> bool:
        """Whether layers compute on integers: a tensor has one step for large and small numbers."""
        return self.activation in ("INT8", "UINT8")

    @property
    def weights_only(self) -> bool:
        """Whether the layers compute in float, and only the weights are stored in fewer bits."""
        return not self.activation


PRECISIONS = {
    p.name: p
    for p in (
        Precision("int8", "INT8", "UINT8", 8, 13, "weights int8, activations uint8"),
        Precision("uint8", "UINT8", "UINT8", 8, 13, "weights and activations uint8"),
        Precision("fp8", "FLOAT8E4M3FN", "FLOAT8E4M3FN", 8, 19, "weights and activations float8 e4m3"),
        Precision(
            "int8-dynamic",
            "INT8",
            "UINT8",
            8,
            13,
            "weights of matrices int8, and what these layers read uint8, by the range it has in each run",
            True,
        ),
        Precision("int8-weight", "INT8", "", 8, 13, "weights int8, computed in float"),
        Precision("int4-weight", "INT4", "", 4, 21, "matrices in int4 in blocks of 32, computed in float"),
    )
}


def find_precision(name: str, profile: str) -> Precision:
    """The precision of a name, as a profile wants it.

    Raises:
        UsageError: there is none, or the profile cannot run it.
    """
    if profile not in PROFILES:
        raise UsageError(f"--profile {profile}: choose from {', '.join(PROFILES)}.")
    found = PRECISIONS.get(name)
    if found is None:
        raise UsageError(f"--precision {name}: choose from {', '.join(PRECISIONS)}.")
    if profile == "tensorrt" and name == "uint8":
        raise UsageError("--precision uint8: TensorRT knows no uint8; take int8.")
    if profile == "tensorrt" and found.dynamic:
        raise UsageError(f"--precision {name}: TensorRT takes no ranges that are found in each run; take int8.")
    if profile == "cpu" and name == "fp8":
        raise UsageError(
            "--precision fp8: ONNX Runtime has no kernels for it on the CPU; give --profile tensorrt, or take int8."
        )
    if profile == "tensorrt" and name == "int8":
        return Precision("int8", "INT8", "INT8", 8, 13, "weights and activations int8, symmetric")
    return found
