"""The null: layers drawn by chance, and the spread that layers of one law show (SCIENCE §3)."""
