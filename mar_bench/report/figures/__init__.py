"""Figures. draw.py makes points of an experiment's tidy frame, panels.py draws them, style.py has the one style.

samples.py and neighbours.py draw sheets of images. Start with draw.py."""
