"""The detector as one ONNX graph."""
