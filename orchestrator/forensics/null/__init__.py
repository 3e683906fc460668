"""The null: measures of the same layers with their weights redrawn (SCIENCE §3)."""
