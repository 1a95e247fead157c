r"""Where and why a model loses the symmetry: trace, actions, locate, layer errors, advice."""
