r"""`to_equivariant`.

conversion: settings. dataflow: what each module reads. convolutions, norms, heads: a replacement per kind of module.
fiber_layers: layers with fibers in the channels. verify: running the result.
"""
