r"""How a group convolution becomes ordinary work.

geometry: sizes. dispatch: which algorithm. filters, dense: expanded weights. frames, patches: the Fourier algorithm.
patterns, programs, pattern_kernel: it with fewer sums, rounding. steerable: filters of groups that interpolate.
"""
