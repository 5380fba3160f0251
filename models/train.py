"""Train both networks on the digits, and write their weights and ONNX files beside this script.

    python models/train.py [digits_cnn] [digits_vit]

Takes about three minutes of one CPU core. The schedule is fixed: the test images take no part in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import networks
import numpy as np
import torch
from evaluate import accuracy
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name everybody knows)

from exporter.convert import convert

HERE = Path(__file__).resolve().parent
BATCH = 64
SMOOTHING = 0.05
EPOCHS = {"digits_cnn": 40, "digits_vit": 160}
RATE = {"digits_cnn": 3e-3, "digits_vit": 1e-3}
WEIGHT_DECAY = 0.05


def shifted(images: Tensor) -> Tensor:
    """Images (batch, 1, 8, 8), each moved by up to one pixel in both directions."""
    padded = F.pad(images, (1, 1, 1, 1))
    rows, columns = torch.randint(0, 3, (2, len(images)))
    crops = [p[:, r : r + 8, c : c + 8] for p, r, c in zip(padded, rows.tolist(), columns.tolist(), strict=True)]
    return torch.stack(crops)


def train(module: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float) -> None:
    """Train a module in place: AdamW, one cycle of the learning rate, shifts, label smoothing."""
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(module.parameters(), rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    module.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            loss = F.cross_entropy(module(shifted(images[rows])), labels[rows], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if (epoch + 1) % 20 == 0:
            print(f"  epoch {epoch + 1} of {epochs}, loss {total / (len(images) // BATCH):.3f}", flush=True)
    module.eval()


def main() -> None:
    """Train the networks named on the command line, or both."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # the work is too small to share, and the sums keep their order
    data = np.load(HERE / "digits.npz")
    images, labels = torch.from_numpy(data["x_train"]), torch.from_numpy(data["y_train"])
    for name in sys.argv[1:] or EPOCHS:
        torch.manual_seed(0)
        module = getattr(networks, name)()
        print(f"{name}: {sum(p.numel() for p in module.parameters()):,} parameters")
        train(module, images, labels, EPOCHS[name], RATE[name])
        torch.save(module.state_dict(), HERE / f"{name}.pt")
        file = HERE / f"{name}.onnx"
        written = convert(module, {"image": images[:2]}, file, dynamic={"image": {0: "batch"}}, output_names=["logits"])
        print(f"  {file.name}: {accuracy(file):.2%} of the test images right, error {written.max_relative_error:.1g}")


if __name__ == "__main__":
    main()
