"""ONNX graphs as differentiable torch modules: the graph is walked node by node, and its weights are the parameters.

This package needs torch, and so imports it at the top; whoever uses it imports it inside a function.
"""

from exporter.autograd.module import OnnxModule, to_torch, torch_outputs, write_back
from exporter.autograd.registry import OPS, Unsupported

__all__ = ["OPS", "OnnxModule", "Unsupported", "to_torch", "torch_outputs", "write_back"]
