"""Train paired transformers and read what a change did inside them."""

__version__ = "0.2.0"
