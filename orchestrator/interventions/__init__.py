"""Interventions: the effect of deleting parts of a model, and each layer's effect on a text."""
