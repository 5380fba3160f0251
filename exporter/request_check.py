"""What is refused of a request before any work: values out of range, and what contradicts itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.atomic import obstacle
from exporter.blocks import KIND
from exporter.choice import check_blocks
from exporter.errors import UsageError
from exporter.importance import check_score
from exporter.influence import check_judge
from exporter.planner import budget_of, check, check_kinds
from exporter.request import Request
from exporter.search import parse_limit
from exporter.widths import Budget

if TYPE_CHECKING:
    from exporter.calibration.data import Source
    from runtime.images import Preprocess


def check_request(
    request: Request,
    planned: bool,
    calib: Source | None,
    preprocess: Preprocess | None,
    compensate: bool,
    labels: str | None,
    metric: str | None,
) -> None:
    """Refuse what contradicts itself before the work."""
    budgets = (request.ratio, request.macs, request.params, request.layers, request.max_drop)
    if planned and (any(v is not None for v in budgets) or request.steps != 1):
        raise UsageError(
            "--plan already says what to keep; leave out --ratio, --macs, --params, --layers, --max-drop and --steps."
        )
    if planned and request.io:
        raise UsageError("--plan already says which inputs and outputs shrink; leave out --io.")
    check_inputs(calib, preprocess, compensate, labels, metric)
    if request.max_drop is None and (request.of != "macs" or request.sure):
        raise UsageError("--of and --sure say more of --max-drop: give it.")
    if request.max_drop is not None:
        _check_search(request, calib)
    if request.steps < 1:
        raise UsageError(f"--steps {request.steps}: must be at least 1.")
    if request.steps > 1 and len(request.budget) != 1:
        raise UsageError("--steps needs exactly one budget: --ratio, --macs or --params.")
    if planned:
        return
    check_choice(request, calib is not None)
    if request.deep and request.max_drop is None:
        check_blocks(request)
    elif request.max_drop is None:
        budget_of(**request.budget)


def check_choice(request: Request, calibrated: bool) -> None:
    """Refuse with a UsageError a way to choose units or blocks that there is not, whatever the budget.

    Args:
        request: what to cut.
        calibrated: whether there are calibration inputs.
    """
    check_kinds(request.kinds or (), (KIND,) if request.deep else ())
    if request.layers is not None and request.layers < 1:
        raise UsageError(f"--layers {request.layers}: must be at least 1.")
    check_judge(request.layer_score)
    if not request.deep and request.layer_score != Request.layer_score:
        raise UsageError(
            "--layer-score ranks residual blocks: say that some go, with --layers or --granularity layers."
        )
    if request.wide:
        asked = request.resolved(calibrated)
        assert asked.score is not None
        assert asked.scope is not None
        check_score(asked.score, calibrated)
        kind, value = next(iter(request.budget.items()), ("macs", 1.0))
        check(asked.scope, Budget(kind, value), request.align, request.min_width)


def check_inputs(
    calib: Source | None, preprocess: Preprocess | None, compensate: bool, labels: str | None, metric: str | None
) -> None:
    """Refuse with a UsageError what says something of calibration inputs where there are none."""
    if calib is None and (preprocess is not None or not compensate or labels is not None or metric is not None):
        raise UsageError("--preprocess, --no-compensate, --labels and --metric need calibration inputs: give --calib.")


def _check_search(request: Request, calib: Source | None) -> None:
    parse_limit(request.max_drop if request.max_drop is not None else "")
    if request.of not in ("macs", "params"):
        raise UsageError(f"--of {request.of}: choose macs or params.")
    if request.budget or request.layers is not None:
        raise UsageError("--max-drop finds the budget; leave out --ratio, --macs, --params and --layers.")
    if request.steps != 1:
        raise UsageError("--max-drop tries budgets in one round each; leave out --steps.")
    if calib is None:
        raise UsageError("--max-drop judges models on inputs: give --calib, with labels if there are any.")
    if isinstance(calib, str) and calib == "synthetic":
        raise UsageError("--max-drop: made-up inputs do not tell how good a model is; give real ones with --calib.")


def check_output(output: str | os.PathLike[str] | None, dry_run: bool = False) -> None:
    """Find out before the work whether its result could be written; refuse with a UsageError where not."""
    if output is None:
        if not dry_run:
            raise UsageError("say where to write the result with -o OUT.onnx, or try --dry-run.")
        return
    if Path(output).is_dir():
        raise UsageError(f"{output} is a folder; name a file with -o OUT.onnx.")
    why = obstacle(Path(output))
    if why:
        raise UsageError(f"{output} cannot be written: {why}.")
