"""Statistics of a model's values over calibration data, and the ranges that calibrators choose from them."""
