"""Parts of the benchmarks. The measuring process imports the standard library only, see :mod:`harness.process`."""
