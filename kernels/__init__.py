"""The place of GPU kernels; there are none yet."""
