"""Classify the layers of a checkpoint (`analyze.analyze`). Reads files; knows nothing of training."""
