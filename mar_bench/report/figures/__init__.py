"""Figures. draw.py makes points of an experiment's tidy frame, panels.py draws them; sheets.py draws sheets of images.

Start with draw.py."""
