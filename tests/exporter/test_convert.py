"""PyTorch to ONNX: what is written computes the same as the module; what cannot be, is not written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from exporter import GoalError, ModelError
from exporter.cli import main
from exporter.convert import convert
from exporter.torch_source import load_module, parse_dynamic, parse_inputs

needs_torch = pytest.mark.skipif(
    find_spec("torch") is None or find_spec("onnxscript") is None,
    reason='needs torch and onnxscript: pip install "secateur[torch]"',
)

MODULES = '''
import torch
from torch import nn
from torch.nn import functional as F

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.drop = nn.Dropout(0.5)
    def forward(self, x):
        return self.down(self.drop(F.gelu(self.up(x))))

class TwoInputs(nn.Module):
    def forward(self, ids, mask):
        return {"product": ids.to(mask.dtype) * mask, "rest": (mask.sum(-1), None)}

class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 4))
    def forward(self, x):
        if x.shape[1] > 8:
            raise ValueError("too long")
        return x + self.table[: x.shape[1]]

class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

class Unknown(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x)

class Squeezed(nn.Module):
    def forward(self, x):
        y = x.clone()
        y[:, 0] = x.sum(1, keepdim=True).squeeze()
        return y

class OneSize(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1) + torch.ones(2, 6)

class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)

class Baked(nn.Module):
    """Exported as a multiplication by 2, which is right at batch 2 alone."""
    def forward(self, x):
        return x * (2 if torch.compiler.is_exporting() else x.shape[0])

class NoTensor(nn.Module):
    def forward(self, x):
        return 1

ready = nn.Linear(6, 2)

def needs_arguments(width): return nn.Linear(width, width)
def not_a_module(): return 3
def fails(): raise RuntimeError("no weights here")
'''


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    """A folder with modules to convert."""
    (tmp_path / "modules.py").write_text(MODULES)
    (tmp_path / "broken.py").write_text("import there_is_no_such_package\n")
    (tmp_path / "text.pt").write_text("not weights")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def files():
    return {path for path in Path().rglob("*") if "__pycache__" not in path.parts}


def run(file, feeds):
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, feeds)


def axes(values):
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


CONVERSIONS = {
    "fixed": ("Small", ["x:2x6"], [], ["y"], {"x": [2, 6]}, {"y": [2, 6]}),
    "dynamic batch": ("Small", ["x:3x6"], ["x:0=batch"], ["y"], {"x": ["batch", 6]}, {"y": ["batch", 6]}),
    "dynamic batch of one": ("Small", ["x:1x6"], ["x:0=n"], ["y"], {"x": ["n", 6]}, {"y": ["n", 6]}),
    "two inputs, nested outputs": (
        "TwoInputs",
        ["ids:2x5:int64", "mask:2x5:float64"],
        ["ids:0=batch", "mask:0=batch", "ids:1=seq", "mask:1=seq"],
        ["product", "sum"],
        {"ids": ["batch", "seq"], "mask": ["batch", "seq"]},
        {"product": ["batch", "seq"], "sum": ["batch"]},
    ),
    "twice the size is too long": (
        "Positions",
        ["x:1x7x4"],
        ["x:1=seq"],
        ["y"],
        {"x": [1, "seq", 4]},
        {"y": [1, "seq", 4]},
    ),
    "a module that is there already": ("ready", ["x:2x6"], [], ["y"], {"x": [2, 6]}, {"y": [2, 2]}),
}


def conversion_cases():
    """Each export takes a second or two, and test_matches_torch_at_any_batch makes one of these."""
    for name, row in CONVERSIONS.items():
        yield pytest.param(row, marks=pytest.mark.slow if name == "dynamic batch" else (), id=name)


@needs_torch
@pytest.mark.parametrize("row", list(conversion_cases()))
def test_converts(row, capsys):
    name, inputs, dynamic, outputs, wanted_inputs, wanted_outputs = row
    arguments = ["convert", f"modules.py:{name}", "-o", "out.onnx", "--quiet"]
    for option, values in (("--input", inputs), ("--dynamic", dynamic), ("--output-name", outputs)):
        arguments += [part for value in values for part in (option, value)]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"out\.onnx: \S+ ?k?B, opset \d+, max relative error \S+ against PyTorch\n", out)
    assert err == ""
    model = onnx.load("out.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert axes(model.graph.input) == wanted_inputs
    assert axes(model.graph.output) == wanted_outputs
    run("out.onnx", {k: v.numpy() for k, v in parse_inputs(inputs).items()})


@needs_torch
def test_matches_torch_at_any_batch(tmp_path):
    import torch

    module = load_module("modules.py:Small").train()
    result = convert(module, {"x": torch.randn(2, 6)}, tmp_path / "out.onnx", dynamic={"x": {0: "batch"}})
    assert module.training
    assert module.drop.training
    assert result.path == tmp_path / "out.onnx"
    assert result.max_relative_error < 1e-5
    module.eval()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 6)
        with torch.no_grad():
            want = module(x).numpy()
        (got,) = run(result.path, {"x": x.numpy()})
        assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


@needs_torch
def test_bfloat16_inside(tmp_path):
    """Its rounding shows at outputs of other types too."""
    import torch

    class Partly(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(6, 6).to(torch.bfloat16)

        def forward(self, x):
            return self.inner(x.to(torch.bfloat16)).to(torch.float32)

    torch.manual_seed(0)
    result = convert(Partly().eval(), {"x": torch.randn(64, 6)}, tmp_path / "m.onnx")
    assert 1e-3 < result.max_relative_error < 0.08


@needs_torch
def test_bfloat16(tmp_path):
    """Compared in 32 bits: ONNX Runtime does not compute in it on a CPU."""
    import torch

    module = load_module("modules.py:Small").to(torch.bfloat16)
    x = torch.randn(2, 6).to(torch.bfloat16)
    assert convert(module, {"x": x}, tmp_path / "out.onnx", dynamic={"x": {0: "batch"}}).max_relative_error < 0.03
    model = onnx.load(tmp_path / "out.onnx")
    assert {t.data_type for t in model.graph.initializer} == {onnx.TensorProto.BFLOAT16}


@needs_torch
def test_a_file_that_fails_at_a_size_of_one_is_written_with_a_note(capsys):
    line = ["convert", "modules.py:Squeezed", "-o", "out.onnx", "--input", "x:2x6", "--dynamic", "x:0=batch"]
    assert main([*line, "--json", "told.json", "-q"]) == 0
    said = "with batch 1 the file fails, though the module does not: "
    assert f"\nnote: {said}" in capsys.readouterr().out
    (note,) = json.loads(Path("told.json").read_text())["notes"]
    assert note.startswith(said)
    assert "export it with a size of 1" in note
    with pytest.raises(Exception, match="axis"):
        run("out.onnx", {"x": np.ones((1, 6), np.float32)})


@needs_torch
def test_names_stay_and_paths_do_not():
    main(["convert", "modules.py:Small", "-o", "out.onnx", "--input", "x:2x3x6", "--opset", "18", "-q"])
    model = onnx.load("out.onnx")
    assert next(o.version for o in model.opset_import if not o.domain) == 18
    names = {t.name: tuple(t.dims) for t in model.graph.initializer}
    # a product of more than two axes takes its weight transposed: (in, out)
    assert names.items() >= {"up.kernel": (6, 8), "up.bias": (8,), "down.kernel": (8, 6), "down.bias": (6,)}.items()
    assert str(Path.cwd()).encode() not in Path("out.onnx").read_bytes()


@needs_torch
def test_weights():
    import torch

    module = load_module("modules.py:Small")
    torch.save(module.state_dict(), "small.pt")
    arguments = ["convert", "modules.py:Small", "-o", "out.onnx", "--input", "x:2x6", "--quiet"]
    assert main([*arguments, "--weights", "small.pt"]) == 0
    x = torch.randn(2, 6)
    with torch.no_grad():
        want = module.eval()(x).numpy()
    (got,) = run("out.onnx", {"x": x.numpy()})
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


@needs_torch
def test_safetensors():
    torch_files = pytest.importorskip("safetensors.torch", reason="needs safetensors: pip install safetensors")
    module = load_module("modules.py:Small")
    torch_files.save_file(module.state_dict(), "small.safetensors")
    arguments = ["convert", "modules.py:Small", "-o", "out.onnx", "--input", "x:2x6", "--quiet"]
    assert main([*arguments, "--weights", "small.safetensors"]) == 0
    held = onnx.numpy_helper.to_array(next(t for t in onnx.load("out.onnx").graph.initializer if t.name == "up.bias"))
    assert np.array_equal(held, module.up.bias.detach().numpy())


def convert_small(*more):
    return ["convert", "modules.py:Small", "-o", "out.onnx", "--input", "x:2x6", *more]


def convert_module(name, *more):
    return ["convert", f"modules.py:{name}", "-o", "out.onnx", "--input", "x:2x6", *more]


FAULTS = {
    "no colon": (["convert", "modules.py", "-o", "out.onnx", "--input", "x:2x6"], 2, "path/to/file.py:callable"),
    "no file": (["convert", "gone.py:Small", "-o", "out.onnx", "--input", "x:2x6"], 2, "gone.py: no such file"),
    "no package": (["convert", "gone.sub:Small", "-o", "out.onnx", "--input", "x:2x6"], 2, "No module named 'gone'"),
    "broken file": (
        ["convert", "broken.py:Small", "-o", "out.onnx", "--input", "x:2x6"],
        2,
        "there_is_no_such_package",
    ),
    "no callable": (convert_module("Smal"), 2, "no callable 'Smal'. It has: Baked, Branch"),
    "needs arguments": (convert_module("needs_arguments"), 2, "called without arguments"),
    "not a module": (convert_module("not_a_module"), 2, "returned int, not a torch.nn.Module"),
    "fails": (convert_module("fails"), 2, "RuntimeError: no weights here"),
    "wrong input": (
        ["convert", "modules.py:Small", "-o", "out.onnx", "--input", "x:2x7"],
        2,
        "does not run on x [2, 7]",
    ),
    "no tensor": (convert_module("NoTensor"), 2, "returns no tensor"),
    "no weights": (convert_small("--weights", "gone.pt"), 2, "gone.pt: no such file"),
    "not weights": (convert_small("--weights", "text.pt"), 2, "not a file of tensors"),
    "dynamic of no input": (convert_small("--dynamic", "y:0=batch"), 2, "no such input. Inputs: x."),
    "dynamic of no axis": (convert_small("--dynamic", "x:2=batch"), 2, "axes 0 to 1"),
    "one symbol, two sizes": (convert_small("--dynamic", "x:0=n", "--dynamic", "x:1=n"), 2, "6 here, 2 elsewhere"),
    "too many output names": (convert_small("--output-name", "a", "--output-name", "b"), 2, "returns 1 tensor"),
    "output named as input": (convert_small("--output-name", "x"), 2, "a name of its own"),
    "no such opset": (convert_small("--opset", "3"), 2, "--opset 3"),
    "no folder": (["convert", "modules.py:Small", "-o", "gone/out.onnx", "--input", "x:2x6"], 2, "no folder"),
    "output is a folder": (["convert", "modules.py:Small", "-o", ".", "--input", "x:2x6"], 2, "is a folder"),
    "runs at one size": (convert_module("OneSize", "--dynamic", "x:0=batch"), 2, "no other size of batch"),
    "branch on values": (convert_module("Branch"), 3, "return x if x.sum() > 0 else -x"),
    "unknown operator": (["convert", "modules.py:Unknown", "-o", "out.onnx", "--input", "x:3x3"], 3, "linalg_eig"),
    "random numbers": (convert_module("Noise"), 1, "differs from the module on x [2, 6]"),
    "wrong at another size": (convert_module("Baked", "--dynamic", "x:0=batch"), 1, "on x [4, 6]"),
}


FOUND_LATE = {"no such opset", "branch on values", "unknown operator", "wrong at another size"}
"""Faults that only exporting finds, which takes a second or two: 'make test' has them where something can be lost."""


def fault_cases():
    for place, before in (("new", None), ("replacing", b"what was there")):
        for name in FAULTS:
            slow = name in FOUND_LATE and before is None
            yield pytest.param(name, before, marks=pytest.mark.slow if slow else (), id=f"{place}-{name}")


@needs_torch
@pytest.mark.parametrize(("name", "before"), list(fault_cases()))
def test_faults(name, before, capsys):
    arguments, code, text = FAULTS[name]
    if before is not None:
        Path("out.onnx").write_bytes(before)
    there = files()
    assert main([*arguments, "--quiet"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("secateur: ")
    assert text in err
    assert len(err.splitlines()) <= 4
    assert files() == there
    assert before is None or Path("out.onnx").read_bytes() == before


@needs_torch
def test_what_torch_says_and_what_to_try(monkeypatch):
    """A reason that starts on the second line; inputs by name are those of a folder, which no --dynamic named."""
    import torch

    from exporter.torch_export import How, export

    def refuse(*_, **__):
        raise ValueError("Found the following conflicts:\n\n- of size 16\n- of others")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    inputs = {"ids": torch.ones(2, 16, dtype=torch.int64), "x": torch.ones(2, 3)}
    for by_name, hint in ((True, "--input ids:2x16:int64 --input x:2x3:float32"), (False, "no --dynamic")):
        with pytest.raises(ModelError) as caught:
            export(torch.nn.Identity(), inputs, How({"ids": {0: "batch"}}, None, None, by_name, False))
        assert "ValueError: Found the following conflicts: - of size 16\n" in str(caught.value)
        assert f"Try fixed sizes ({hint}), another" in str(caught.value)


@needs_torch
def test_weights_that_do_not_fit(capsys):
    import torch

    state = load_module("modules.py:Small").state_dict()
    renamed = {f"module.{k}": v for k, v in state.items()}
    for held, texts in (
        (renamed, ["missing: up.weight, up.bias, down.weight, ... 1 more", "unexpected: module.up.weight"]),
        ({**state, "up.bias": torch.zeros(9)}, ["up.bias is [9] in the file, [8] in the module"]),
        ({"epoch": 3, "model": state}, ["not a state dict; it holds epoch, model"]),
        ([1, 2], ["not a state dict; it holds list"]),
    ):
        torch.save(held, "held.pt")
        assert main(convert_small("--weights", "held.pt", "-q")) == 2
        err = capsys.readouterr().err
        assert all(text in err for text in texts), err
    assert not Path("out.onnx").exists()


@needs_torch
def test_pickled_code_is_not_run(capsys):
    import torch

    class Payload:
        def __reduce__(self):
            return (Path.touch, (Path("ran"),))

    torch.save({"up.weight": Payload()}, "held.pt")
    assert main(convert_small("--weights", "held.pt", "-q")) == 2
    assert "not a file of tensors" in capsys.readouterr().err
    assert not Path("ran").exists()


@needs_torch
def test_nothing_is_left_where_the_disk_refuses(monkeypatch, capsys):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    there = files()
    assert main(convert_small("-q")) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert files() == there


@needs_torch
def test_a_file_worse_than_the_tolerance_is_refused(monkeypatch):
    import torch

    monkeypatch.setattr("exporter.convert.TOLERANCE", -1.0)
    with pytest.raises(GoalError, match="relative error"):
        convert(load_module("modules.py:Small"), {"x": torch.randn(2, 6)}, "out.onnx")
    assert not Path("out.onnx").exists()


# -- without torch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["torch", "onnxscript"])
def test_says_what_to_install(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(convert_small()) == 4
    assert 'pip install "secateur[torch]"' in capsys.readouterr().err
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize("text", ["x", "x:", ":2x3", "x:2x", "x:2x0", "x:2x-1", "x:2x3:float", "x:ax3", ""])
def test_bad_input(text, capsys):
    assert main(["convert", "modules.py:Small", "-o", "out.onnx", "--input", text]) == 2
    assert f"--input {text}" in capsys.readouterr().err


def test_input_twice_or_never(capsys):
    assert main(convert_small("--input", "x:1x2")) == 2
    assert "'x' is given twice" in capsys.readouterr().err
    assert main(["convert", "modules.py:Small", "-o", "out.onnx"]) == 2
    assert "--input NAME:1x3x224x224" in capsys.readouterr().err


@needs_torch
def test_parse_inputs():
    values = parse_inputs(["image:2x3", "ids:4:int64", "model.layers:0:1X5:FLOAT16", "on:1:bool"])
    assert {name: (tuple(v.shape), str(v.dtype)) for name, v in values.items()} == {
        "image": ((2, 3), "torch.float32"),
        "ids": ((4,), "torch.int64"),
        "model.layers:0": ((1, 5), "torch.float16"),
        "on": ((1,), "torch.bool"),
    }
    assert values["image"].std() > 0.1


@pytest.mark.parametrize("text", ["x", "x:0", "x:0=", "x:0=1", "x:a=batch", "x:-1=batch", "x:0=a b"])
def test_bad_dynamic(text, capsys):
    with pytest.raises(Exception, match=re.escape(f"--dynamic {text}")) as caught:
        parse_dynamic([text])
    assert caught.value.exit_code == 2


def test_dynamic_twice():
    assert parse_dynamic(["x:0=n", "x:0=n", "y:1=n"]) == {"x": {0: "n"}, "y": {1: "n"}}
    with pytest.raises(Exception, match="has two names"):
        parse_dynamic(["x:0=n", "x:0=m"])


def test_imports_without_torch():
    code = (
        "import sys, exporter.convert, exporter.cli; sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0
