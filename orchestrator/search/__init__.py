"""Search: explore many settings at one seed, then compare the best with the baseline at other seeds (SCIENCE §8)."""
