"""A convolutional classifier: half the work, with and without calibration inputs, judged on labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from exporter import prune

MODELS = Path(__file__).resolve().parents[2] / "models"


def accuracy(model: str | Path) -> float:
    """Share of the test images that a model reads right."""
    digits = np.load(MODELS / "digits.npz")
    session = onnxruntime.InferenceSession(model)
    (logits,) = session.run(None, {"image": digits["x_test"]})
    return float((logits.argmax(1) == digits["y_test"]).mean())


def main() -> None:
    """Prune twice and compare."""
    dense = MODELS / "digits_cnn.onnx"
    images = np.load(MODELS / "digits.npz")["x_train"][:256]

    by_magnitude = prune(dense, "cnn-magnitude.onnx", macs=0.5)
    calibrated = prune(dense, "cnn-calibrated.onnx", macs=0.5, calib=[{"image": images}])

    print(f"dense       {accuracy(dense):6.1%}  {by_magnitude.before.macs:11,} multiply-accumulates")
    print(f"magnitude   {accuracy('cnn-magnitude.onnx'):6.1%}  {by_magnitude.after.macs:11,}")
    print(f"calibrated  {accuracy('cnn-calibrated.onnx'):6.1%}  {calibrated.after.macs:11,}")


if __name__ == "__main__":
    main()
