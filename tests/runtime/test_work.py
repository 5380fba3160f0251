"""Multiply-accumulates of each operator, by hand."""

from __future__ import annotations

import pytest
from onnx import helper

from runtime.work import macs_of

ROWS = [
    ("Conv", {}, [(2, 3, 8, 8), (16, 3, 3, 3)], (2, 16, 6, 6), 2 * 16 * 36 * 27),
    ("Conv", {"group": 8}, [(1, 8, 4, 4), (8, 1, 3, 3)], (1, 8, 4, 4), 8 * 16 * 9),
    ("ConvTranspose", {}, [(1, 4, 5, 5), (4, 6, 2, 2)], (1, 6, 10, 10), 4 * 25 * 6 * 4),
    ("QLinearConv", {}, [(1, 3, 8, 8), (), (), (16, 3, 1, 1)], (1, 16, 8, 8), 16 * 64 * 3),
    ("ConvInteger", {}, [(1, 3, 8, 8), (16, 3, 1, 1)], (1, 16, 8, 8), 16 * 64 * 3),
    ("MatMul", {}, [(2, 5, 7), (7, 3)], (2, 5, 3), 2 * 5 * 3 * 7),
    ("MatMul", {}, [(7,), (7, 3)], (3,), 21),
    ("Gemm", {}, [(5, 7), (7, 3)], (5, 3), 105),
    ("Gemm", {"transA": 1}, [(7, 5), (7, 3)], (5, 3), 105),
    ("FusedMatMul", {"transA": 1}, [(2, 7, 5), (2, 7, 3)], (2, 5, 3), 210),
    ("FusedMatMul", {"transA": 1, "transBatchA": 1}, [(7, 2, 5), (2, 7, 3)], (2, 5, 3), 210),
    ("MoE", {"k": 2}, [(3, 4), (3, 5), (5, 8, 4), None, (5, 4, 8)], (3, 4), 2 * 3 * (8 * 4 + 4 * 8)),
    ("QLinearMatMul", {}, [(5, 7), (), (), (7, 3)], (5, 3), 105),
    ("LSTM", {}, [(6, 2, 4), (1, 32, 4), (1, 32, 8)], (6, 1, 2, 8), 12 * (32 * 4 + 32 * 8)),
    ("GRU", {}, [(6, 2, 4), (1, 24, 4), (1, 24, 8)], None, 12 * (24 * 4 + 24 * 8)),
    ("Einsum", {"equation": "bij,bjk->bik"}, [(2, 3, 4), (2, 4, 5)], (2, 3, 5), 120),
    ("Einsum", {"equation": "...j,jk->...k"}, [(2, 4), (4, 5)], (2, 5), 40),
    ("Einsum", {"equation": "b...j,...kj->b...k"}, [(2, 1, 3, 4), (6, 1, 5, 4)], (2, 6, 3, 5), 2 * 6 * 3 * 4 * 5),
    ("Einsum", {"equation": "ij->ji"}, [(2, 4)], (4, 2), 0),
    ("Attention", {}, [(1, 2, 10, 8), (1, 2, 12, 8), (1, 2, 12, 8)], (1, 2, 10, 8), 2 * 1 * 2 * 10 * 12 * 8),
    ("Attention", {}, [(1, 4, 3, 8), *2 * [(1, 2, 3, 6)], None, (1, 2, 9, 6)], (1, 4, 3, 6), 12 * 4 * 3 * (8 + 6)),
    ("MultiHeadAttention", {}, [(1, 10, 16), (1, 12, 16), (1, 12, 16)], (1, 10, 16), 2 * 10 * 12 * 16),
    ("MultiHeadAttention", {}, [(1, 5, 16), *2 * [(1, 2, 12, 8)]], (1, 5, 16), 2 * 5 * 12 * 16),
    (
        "MultiHeadAttention", {}, [*3 * [(1, 1, 16)], None, None, None, *2 * [(1, 2, 9, 8)]], (1, 1, 16),
        2 * (9 + 1) * 16,
    ),
    (
        "MultiHeadAttention", {}, [*3 * [(1, 1, 16)], None, None, None, *2 * [(1, 2, 9, 8)], (1,)], (1, 1, 16),
        2 * 9 * 16,
    ),
    ("GroupQueryAttention", {}, [(1, 1, 512), *2 * [(1, 1, 128)], *2 * [(1, 2, 1000, 64)]], (1, 1, 512), 1001 * 1024),
    ("GroupQueryAttention", {}, [(1, 3, 768), None, None, *2 * [(1, 2, 9, 64)]], (1, 3, 512), 12 * 3 * 1024),
    ("Relu", {}, [(5, 7)], (5, 7), 0),
    ("Conv", {}, [(2, 3, 8, 8), None], (2, 16, 6, 6), 0),
    ("MatMul", {}, [None, (7, 3)], (5, 3), 0),
]  # fmt: skip


@pytest.mark.parametrize(("op", "attributes", "inputs", "output", "macs"), ROWS, ids=[f"{r[0]} {r[1]}" for r in ROWS])
def test_macs(op, attributes, inputs, output, macs):
    assert macs_of(helper.make_node(op, list("abcd"), ["y"], **attributes), inputs, [output]) == macs


def test_contrib_attention_projects_too():
    made = helper.make_node("Attention", list("abc"), ["y"], domain="com.microsoft", num_heads=2)
    assert macs_of(made, [(1, 10, 16), (16, 48), (48,)], [(1, 10, 16)]) == 10 * 16 * 48 + 2 * 10 * 10 * 16
    past = [(1, 10, 16), (16, 48), (48,), None, (2, 1, 2, 7, 8)]
    assert macs_of(made, past, [(1, 10, 16)]) == 10 * 16 * 48 + 2 * 10 * 17 * 16
    made.attribute.append(helper.make_attribute("qkv_hidden_sizes", [16, 16, 8]))
    assert macs_of(made, [(1, 10, 16), (16, 40), (40,)], [(1, 10, 8)]) == 10 * 16 * 40 + 10 * 10 * (16 + 8)
