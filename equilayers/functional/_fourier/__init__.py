r"""The group Fourier transform, at the heart of every fast layer.

transforms, cyclic, rotations: analysis and synthesis per group. irreps: one product per block. canonical: where cyclic
sequences start. correlation: all of it together. autograd: its derivatives. orbits: how spaces split.
"""
