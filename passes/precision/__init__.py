"""Mixed precision: which nodes compute in a narrower float type, where casts go, and what shows that it is safe."""
