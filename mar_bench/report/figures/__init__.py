"""Figures drawn from the tidy frame of an experiment's records.

draw.py makes points of the records, panels.py draws them, style.py holds the one style. Start with draw.py."""
