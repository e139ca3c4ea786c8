"""From a classifier to a file in ONNX: its graph, int8 weights, and what is checked."""
