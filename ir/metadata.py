"""What optc writes into a model's metadata about how it is to be run."""

#: Name of the backend that a file was made for.
MADE_FOR = "optc.backend"
#: What its runtime is to compute floats in, where that is narrower than their type ("bf16").
PRECISION_KEY = "optc.inference_precision"
#: On a QuantizeLinear: what its scale came from, as JSON (range, calibrator, what was seen).
CALIBRATION_KEY = "optc.calibration"
