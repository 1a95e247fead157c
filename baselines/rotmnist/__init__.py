r"""Rotated MNIST: command, data, models, runs, curves."""
