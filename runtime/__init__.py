"""Run ONNX models: open them on a backend, feed them, time them. Never changes a model."""
