"""What an engine is built with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from runtime.engine.profiles import Range
from runtime.errors import BadRequest

HARDWARE = ("none", "ampere+", "same-capability")
_LEVELS = range(6)


@dataclass(frozen=True)
class BuildOptions:
    """What a builder is asked for; defaults are its own.

    Attributes:
        sparse: sparse kernels may be used where weights have the 2:4 pattern.
        shapes: sizes of inputs with dynamic axes, by name; one range for each profile.
        workspace: most bytes of scratch memory a kernel may take.
        timing_cache: file of kernel timings, read and written, that makes the next build quicker.
        level: optimisation level, 0 (quick) to 5.
        version_compatible: the engine loads in later versions of the same major version.
        hardware: which other GPUs it runs on, one of ``HARDWARE``.
        refit: its weights can be replaced later.
        strip: its weights are left out; they come from the ONNX file when it is loaded (implies that they can be).
        capabilities: compute capabilities an RTX engine is for, ``86``, ``120`` or ``current``.
        tf32: fp32 layers may round their inputs to 10 bits of mantissa.
    """

    sparse: bool = False
    shapes: dict[str, tuple[Range, ...]] = field(default_factory=dict)
    workspace: int | None = None
    timing_cache: Path | None = None
    level: int | None = None
    version_compatible: bool = False
    hardware: str = "none"
    refit: bool = False
    strip: bool = False
    capabilities: tuple[str, ...] = ()
    tf32: bool = True

    def __post_init__(self) -> None:
        """Refuse what no builder takes."""
        if self.level is not None and self.level not in _LEVELS:
            raise BadRequest(f"--level {self.level}: choose from {_LEVELS[0]} (quick) to {_LEVELS[-1]} (thorough).")
        if self.hardware not in HARDWARE:
            raise BadRequest(f"--hardware {self.hardware}: choose from {', '.join(HARDWARE)}.")
