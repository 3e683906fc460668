"""Forensics: the role of each layer of a checkpoint, read from its files (`analyze.analyze`), not from training.

Imports go one way: output → render → analyze → reading → roles → null → measures → architecture → weights.
A measure is one decorated function in `measures/table.py`. A routed feature is one line in `roles/routing.py` and, if
the import then says so, one in `null/redrawn.py`. A family of checkpoints is one entry in `architecture/families.py`.
"""
