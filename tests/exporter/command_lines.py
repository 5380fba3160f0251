"""A short command line for every command, and for those whose result has several forms; and the files they take."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx

from exporter.cli import main
from tests.exporter.trained import classifier, drawn

_MEASURED = "--seconds 0.05 --threads 1"
_CALIB = "--calib d.npz --calib-samples 32"

LINES = {
    "inspect": "inspect m.onnx",
    "inspect of weights": "inspect m.onnx --sparsity",
    "advise": "advise m.onnx --seconds 0.05",
    "advise with data": "advise m.onnx --no-measure --calib d.npz",
    "sensitivity": f"sensitivity m.onnx {_CALIB} --no-cache --at 50 --plot s.svg",
    "prune": "prune m.onnx -o p1.onnx --ratio 0.5",
    "prune and fit": f"prune m.onnx -o p2.onnx --macs 0.6 {_CALIB} --no-cache",
    "prune in rounds": f"prune m.onnx -o p3.onnx --macs 0.6 {_CALIB} --no-cache --steps 2",
    "prune until it drops": f"prune m.onnx -o p4.onnx --max-drop 20% {_CALIB} --no-cache",
    "prune blocks and measure": "prune res.onnx -o p5.onnx --layers 1 --measure",
    "prune the interface": "prune m.onnx -o p6.onnx --ratio 0.5 --io y:1 --dry-run",
    "sparsify": "sparsify m.onnx -o s1.onnx",
    "sparsify and fit": f"sparsify m.onnx -o s2.onnx {_CALIB} --permute",
    "sparsify a share": "sparsify m.onnx -o s3.onnx --pattern 0.8 --storage sparse",
    "tune": "tune m.onnx -o t.onnx --data d.npz --labels label --steps 3",
    "quantize": f"quantize m.onnx -o q1.onnx --precision int8 {_CALIB} --seconds 0.05 --max-drop 50%",
    "quantize weights": "quantize m.onnx -o q2.onnx --precision int8-weight --seconds 0",
    "verify": "verify m.onnx half.onnx --plan half.json",
    "verify a pattern": "verify sparse.onnx --pattern 2:4",
    "eval": "eval m.onnx --data d.npz --metric top1",
    "eval against another": "eval half.onnx --data d.npz --metric agreement --reference m.onnx",
    "bench": f"bench m.onnx half.onnx {_MEASURED} --streams 2 --batch 1,2",
    "compare": f"compare m.onnx half.onnx {_MEASURED}",
    "compare layers": f"compare m.onnx half.onnx {_MEASURED} --layers 2 --fail-if-slower 900%",
    "profile": f"profile m.onnx {_MEASURED} --trace t.json",
    "probe": "probe --threads 1",
    "lint": f"lint odd.onnx {_MEASURED}",
    "align": f"align odd.onnx -o a.onnx {_MEASURED} --to 8",
    "backends": "backends",
    "doctor": "doctor",
    "convert": "convert small.py:network -o c1.onnx --input x:2x8",
    "convert to half": "convert m.onnx -o c2.onnx --precision fp16",
    "convert and fix": "convert m.onnx -o c3.onnx --fix x:1x8",
    "build": "build m.onnx -o e1.engine --backend tensorrt-rtx",
    "build in half": "build m.onnx -o e2.engine --backend tensorrt-rtx --precision fp16 --shape x:1x8..2x8..4x8",
    "run": "run r.yaml --fresh",
    "sweep": "sweep s.yaml --fresh --jobs 1 --plot front.svg",
    "schema": "schema plan",
    "completion": "completion bash",
}
"""By name, whose first word is the command."""

SAYS_A_DOCUMENT = ("schema", "completion")
"""Commands that print a file for others, and nothing else: they have no ``--json``."""

BY_CHANCE = ("align",)
"""What succeeds only where a measurement says so; latency/test_commands.py has it on a model where it does."""

NEEDS = {"tune": "torch", "convert": "torch", "build": "tensorrt_rtx"}
ABLE = {
    name: line
    for name, line in LINES.items()
    if name not in BY_CHANCE
    and importlib.util.find_spec(NEEDS.get(name if "convert" in name else name.split()[0], "json")) is not None
}
"""Those that can run here."""


def residual() -> onnx.ModelProto:
    """``x[N, 8]``, two residual blocks, ``y[N, 4]``."""
    from tests.onnx_builder import build, node, weights

    blocks = [
        [node("MatMul", f"h{k} u{k}", f"a{k}"), node("Relu", f"a{k}", f"r{k}"), node("MatMul", f"r{k} d{k}", f"b{k}"),
         node("Add", f"h{k} b{k}", f"h{k + 1}")]
        for k in range(2)
    ]  # fmt: skip
    nodes = [node("MatMul", "x first", "h0"), *blocks[0], *blocks[1], node("MatMul", "h2 last", "y")]
    shapes = {"first": (8, 32), "last": (32, 4)} | {f"u{k}": (32, 64) for k in range(2)}
    return build(nodes, {"x": ["N", 8]}, ["y"], weights(**shapes, **{f"d{k}": (64, 32) for k in range(2)}))


def files(folder: Path) -> None:
    """Write what the lines read; ``folder`` is the working directory."""
    onnx.save(classifier(), folder / "m.onnx")
    onnx.save(classifier(30, 47), folder / "odd.onnx")
    onnx.save(residual(), folder / "res.onnx")
    x, label = drawn(200, 1)
    np.savez(folder / "d.npz", x=x, label=label)
    (folder / "small.py").write_text("import torch\n\n\ndef network():\n    return torch.nn.Linear(8, 4)\n")
    recipe = "model: m.onnx\neval: {data: d.npz, metric: top1}\nsteps:\n  - prune: {ratio: 0.5}\n"
    (folder / "r.yaml").write_text(recipe)
    sweep = (
        "models: [m.onnx]\nbudgets: [0.5]\neval: {data: d.npz, metric: top1}\n"
        "methods:\n  l2:\n    - prune: {macs: $budget}\n"
    )
    (folder / "s.yaml").write_text(sweep)
    assert main(["prune", "m.onnx", "-o", "half.onnx", "--ratio", "0.5", "--save-plan", "half.json", "-q"]) == 0
    assert main(["sparsify", "m.onnx", "-o", "sparse.onnx", "-q"]) == 0
