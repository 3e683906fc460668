"""Tensors → the matrices and norms of each layer (`model.CheckpointModel`).

To add a family, add an entry to `families.FAMILIES`; a model that is not in it is inferred from names and shapes.
"""
