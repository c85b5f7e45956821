"""Figures. draw.py turns an experiment's tidy frame into points, panels.py draws them; sheets.py draws images.

Start with draw.py."""
