r"""Rotated MNIST: command and runs (what is trained and kept), data, models, and curves of the error over angles."""
