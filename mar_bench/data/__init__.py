"""Data sets and their views (start with ``datasets.py``), sets of images to score, and the latent cache."""
