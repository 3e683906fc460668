"""The null: measures of the same layers with their weights redrawn (SCIENCE §3).

A measure of a routed feature is listed in `redrawn.RESAMPLED`, or in `redrawn.OTHERWISE` with the kind of its null.
"""
