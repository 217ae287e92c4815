"""Static INT8: which tensors lie on a grid of integers, for which target, and the proof that its kernels take them."""
