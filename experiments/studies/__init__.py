"""One study a module, its claims and its figures beside it; `experiments.run` finds them by name."""
