"""The infinite-width limit of any Flax model, read from its own code.

A family is traced at two widths (`interpret`), each of its primitives becomes a step on Gaussian processes
(`rules` and the modules of `ops` that it lists), and the steps are evaluated on data (`kernels`).
"""
