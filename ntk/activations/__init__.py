"""E[f(u) f(v)] and E[f'(u) f'(v)] of a Gaussian pair, for any f: closed forms, series, kinks, polynomials."""
