"""The Triton back end: a whole model as GPU kernels, compiled ahead of time on a machine that needs no GPU."""
