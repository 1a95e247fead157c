r"""`to_equivariant`.

conversion: settings. dataflow, functions: what is called. convolutions, norms, heads, maps: what becomes of a module.
fiber_layers: layers with fibers in the channels. sizes, verify: running the result.
"""
