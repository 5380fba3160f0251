"""What gpu.py has measured so far: a file that a run which was ended goes on from, and the page made of it.

All rows of a file are of one device, with one driver, the same versions and flags. Where one of these changed, the file
is put aside under its date. A row of a model whose file changed is left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import table
from gpu_cells import PRODUCT, Cell, Row, Rows
from gpu_files import digest, known_file

_HEAD = ["device ms", "host ms", "runs a second", "of dense", "sparse layers", "outputs differ by", "MHz, W, C"]
_NUMBERS = ("device_ms", "host_ms", "rate", "sparse_layers", "error_of_outputs")
_ABOUT = """Medians. Runs a second: engines queue the next before the last is done. Of dense: runs taken in turn in one
session, in pairs, by the GPU's clock for engines, with a 95 % interval; two builds of one file differ by what it says
of `dense again`, and no gain below that counts. Outputs: largest difference from the fp32 file on the CPU, in standard
deviations."""


class Record:
    """The rows of all cells, those of earlier runs too.

    Attributes:
        data: what is written.
        cells: of the models of this command, in order.
        chosen: those of them that this command is to measure.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        setting: dict[str, Any],
        cells: Sequence[Cell],
        chosen: Sequence[Cell],
        about: Row,
    ) -> None:
        self.name, self.folder, self.about, self.cells, self.chosen = name, folder, about, cells, chosen
        known = self._known(setting)
        run = {key: about[key] for key in ("date", "command", "commit", "changed", "cpu")}
        self.data: dict[str, Any] = {
            "setting": setting,
            "runs": [*known.get("runs", []), run],
            "models": known.get("models", {}),
            "torch": known.get("torch", {}),
            "left": [],
        }
        for cell in cells:
            for label, row in self.rows_of(cell).items():
                if not self._is_of(row, cell):
                    table.say(f"{cell.name}: its file is another now, what was measured is left out")
                    del self._place(cell)[label]

    def _known(self, setting: dict[str, Any]) -> dict[str, Any]:
        """What an earlier run wrote, if it measured the same way; else that is put aside."""
        file = self.folder / f"{self.name}.json"
        if not file.is_file():
            return {}
        try:
            known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            known = {}
        before = known.get("setting", {})
        changed = [key for key, value in setting.items() if before.get(key) != value]
        if not changed:
            return known
        stamp = datetime.fromtimestamp(file.stat().st_mtime, UTC).strftime("%Y%m%dT%H%M%S")
        for suffix in (".json", ".md"):
            old = file.with_suffix(suffix)
            if old.is_file():
                old.replace(file.with_name(f"{self.name}-{stamp}{suffix}"))
        said = "; ".join(f"{key}: {before.get(key, 'not said')}, now {setting[key]}" for key in changed)
        table.say(f"earlier results are of something else and now in {self.name}-{stamp}: {said}")
        return {}

    def _place(self, cell: Cell) -> Rows:
        rows: Rows = self.data["torch"] if cell.model is None else self.data["models"].setdefault(cell.model.name, {})
        return rows

    def rows_of(self, cell: Cell) -> Rows:
        """The rows of a cell so far, by label."""
        return {label: row for label, row in self._place(cell).items() if row["cell"] == cell.label}

    def _is_of(self, row: Row, cell: Cell) -> bool:
        """Whether a row was measured on the files there are; those that are not there now are not made for this."""
        for what, made_of in row["files"].items():
            file = known_file(cell.model, what) if cell.model is not None else None
            if file is not None and digest(file) != made_of:
                return False
        return True

    def finished(self, cell: Cell) -> bool:
        """Whether a cell need not be measured: it was, on these files, and the engines it compared are the same."""
        rows = self.rows_of(cell)
        if not rows or self.failed(cell) or not all(self._is_of(row, cell) for row in rows.values()):
            return False
        return all(row["of"] == self._engines(cell) for row in rows.values())

    def failed(self, cell: Cell) -> bool:
        """Whether a cell, or a batch of it, failed or was not finished."""
        return any("error" in row for row in self.rows_of(cell).values())

    def done(self, cell: Cell) -> list[str]:
        """Those of the cells that a cell takes engines of that have no error."""
        return list(self._engines(cell))

    def _engines(self, cell: Cell) -> dict[str, str]:
        """When the engines were measured that a cell takes."""
        same = {c.label: c for c in self.cells if c.model is cell.model and c.label in cell.of}
        good = [c for c in same.values() if self.rows_of(c) and not self.failed(c)]
        return {c.label: next(iter(self.rows_of(c).values()))["at"] for c in good}

    def begin(self, cell: Cell) -> None:
        """Note that a cell has begun, so that one that ends the process is known, and comes last the next time."""
        self._place(cell)[cell.label] = {"cell": cell.label, "files": {}, "of": {}, "error": "begun and not finished"}
        self.write()

    def put(self, cell: Cell, rows: Rows) -> None:
        """Keep the rows of a cell in place of those it had."""
        files = {}
        for what in dict.fromkeys(("dense", *cell.files)):
            file = known_file(cell.model, what) if cell.model is not None else None
            files |= {what: digest(file)} if file is not None else {}
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        about = {"cell": cell.label, "files": files, "of": self._engines(cell), "at": at}
        place = self._place(cell)
        for label in self.rows_of(cell):
            del place[label]
        place |= {label: {**about, **row} for label, row in rows.items()}
        self.write()

    def write(self) -> None:
        """Write all of it, in the order of the cells, with what is left to measure."""
        self.data["left"] = [c.name for c in self.chosen if not self.finished(c) and not self.failed(c)]
        order = {cell.label: k for k, cell in enumerate(self.cells)}
        for name, rows in self.data["models"].items():
            ordered = sorted(rows.items(), key=lambda item: order.get(item[1]["cell"], len(order)))
            self.data["models"][name] = dict(ordered)
        table.write(self.name, self.page(), self.data, self.about, self.folder)

    def page(self) -> str:
        """The page."""
        setting = self.data["setting"]
        runs = "" if len(self.data["runs"]) == 1 else f", in {len(self.data['runs'])} runs"
        parts = ["# On a GPU", f"{setting['device']['name']}, {setting['versions'][0]}{runs}"]
        parts += [_table(self.data["models"]), _ABOUT]
        parts += [row.get("text") or f"{PRODUCT}: {row['error']}" for row in self.data["torch"].values()]
        if self.data["left"]:
            parts.append(
                "\n".join(["Left to measure, by the same command:", "", *(f"- {name}" for name in self.data["left"])])
            )
        return "\n\n".join(parts)


def _table(found: dict[str, Rows]) -> str:
    rows = [["model", "variant", *_HEAD]]
    for name, variants in found.items():
        ratios = {label: r for row in variants.values() for label, r in row.get("ratios", {}).items()}
        for what, row in variants.items():
            ratio = row.get("ratio") or ratios.get(what)
            if "error" in row:
                rows.append([name, what, row["error"].splitlines()[0][:80].replace("|", "/"), *[""] * 6])
            elif "ratios" not in row:  # those are shown with the engines they are of
                shown = {k: "" if row.get(k) is None else f"{row[k]:.3g}" for k in _NUMBERS}
                shown["ratio"] = "{:.3f} ({:.3f} .. {:.3f})".format(*ratio) if ratio else ""
                columns = ("device_ms", "host_ms", "rate", "ratio", "sparse_layers", "error_of_outputs")
                rows.append([name, what, *(shown[k] for k in columns), _shown(row.get("after"))])
    return table.markdown(rows, right=(2, 3, 4, 5, 6, 7))


def _shown(state: Row | None) -> str:
    """Clock, power and temperature after a measurement."""
    if state is None or "missing" in state:
        return ""
    return ", ".join("?" if state[k] is None else f"{state[k]:.0f}" for k in ("clock", "power", "temperature"))
