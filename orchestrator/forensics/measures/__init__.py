"""A layer's matrices → its statistics (`statistics`) → its measures (`table`).

To add a measure, write a function in `table.py` and decorate it with `@entry("name")`, or `@entry("name", need)` where
it needs more than weights. What it reads of the weights is a field of `statistics.LayerStatistics`.
"""
