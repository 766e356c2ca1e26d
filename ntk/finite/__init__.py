"""Kernels of one network of finite width: contractions of its Jacobian, its linearisation, means over networks."""
