"""The onnx package's node tests in torch: how many pass, fail and are left out, and why.

    python benchmarks/node_tests.py

Each case is run through ``exporter.autograd`` and its results are compared with those that the onnx package states, as
tests/exporter/autograd/test_standard.py does.
"""

from __future__ import annotations

import argparse
import collections
import sys
from pathlib import Path

import table

sys.path.insert(0, str(table.ROOT))

from exporter.errors import SecateurError
from tests.exporter.autograd.standard import cases, fault, reason

HEAD = """# onnx's node tests in torch

Every node test of the onnx package, through `exporter.autograd`: {passed:,} of {count:,} pass ({share:.2%}), {failed}
fail, {left} are left out. Those whose names hold `_expanded` are the same operators written out as functions: without
them {plain_passed:,} of {plain:,} pass ({plain_share:.2%}).
"""


def outcome(name, case):
    """Say what became of a case."""
    why = reason(name)
    if why is not None:
        return "left out", why
    try:
        found = fault(*case)
    except (SecateurError, RuntimeError, AttributeError) as error:
        found = str(error).splitlines()[0]
    return ("failed", f"{name}: {found}") if found else ("passed", "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=table.RESULTS, metavar="DIR", help="where the table goes")
    options = parser.parse_args()
    about = table.environment()
    found = {name: outcome(name, case) for name, case in cases().items()}
    plain = [state for name, (state, _) in found.items() if "_expanded" not in name]
    states = collections.Counter(state for state, _ in found.values())
    head = HEAD.format(
        passed=states["passed"], count=len(found), share=states["passed"] / len(found), failed=states["failed"],
        left=states["left out"], plain_passed=plain.count("passed"), plain=len(plain),
        plain_share=plain.count("passed") / len(plain),
    )  # fmt: skip
    reasons = collections.Counter(row for row in found.values() if row[0] != "passed")
    rows = [["", "cases", "why"], *([state, str(n), why] for (state, why), n in reasons.most_common())]
    data = {"counts": dict(states), "not_passed": {n: row for n, row in found.items() if row[0] != "passed"}}
    table.publish("node_tests", f"{head}\n{table.markdown(rows, right=(1,))}", data, about, options.results)
    return 1 if states["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
