"""Weight-only quantization: algorithms on arrays, what they give, and the forms in which targets run it."""
