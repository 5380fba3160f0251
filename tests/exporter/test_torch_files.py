"""PyTorch models on disk: what is converted computes the same, keeps its names, and no pickled code is run."""

from __future__ import annotations

import importlib
import json
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from exporter.cli import main

pytestmark = pytest.mark.skipif(
    find_spec("torch") is None or find_spec("onnxscript") is None,
    reason='needs torch and onnxscript: pip install "secateur[torch]"',
)


def network():
    import torch
    from torch import nn

    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False)]
    parts += [nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    module = nn.Sequential(*parts)
    with torch.no_grad():
        module[1].running_var.fill_(2.0)
    return module.eval()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def given(batch=2):
    import torch

    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def initializers():
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load("out.onnx").graph.initializer}


def ran(feeds):
    return onnxruntime.InferenceSession("out.onnx", providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def same(module, batch, name):
    import torch

    with torch.no_grad():
        want = module(given(batch)).numpy()
    got = ran({name: given(batch).numpy()})
    assert np.abs(want).max() > 0.1
    return np.abs(got - want).max() < 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_exported_program(dynamic, place, capsys):
    import torch

    module = network()
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},) if dynamic else None
    torch.export.save(torch.export.export(module, (given(),), dynamic_shapes=shapes), "net.pt2")
    assert main(["convert", "net.pt2", "-o", "out.onnx", "-q"]) == 0
    name = onnx.load("out.onnx").graph.input[0].name
    assert all(same(module, n, name) for n in ((2, 5) if dynamic else (2,)))
    assert main(["convert", "net.pt2", "-o", "again.onnx", "--input", "x:2x1x8x8", "-q"]) == 2
    assert "has its inputs and dynamic axes already" in capsys.readouterr().err
    assert not Path("again.onnx").exists()


@pytest.mark.parametrize("how", ["trace", "script"])
@pytest.mark.filterwarnings("ignore")
def test_torchscript(how, place):
    import torch

    module = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(module, given()) if how == "trace" else torch.jit.script(module)
        torch.jit.save(made, "net.pt")
    arguments = ["convert", "net.pt", "-o", "out.onnx", "--input", "x:2x1x8x8", "--dynamic", "x:0=batch", "-q"]
    assert main(arguments) == 0
    assert same(module, 2, "x")
    assert same(module, 5, "x")
    assert main([*arguments, "--for-pruning"]) == 0
    assert {"0.weight", "1.weight", "1.running_mean", "3.weight"} <= set(initializers())
    assert [n.op_type for n in onnx.load("out.onnx").graph.node].count("BatchNormalization") == 2
    assert same(module, 5, "x")


def test_a_pickled_module_is_not_read_and_the_way_out_works(place, capsys):
    import torch

    module = network()
    torch.save({"model": module, "epoch": 3}, "best.pt")
    arguments = ["-o", "out.onnx", "--input", "x:2x1x8x8", "-q"]
    assert main(["convert", "best.pt", *arguments]) == 2
    said = capsys.readouterr().err
    assert "not a TorchScript file but a pickled object (torch.nn.modules." in said
    assert "load.py:model" in said
    assert main(["convert", "best.pt", "--weights", "best.pt", *arguments]) == 2
    Path("load.py").write_text("""
import torch
def model():
    return torch.load("best.pt", weights_only=False)["model"]
""")
    assert main(["convert", "load.py:model", *arguments]) == 0
    assert same(module, 2, "x")
    assert main(["convert", "load.py:model", "--weights", "best.pt", *arguments]) == 2
    assert "not a file of tensors (pickled: torch.nn.modules." in capsys.readouterr().err


TIED = """
from torch import nn
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm, self.other, self.head = nn.LayerNorm(8), nn.LayerNorm(8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight
    def forward(self, ids):
        x = self.table(ids)
        return self.head(self.other(x + self.down(self.up(self.norm(x)).relu())))
"""


def test_for_pruning(place):
    Path("tied.py").write_text(TIED)
    arguments = ["convert", "tied.py:Tied", "-o", "out.onnx", "--input", "ids:2x5:int64", "-q"]
    assert main(arguments) == 0
    merged = initializers()
    assert len({"norm.weight", "other.weight"} & set(merged)) == 1  # torch merges equal tensors
    assert main([*arguments, "--for-pruning"]) == 0
    held = initializers()
    assert {"up.weight", "up.bias", "down.weight", "norm.weight", "norm.bias", "other.weight", "other.bias"} <= set(
        held
    )
    assert held["up.weight"].shape == (16, 8)
    assert sum(v.shape == (20, 8) for v in held.values()) == 1  # the tied weight is one tensor
    assert main(["prune", "out.onnx", "-o", "half.onnx", "--ratio", "0.5", "-q"]) == 0


def test_a_program_with_objects_is_refused(place, capsys):
    with zipfile.ZipFile("bad.pt2", "w") as archive:
        archive.writestr("bad/data/constants/opaque_obj_0", b"cos\nsystem\n(S'touch ran'\ntR.")
    assert main(["convert", "bad.pt2", "-o", "out.onnx", "-q"]) == 3
    assert "would run code" in capsys.readouterr().err
    assert not Path("ran").exists()


def test_pickles_in_a_program_are_not_run(place, capsys):
    import torch

    class Payload:
        def __reduce__(self):
            return (Path.touch, (Path("ran"),))

    torch.export.save(torch.export.export(network(), (given(),)), "net.pt2")
    torch.save(Payload(), "payload.pt")
    with zipfile.ZipFile("net.pt2") as source, zipfile.ZipFile("bad.pt2", "w") as archive:
        for name in source.namelist():
            inner = Path("payload.pt").read_bytes() if "sample_inputs" in name else source.read(name)
            archive.writestr(name, inner)
    assert main(["convert", "bad.pt2", "-o", "out.onnx", "-q"]) == 2
    assert "cannot read bad.pt2" in capsys.readouterr().err
    assert not Path("ran").exists()


FAULTS = {
    "no program": (["convert", "gone.pt2"], 2, "no such file"),
    "not a program": (["convert", "text.pt2"], 2, "not an exported program"),
    "no script": (["convert", "gone.pt", "--input", "x:1"], 2, "no such file"),
    "weights alone": (["convert", "state.pt", "--input", "x:1"], 2, "give these with --weights state.pt"),
    "a folder of something else": (["convert", "folder"], 2, "without config.json"),
    "weights for a program": (["convert", "text.pt2", "--weights", "state.pt"], 2, "text.pt2 holds its own"),
}


@pytest.mark.parametrize("row", FAULTS.values(), ids=FAULTS)
def test_faults(row, place, capsys):
    import torch

    arguments, code, text = row
    Path("text.pt2").write_text("text")
    Path("folder").mkdir()
    torch.save({"weight": torch.zeros(2)}, "state.pt")
    assert main([*arguments, "-o", "out.onnx", "-q"]) == code
    assert text in capsys.readouterr().err
    assert not Path("out.onnx").exists()


def test_a_folder_without_transformers(place, capsys, monkeypatch):
    Path("model").mkdir()
    Path("model/config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert main(["convert", "model", "-o", "out.onnx", "-q"]) == 4
    assert "pip install transformers" in capsys.readouterr().err


NEEDS_TRANSFORMERS = pytest.mark.skipif(
    find_spec("transformers") is None, reason="needs transformers: pip install transformers"
)
IDS = ["input_ids", "attention_mask"]
FOLDERS = {
    "BERT": ("BertConfig", "BertForSequenceClassification", {"intermediate_size": 32}, IDS, ["logits"]),
    "Llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {"intermediate_size": 32, "num_key_value_heads": 1, "tie_word_embeddings": True},
        IDS,
        ["logits"],
    ),
    "ViT": (
        "ViTConfig",
        "ViTForImageClassification",
        {"image_size": 16, "patch_size": 8, "intermediate_size": 32},
        ["pixel_values"],
        ["logits"],
    ),
    "T5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {"d_kv": 8, "d_ff": 32},
        [*IDS, "decoder_input_ids"],
        ["logits", "encoder_last_hidden_state"],
    ),
    "Mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {"intermediate_size": 32, "num_key_value_heads": 1, "num_local_experts": 3},
        IDS,
        ["logits"],
    ),
    "wav2vec 2.0": (
        "Wav2Vec2Config",
        "Wav2Vec2ForCTC",
        {"intermediate_size": 32, "conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 8)}
        | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2},
        ["input_values"],
        ["logits"],
    ),
}


def saved(kind="BertForSequenceClassification", dtype="float32"):
    """A folder of a small BERT."""
    import torch

    transformers = importlib.import_module("transformers")
    common = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    made = getattr(transformers, kind)(transformers.BertConfig(**common, intermediate_size=32))
    made.to(getattr(torch, dtype)).save_pretrained("model")


@pytest.mark.slow
@NEEDS_TRANSFORMERS
@pytest.mark.filterwarnings("ignore")
def test_a_folder_that_lacks_weights(place, capsys):
    """What transformers makes up for them is not written."""
    saved("BertForMaskedLM")
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    assert main(["convert", "model", "-o", "out.onnx", "-q"]) == 2
    said = capsys.readouterr().err
    assert "lacks" in said
    assert "classifier.weight" in said
    assert not Path("out.onnx").exists()


@pytest.mark.slow
@NEEDS_TRANSFORMERS
@pytest.mark.filterwarnings("ignore")
def test_a_folder_in_16_bits(place, capsys):
    saved(dtype="bfloat16")
    assert main(["convert", "model", "-o", "out.onnx", "-q"]) == 0
    assert "saved in bfloat16, the file is in fp32" in capsys.readouterr().out
    assert all(v.dtype != np.float16 for v in initializers().values())
    assert (
        ran({"input_ids": np.ones((2, 4), np.int64), "attention_mask": np.ones((2, 4), np.int64)}).dtype == np.float32
    )


@pytest.mark.slow
@NEEDS_TRANSFORMERS
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", FOLDERS.values(), ids=FOLDERS)
def test_hugging_face_folders(row, place, capsys):
    transformers = importlib.import_module("transformers")
    config, kind, sizes, inputs, outputs = row
    common = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    made = getattr(transformers, config)(**common, **sizes)
    getattr(transformers, kind)(made).save_pretrained("model")
    assert main(["convert", "model", "-o", "out.onnx", "--for-pruning", "-q"]) == 0, capsys.readouterr().err
    model = onnx.load("out.onnx")
    assert [i.name for i in model.graph.input] == inputs
    assert [o.name for o in model.graph.output] == outputs
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert main(["prune", "out.onnx", "-o", "half.onnx", "--ratio", "0.5", "-q"]) == 0
