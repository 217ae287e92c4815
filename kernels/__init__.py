"""GPU kernels: hand-written Triton functions, their ahead-of-time compiler, inspector and interpreter.

Importing the package imports nothing; its modules need Triton (``pip install optc[triton]``), so whoever does not
compile kernels never loads it.
"""
