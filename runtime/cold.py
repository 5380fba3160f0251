"""A cold start: a model loaded and run once in a fresh process, and the memory that took."""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.fresh import call_fresh
from runtime.runners import Asked, Runner

_LIMIT = 300.0
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Cold:
    """What a start in a fresh process takes, beyond starting Python and importing the backend.

    Attributes:
        load: seconds to load the model.
        first: seconds of the first run.
        memory: bytes of memory at the peak, less what the process held before it loaded the model; None where the
            system does not say.
    """

    load: float
    first: float
    memory: int | None


def start_cold(runner: Runner) -> Cold | None:
    """Load and run a model once in a fresh process. None where that fails, which it did not in this one."""
    options = {**asdict(runner.asked.options), "profile": None, "save": None, "folder": None}
    request = {
        "path": str(runner.path.absolute()),
        "backend": runner.asked.backend,
        "options": options,
        "shapes": runner.shapes if runner.asked.inputs is None else {},
        "batch": runner.asked.batch if runner.asked.inputs is not None else None,
        "seed": runner.asked.seed,
        "inputs": str(runner.asked.inputs.absolute()) if runner.asked.inputs is not None else None,
    }
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        try:
            call_fresh(__name__, "child", [json.dumps(request), str(result)], _LIMIT)
            return Cold(**json.loads(result.read_text(encoding="utf-8")))
        except (OSError, subprocess.SubprocessError, ValueError):
            return None


def child(request: str, result: str) -> None:
    """Do the work in the fresh process; both arguments are those ``start_cold`` gives on its command line."""
    from runtime.backends import SessionOptions
    from runtime.runners import prepare

    asked: dict[str, Any] = json.loads(request)
    path, options = Path(asked["path"]), SessionOptions(**asked["options"])
    _warm_up_backend(asked["backend"], options)
    before = _memory("VmRSS")
    shapes = {name: tuple(shape) for name, shape in asked["shapes"].items()}
    inputs = Path(asked["inputs"]) if asked["inputs"] is not None else None
    runner = prepare(path, Asked(asked["backend"], options, shapes, asked["batch"], asked["seed"], inputs))
    peak = _memory("VmHWM")
    memory = max(peak - before, 0) if before is not None and peak is not None else None
    Path(result).write_text(json.dumps(asdict(Cold(runner.load, runner.first, memory))), encoding="utf-8")


def _warm_up_backend(name: str, options: Any) -> None:
    """Import what the backend needs by running a model of one node, so that a model's own times remain."""
    from onnx import TensorProto, helper

    from runtime.backends import open_session

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", value[:1], value[1:])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    open_session(model.SerializeToString(), name, options)


def _memory(field: str) -> int | None:
    """A field of the process's status in bytes; its peak is its own, not that of the process it was started by."""
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
