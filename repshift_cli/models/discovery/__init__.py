"""How a model's blocks, branches, arguments and protected tokens are found, or named by an adapter."""
