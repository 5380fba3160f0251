"""Fewer bits: weights, or weights and activations, on onnxruntime.quantization, with the damage measured."""
