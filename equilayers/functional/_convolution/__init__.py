r"""How a group convolution becomes ordinary work.

geometry: sizes. dispatch: which algorithm. filters, dense: expanded weights. frames, patches: the Fourier algorithm.
pattern_kernel: it with fewer sums, rounding; patterns, programs, synthesis: which. torch_sums, or plans and numba_*,
run them. steerable: filters of groups that interpolate.
"""
