"""What 2:4 is worth to the hardware itself: torch's semi-structured matrix product beside a dense one."""

from __future__ import annotations

from typing import Any

import numpy as np


def product() -> dict[str, Any]:
    """A dense and a 2:4 matrix product of torch, fp16, 4096 x 4096, by both libraries it has for that and with the
    right side stored either way: milliseconds by CUDA events."""
    try:
        import torch
        from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
    except ImportError:
        return {"text": "torch is not installed: its semi-structured product was not measured."}
    if not torch.cuda.is_available():
        return {"text": "torch sees no GPU: its semi-structured product was not measured."}
    torch.manual_seed(0)
    weight = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    weight.view(-1, 4)[:, 2:] = 0
    right = {"by rows": torch.randn(4096, 4096, device="cuda", dtype=torch.float16)}
    right["by columns"] = right["by rows"].t().contiguous().t()
    kinds = {
        "dense": lambda: weight,
        "2:4 by cuSPARSELt": lambda: SparseSemiStructuredTensorCUSPARSELT.from_dense(weight),
        "2:4 by CUTLASS": lambda: SparseSemiStructuredTensorCUTLASS.from_dense(weight),
    }
    found: dict[str, Any] = {}
    for name, make in kinds.items():
        for stored, x in right.items():
            try:
                found[f"{name}, {stored}"] = _product_ms(make(), x)
            except RuntimeError as error:  # a library that is not in this torch, or not for this GPU
                found[f"{name}, {stored}"] = str(error).splitlines()[0][:80]
    shown = ", ".join(f"{k}: {v:.3f} ms" if isinstance(v, float) else f"{k}: {v}" for k, v in found.items())
    return {**found, "text": f"torch {torch.__version__}, 4096 x 4096 in fp16, {shown}."}


def _product_ms(matrix: Any, x: Any) -> float:
    import torch

    taken = []
    for k in range(60):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        torch.mm(matrix, x)
        last.record()
        torch.cuda.synchronize()
        taken += [first.elapsed_time(last)] if k >= 10 else []
    return float(np.median(taken))
