"""Forensics: the role of each layer of a checkpoint, read from its files (`analyze.analyze`), not from training.

Imports go one way: output → render → analyze → reading → roles → null → measures → architecture → weights.
docs/recipes.md says how to add a measure, a routed feature or a family of checkpoints.
"""
