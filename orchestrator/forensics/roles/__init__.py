"""Measures → roles: which features vote (`routing`), how they are scored (`scoring`), how roles look (`palette`).

To route a feature, add a line to `routing.ROUTING`. Where its measure has no null, importing `scoring` fails and names
the lines to add in `null/redrawn.py`; a feature that is a count, a ratio or not structural also gets a line in
`scoring.TREATMENTS`.
"""
