r"""How a group convolution becomes ordinary work.

geometry: sizes, padding, strides. dispatch: which algorithm. filters: expanded weights. frames, patches: the Fourier
algorithm. steerable: filters of groups that interpolate.
"""
