"""One file for each kind of adapter: from the tensors of one layer to its change ΔW.

Every kind has one function, `change(factors, scaling, shape)`: `factors` are the layer's tensors
by their short names, `scaling` says what divides by the rank, `shape` is that of the layer's
weight. It returns a pair where ΔW is one by construction, and else ΔW itself, (d_out x …).
"""
