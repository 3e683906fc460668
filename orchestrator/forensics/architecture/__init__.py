"""Tensors → the matrices and norms of each layer (`model.CheckpointModel`)."""
