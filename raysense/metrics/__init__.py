"""How good images are: each metric is `features -> statistics -> value`, three pure functions.

`features` runs the networks, once for all metrics; the metric modules are mathematics on arrays and keep
no state; `intervals` turns per-image values into intervals. Caching is the caller's. This package's
`__init__` imports nothing, so that names can be checked without loading torch.
"""
