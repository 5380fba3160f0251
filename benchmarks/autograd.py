"""Files of others as differentiable torch modules: agreement with ONNX Runtime, gradients, time.

    python benchmarks/autograd.py --data DIR

DIR/onnx/*.onnx are tried on seeded inputs, or on DIR/inputs/NAME.npz where there is one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import table
import torch

from exporter.autograd import to_torch, write_back
from exporter.autograd.dtypes import to_array, to_tensor
from exporter.errors import SecateurError
from exporter.model_file import load
from exporter.normalise import input_specs, serialize_with_data
from runtime import feeds
from runtime.backends import SessionOptions, open_session
from runtime.errors import RunError
from runtime.samples import load_samples

HEAD = """# Files of others in torch

Each file becomes a torch module (`exporter.autograd.to_torch`) and runs on the inputs that ONNX Runtime gets: the
largest difference of any output, relative to its standard deviation; how many of its weights get a finite gradient from
the sum of the squared outputs; time of one forward pass relative to ONNX Runtime, one thread; whether writing the
weights back changes no byte. Where the two differ by more than 1e-3 both are compared with the module in float64: there
the file itself loses its digits on these inputs.
"""


def given(path, graph, data):
    """Inputs: recorded ones where there are some."""
    recorded = data / "inputs" / f"{path.stem}.npz"
    if recorded.is_file():
        samples = load_samples(recorded, input_specs(graph.model), limit=2)
        return next(iter(samples.batches(2)))
    session = open_session(serialize_with_data(graph.model, graph.folder), options=SessionOptions(optimize=False))
    found = feeds.seeded(session.inputs, graph.binding.shapes, 0, feeds.constraints(graph.model.graph))
    return {n: np.ones_like(v) if n == "attention_mask" else v for n, v in found.items()}


def fastest(run, times=3):
    best = np.inf
    for _ in range(times):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best


def difference(got, want):
    got, want = got.astype(np.float64), np.asarray(want).astype(np.float64)
    if got.shape != want.shape:
        return np.inf
    scale = max(want.std(), 1e-3 * np.abs(want).max(initial=0), 1e-6)
    return float(np.abs(got - want).max(initial=0) / scale)


def worst_of(found, want):
    return max(
        difference(to_array(found[name]) if isinstance(found[name], torch.Tensor) else found[name], value)
        for name, value in want.items()
    )


def row(path, data):
    graph = load(path)
    inputs = given(path, graph, data)
    session = open_session(serialize_with_data(graph.model, graph.folder), options=SessionOptions(threads=1))
    want = session.run(inputs)
    module = to_torch(graph)
    values = {name: to_tensor(value) for name, value in inputs.items()}
    with torch.no_grad():
        found = module.run(values)
        ours = fastest(lambda: module.run(values))
    worst = worst_of(found, want)
    text = f"{worst:.0e}"
    if worst > 1e-3:
        wide = {n: v.double() if v.is_floating_point() else v for n, v in values.items()}
        try:
            with torch.no_grad():
                exact = {n: to_array(v) for n, v in to_torch(graph).double().run(wide).items()}
            text += f" (torch {worst_of(found, exact):.0e}, ONNX Runtime {worst_of(want, exact):.0e} from float64)"
        except SecateurError:  # the graph itself casts to float32
            text += " (casts of its own: no float64)"
    outputs = [v.float().square().sum() for v in module.run(values).values() if v.requires_grad]
    if outputs:
        sum(outputs).backward()
    finite = sum(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in module.weights.values())
    same = write_back(module, graph).model.SerializeToString() == graph.model.SerializeToString()
    ratio = ours / fastest(lambda: session.run(inputs))
    return [
        str(len(graph.nodes)),
        text,
        f"{finite} of {len(module.weights)}",
        f"{ratio:.1f}",
        "exact" if same else "differs",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where onnx/ and inputs/ are")
    parser.add_argument("--only", default="", metavar="TEXT", help="files whose names hold this; nothing is written")
    parser.add_argument("--results", type=Path, default=table.RESULTS, metavar="DIR", help="where the table goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = table.environment()
    rows = [["file", "nodes", "largest difference", "weights with a finite gradient", "time", "write-back"]]
    for path in sorted((options.data / "onnx").glob("*.onnx")):
        if options.only not in path.stem:
            continue
        try:
            cells = row(path, options.data)
        except (SecateurError, RunError) as error:
            cells = ["", f"{type(error).__name__}: {str(error).splitlines()[0][:140]}", "", "", ""]
        rows.append([path.stem, *cells])
        print(" | ".join(rows[-1]), flush=True)
    if not options.only:
        page = f"{HEAD}\n{table.markdown(rows, right=(1, 3, 4))}\n"
        table.publish("autograd", page, {"rows": rows[1:]}, about, options.results)


if __name__ == "__main__":
    main()
