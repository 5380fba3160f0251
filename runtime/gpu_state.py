"""Clocks, power and temperature of the GPU, by NVML or nvidia-smi: a latency depends on them too."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runtime import cuda
from runtime.errors import RunError

BACKENDS = frozenset({"tensorrt", "tensorrt-rtx", "ort-cuda", "ort-tensorrt", "ort-nv-tensorrt-rtx"})
"""Those that run on an NVIDIA GPU."""

INSTALL = "pip install nvidia-ml-py"
_FIELDS = ("name", "driver_version", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
_SECONDS = 20
_BUS_LENGTH = 32


@dataclass(frozen=True)
class GpuState:
    """The GPU in one moment; None for what it does not tell.

    Attributes:
        name, driver: of the device.
        clock: of its processors, in MHz.
        memory_clock: in MHz.
        power: in watts.
        temperature: in degrees Celsius.
        source: what told it, ``nvml`` or ``nvidia-smi``.
    """

    name: str
    driver: str
    clock: float | None
    memory_clock: float | None
    power: float | None
    temperature: float | None
    source: str


@dataclass(frozen=True)
class GpuRecord:
    """The GPU around a measurement.

    Attributes:
        before, after: its states; None where they cannot be read.
        missing: why not; empty where they can.
    """

    before: GpuState | None
    after: GpuState | None
    missing: str = ""


def read_state() -> tuple[GpuState | None, str]:
    """The state of the GPU that CUDA runs on, or None and why it cannot be read."""
    bus = _bus()
    reasons = []
    for read in (_by_nvml, _by_smi):
        found = read(bus)
        if isinstance(found, GpuState):
            return found, ""
        reasons.append(found)
    return None, f"{'; '.join(reasons)} ({INSTALL})"


def watched(backend: str) -> Callable[[], GpuRecord | None]:
    """Read the state now; the returned call reads it again and gives both. None for backends without an NVIDIA GPU."""
    if backend not in BACKENDS:
        return lambda: None
    before, missing = read_state()

    def record() -> GpuRecord:
        after, why = read_state() if before is not None else (None, "")
        return GpuRecord(before, after, missing or why)

    return record


def _bus() -> str | None:
    """PCI address of the device CUDA runs on; None where CUDA does not say."""
    try:
        found = cuda.call("cudaDeviceGetPCIBusId", _BUS_LENGTH, 0)
    except RunError:
        return None
    text = found.decode() if isinstance(found, bytes) else str(found)
    return text.partition("\0")[0].strip() or None


def _by_nvml(bus: str | None) -> GpuState | str:
    try:
        nvml = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return "NVML's package is not installed"
    try:
        nvml.nvmlInit()
    except Exception as error:  # its own class, or a library that does not load
        return f"NVML does not start: {error}"
    try:
        by_bus = nvml.nvmlDeviceGetHandleByPciBusId
        handle = nvml.nvmlDeviceGetHandleByIndex(0) if bus is None else by_bus(bus.encode())
        power = _told(nvml.nvmlDeviceGetPowerUsage, handle)
        return GpuState(
            _text(nvml.nvmlDeviceGetName(handle)),
            _text(nvml.nvmlSystemGetDriverVersion()),
            _told(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            _told(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
            power / 1e3 if power is not None else None,
            _told(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            "nvml",
        )
    except Exception as error:
        return f"NVML finds no such GPU: {error}"
    finally:
        with contextlib.suppress(Exception):
            nvml.nvmlShutdown()


def _told(function: Callable[..., Any], *arguments: Any) -> float | None:
    """A number, or None: virtual and older GPUs lack some."""
    try:
        return float(function(*arguments))
    except Exception:
        return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _by_smi(bus: str | None) -> GpuState | str:
    command = ["nvidia-smi", f"--id={bus or 0}", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS)
    except FileNotFoundError:
        return "there is no nvidia-smi"
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stdout", "") or error).strip()
        return f"nvidia-smi fails: {said.splitlines()[0] if said else error}"
    values = [v.strip() for v in done.stdout.strip().partition("\n")[0].split(",")]
    if len(values) != len(_FIELDS):
        return f"nvidia-smi answers '{done.stdout.strip()[:60]}'"
    clock, memory, power, temperature = (_number(v) for v in values[2:])
    return GpuState(values[0], values[1], clock, memory, power, temperature, "nvidia-smi")


def _number(text: str) -> float | None:
    """A number; None for ``[N/A]`` and the like."""
    try:
        return float(text)
    except ValueError:
        return None
