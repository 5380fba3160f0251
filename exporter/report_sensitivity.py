"""What ``secateur sensitivity`` prints, and its JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporter.calibration.damages import Damage
from exporter.calibration.data import Calibration
from exporter.report_json import JSON_VERSION
from exporter.tables import quantity, short, table
from runtime.nouns import counted


def sensitivity_text(
    rows: Sequence[Damage], shares: Sequence[float], calibration: Calibration, notes: Sequence[str]
) -> str:
    """One row per group, the cheapest to cut first."""
    head = ["group", "kind", "units", "MACs", *(f"{100 * s:.4g} %" for s in shares), "per MAC"]
    body = [_cells(row, len(shares)) for row in rows]
    made_up = ["these inputs are made up: real ones may tell otherwise"] if calibration.synthetic else []
    return "\n".join([
        *(f"note: {n}" for n in notes),
        "predicted square error of the outputs, relative to their variance, when a group alone is cut to that share of",
        f"its units and the layers that read it are fitted anew, from {counted(len(calibration.fit), 'input')}",
        "",
        table([head, *body], right=range(2, len(head))),
        "",
        "per MAC: damage at half of the units, for each share of the model's MACs that this saves; cheapest first",
        *made_up,
    ])  # fmt: skip


def _cells(row: Damage, columns: int) -> list[str]:
    values = [f"{v:.2g}" for v in row.damage] if row.damage is not None else ["no linear layer reads it"]
    values += [""] * (columns - len(values))
    rate = f"{row.rate:.2g}" if row.rate is not None else ""
    return [short(row.name), row.kind, str(row.width), quantity(row.macs), *values, rate]


def sensitivity_json(
    model: Path,
    rows: Sequence[Damage],
    shares: Sequence[float],
    calibration: Calibration,
    cached: bool,
    notes: Sequence[str],
) -> dict[str, Any]:
    """All of it, the whole curves included."""
    return {
        "version": JSON_VERSION,
        "model": str(model),
        "calib": calibration.source,
        "samples": len(calibration.fit),
        "synthetic": calibration.synthetic,
        "cached": cached,
        "shares": list(shares),
        "groups": [
            {
                "name": row.name,
                "kind": row.kind,
                "width": row.width,
                "macs": row.macs,
                "units": list(row.units),
                "damage": [_finite(v) for v in row.damage] if row.damage is not None else None,
                "damage_per_mac": _finite(row.rate) if row.rate is not None else None,
                "curve": [_finite(float(v)) for v in row.curve] if row.curve is not None else None,
            }
            for row in rows
        ],
        "notes": list(notes),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
