"""What a measurement depends on besides the model: processor, system, versions, limits."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from runtime import clocks

_PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-migraphx",
    "onnxruntime-qnn",
    "tensorrt",
    "tensorrt-rtx",
)
_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "asimd", "sve", "i8mm")
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ORT_DISABLE_TELEMETRY")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def environment() -> dict[str, Any]:
    """Everything known about this machine and its software, as JSON can hold it."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {
        **_device(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": _packages(),
        "processors_usable": clocks.processors(),
        "processor_quota": _read(_QUOTA),
        "frequency_governor": _read(_GOVERNOR),
        "memory_bytes": _memory(),
        "load_average": list(load) if load is not None else None,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "fingerprint": fingerprint(),
    }


def fingerprint(*more: object) -> str:
    """A short hash of what makes timings comparable: the processor, the packages that run models, and ``more``."""
    known = {"device": _device(), "packages": _packages(), "more": [str(m) for m in more]}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def _device() -> dict[str, Any]:
    facts = _cpuinfo()
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return {
        "processor": facts.get("model name") or platform.processor() or platform.machine(),
        "family": "/".join(facts.get(k, "?") for k in ("cpu family", "model", "stepping")),
        "architecture": platform.machine(),
        "instructions": [f for f in _FLAGS if f in flags],
        "virtual": "hypervisor" in flags,
        "processors": os.cpu_count(),
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry of ``/proc/cpuinfo``; empty on other systems."""
    text = _read(Path("/proc/cpuinfo"), whole=True) or ""
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _read(path: Path, whole: bool = False) -> str | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text if whole else text.strip()
