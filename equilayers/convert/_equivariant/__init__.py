r"""`to_equivariant`.

conversion: settings. dataflow: what each module reads. convolutions, norms, heads: what becomes of a kind of module.
fiber_layers: layers with fibers in the channels. verify: running the result.
"""
