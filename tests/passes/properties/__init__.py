"""Every rule on mutated models: what is rewritten computes what the mutated model computed."""
