"""Prune ONNX models."""
