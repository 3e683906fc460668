"""The page of a trace: one HTML file that needs no network."""
