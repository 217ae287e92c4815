"""Does optimizing keep what the ONNX standard says a model computes? Judged with the standard's own test cases."""
