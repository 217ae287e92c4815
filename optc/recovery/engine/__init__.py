"""ONNX operators in PyTorch, so that gradients flow through them. Everything here imports torch."""
