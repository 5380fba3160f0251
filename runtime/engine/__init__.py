"""TensorRT engines: made from ONNX files, described, and known again when they are loaded."""
