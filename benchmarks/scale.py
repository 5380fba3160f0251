"""How the cost of the analysis grows: processor time of load, find_groups, score and plan against nodes and parameters.

    python benchmarks/scale.py                     # layers 2 ... 200, widths 256 ... 8192, 50,000 nodes; exponents
    python benchmarks/scale.py --nodes 50000       # one graph of so many nodes alone

A layer is a residual block of 10 nodes: a normalisation, two linear layers with biases and activations, heads apart and
joined, a sum. Exponents are slopes of log time against log size over the upper half of the sizes, where the fixed part
no longer shows.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import table
from onnx import TensorProto, helper, numpy_helper

from exporter import find_groups, load, make_plan, score
from exporter.atomic import write_text

LAYERS = (2, 5, 10, 20, 50, 100, 200)
WIDTHS = (256, 512, 1024, 2048, 4096, 8192)
NODES_PER_LAYER = 10
MANY = 50_000
"""Nodes of the one large graph."""

COLOURS = {"analysis": "#0072b2", "all": "#d55e00"}
_HEADS = 4


def network(layers: int, width: int, folder: Path) -> Path:
    """Write a stack of residual blocks; its weights are zeros of a sparse data file, which take no room on the disk."""
    tensors: list[TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    offset = 0

    def weight(name: str, *shape: int) -> str:
        nonlocal offset
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        length = 2 * int(np.prod(shape))
        for key, value in (("location", "weights"), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        offset += length
        tensors.append(tensor)
        return name

    def op(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    tensors.append(numpy_helper.from_array(np.array([0, 8, _HEADS, width // _HEADS]), "apart"))
    tensors.append(numpy_helper.from_array(np.array([0, 8, width]), "joined"))
    x = op("MatMul", ["x", weight("first", 16, width)], "stream")
    for k in range(layers):
        p = f"layers.{k}"
        scale, shift = weight(f"{p}.scale", width), weight(f"{p}.shift", width)
        normed = op("LayerNormalization", [x, scale, shift], f"{p}.normed", axis=-1)
        up = op("MatMul", [normed, weight(f"{p}.up.weight", width, width)], f"{p}.up")
        heads = op("Reshape", [op("Add", [up, weight(f"{p}.bias", width)], f"{p}.biased"), "apart"], f"{p}.heads")
        turned = op("Transpose", [op("Relu", [heads], f"{p}.relu")], f"{p}.turned", perm=[0, 2, 1, 3])
        back = op("Reshape", [op("Transpose", [turned], f"{p}.back", perm=[0, 2, 1, 3]), "joined"], f"{p}.flat")
        down = op("MatMul", [back, weight(f"{p}.down.weight", width, width)], f"{p}.down")
        x = op("Add", [x, down], f"{p}.stream")
    op("MatMul", [x, weight("last", width, 16)], "y")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, ["batch", 8, 16]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "scale", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with (folder / "weights").open("wb") as stream:
        stream.truncate(offset)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def costs(layers: int, width: int) -> dict[str, float]:
    """Processor seconds of each step."""
    found: dict[str, float] = {"layers": layers, "width": width}

    def timed(name: str, work: Callable[[], object]) -> object:
        started = time.process_time()
        result = work()
        found[name] = time.process_time() - started
        return result

    with tempfile.TemporaryDirectory() as folder:
        path = network(layers, width, Path(folder))
        graph = timed("load", lambda: load(path))
        groups = timed("find_groups", lambda: find_groups(graph))
        scores = timed("score", lambda: score(groups))
        timed("plan", lambda: make_plan(groups, scores, macs=0.5))
        found["nodes"] = len(graph.nodes)
        found["parameters"] = graph.parameters
        found["analysis"] = found["load"] + found["find_groups"]
        found["all"] = found["analysis"] + found["score"] + found["plan"]
    return found


def exponent(rows: list[dict[str, float]], size: str, cost: str) -> float:
    """Slope of log cost against log size over the upper half of the sizes."""
    upper = rows[len(rows) // 2 - 1 :]
    return float(np.polyfit(np.log([r[size] for r in upper]), np.log([r[cost] for r in upper]), 1)[0])


def plot(panels: list[tuple[str, str, list[dict[str, float]]]]) -> str:
    """An SVG document: seconds of the analysis and of all steps against a size, both axes in decades, side by side.

    Args:
        panels: of each the name of the size, what to write above it, and the rows.
    """
    width, height, margin = 380, 300, 50
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{len(panels) * width}" height="{height}" font-size="12">']
    for number, (size, title, rows) in enumerate(panels):
        points = [(math.log10(r[size]), math.log10(r[cost]), cost) for cost in COLOURS for r in rows]
        low_x, low_y = (math.floor(min(p[k] for p in points)) for k in (0, 1))
        high_x, high_y = (math.ceil(max(p[k] for p in points)) for k in (0, 1))

        def at(x: float, y: float, left: float = number * width + margin, box: tuple = (low_x, high_x, low_y, high_y)):
            across = (x - box[0]) / max(box[1] - box[0], 1)
            up = (y - box[2]) / max(box[3] - box[2], 1)
            return left + across * (width - 1.5 * margin), height - margin - up * (height - 2 * margin)

        parts.append(f'<text x="{at(low_x, 0)[0]:.0f}" y="20">{title}</text>')
        for x in range(low_x, high_x + 1):
            (a, b), (_, top) = at(x, low_y), at(x, high_y)
            parts.append(f'<path d="M{a:.1f} {b:.1f}V{top:.1f}" stroke="#ddd"/>')
            parts.append(f'<text x="{a:.1f}" y="{b + 18:.1f}" text-anchor="middle">{10**x:,}</text>')
        for y in range(low_y, high_y + 1):
            (a, b), (right, _) = at(low_x, y), at(high_x, y)
            parts.append(f'<path d="M{a:.1f} {b:.1f}H{right:.1f}" stroke="#ddd"/>')
            parts.append(f'<text x="{a - 6:.1f}" y="{b + 4:.1f}" text-anchor="end">{10.0**y:g} s</text>')
        for k, (cost, colour) in enumerate(COLOURS.items()):
            line = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y, which in points if which == cost)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
            name = "load and find_groups" if cost == "analysis" else "with score and plan"
            parts.append(f'<text x="{at(low_x, 0)[0] + 8:.0f}" y="{52 + 16 * k}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Measure, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, help="measure one graph of about so many nodes")
    parser.add_argument("--width", type=int, default=64, help="of its layers, and of the stacks of many layers")
    parser.add_argument("--largest-width", type=int, default=WIDTHS[-1])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.nodes:
        print(json.dumps(costs(options.nodes // NODES_PER_LAYER, options.width), indent=1))
        return
    about = table.environment()
    by_layers = [costs(n, options.width) for n in LAYERS]
    by_width = [costs(4, w) for w in WIDTHS if w <= options.largest_width]
    exponents = {
        "analysis against nodes": exponent(by_layers, "nodes", "analysis"),
        "all steps against nodes": exponent(by_layers, "nodes", "all"),
        "analysis against parameters": exponent(by_width, "parameters", "analysis"),
        "all steps against parameters": exponent(by_width, "parameters", "all"),
    }
    rows = [*by_layers, *by_width, costs(MANY // NODES_PER_LAYER, options.width)]
    panels = [("nodes", "seconds against nodes", by_layers), ("parameters", "seconds against parameters", by_width)]
    write_text(options.out / "scale.svg", plot(panels))
    table.publish("scale", page(rows, exponents), {"rows": rows, "exponents": exponents}, about, options.out)


def page(rows: list[dict[str, float]], exponents: dict[str, float]) -> str:
    """Every size and what it took, as Markdown."""
    sizes, times = ("layers", "width", "nodes", "parameters"), ("load", "find_groups", "score", "plan", "all")
    lines = [[*sizes, *times]]
    lines += [[*(f"{row[k]:,.0f}" for k in sizes), *(f"{row[k]:.2f}" for k in times)] for row in rows]
    return "\n\n".join(
        [
            "# Cost of the analysis",
            "Processor seconds. Stacks of residual blocks of 10 nodes each, in fp16.",
            table.markdown(lines, right=tuple(range(len(lines[0])))),
            "\n".join(f"- exponent of {name}: {value:.2f}" for name, value in exponents.items()),
            "![seconds against nodes and parameters](scale.svg)",
        ]
    )


if __name__ == "__main__":
    main()
