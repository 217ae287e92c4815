"""The tensorrt backend: ONNX files that TensorRT takes and fuses well, bundles to build elsewhere, and engines."""
