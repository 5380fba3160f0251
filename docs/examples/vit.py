"""A vision transformer: heads and neurons by calibration, then a whole block as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from exporter import find_groups, load, prune

MODELS = Path(__file__).resolve().parents[2] / "models"


def accuracy(model: str | Path) -> float:
    """Share of the test images that a model reads right."""
    digits = np.load(MODELS / "digits.npz")
    (logits,) = onnxruntime.InferenceSession(model).run(None, {"image": digits["x_test"]})
    return float((logits.argmax(1) == digits["y_test"]).mean())


def main() -> None:
    """Show what there is, and take some of it."""
    dense = MODELS / "digits_vit.onnx"
    for group in find_groups(load(dense)):
        print(f"{group.kind:10} {group.width:4}  {group.name}")

    calib = [{"image": np.load(MODELS / "digits.npz")["x_train"][:128]}]
    narrow = prune(dense, "vit-narrow.onnx", macs=0.7, granularity=["heads", "neurons"], calib=calib)
    shallow = prune(dense, "vit-shallow.onnx", layers=1, calib=calib)

    print(f"dense     {accuracy(dense):6.1%}  {narrow.before.macs:9,} multiply-accumulates")
    print(f"narrow    {accuracy('vit-narrow.onnx'):6.1%}  {narrow.after.macs:9,}  heads and neurons")
    print(
        f"shallow   {accuracy('vit-shallow.onnx'):6.1%}  {shallow.after.macs:9,}  without {shallow.plan.drop[0].name}"
    )


if __name__ == "__main__":
    main()
