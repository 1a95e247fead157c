r"""Rotated MNIST: command and runs (what is trained on and kept), models, and curves of the error over angles."""
