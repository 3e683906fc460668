"""The measures, one decorated function each, by what they are taken of. Definitions: SCIENCE §1."""
