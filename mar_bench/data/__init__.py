"""Data: images with labels, sets of images that users hand in, and the latent cache.

`datasets.py` has the data sets and their views (start there), `images.py` image files and folders, `image_sets.py` the
sets to be measured, `latents.py` reads the latent cache and `encode.py` writes it. Nothing here trains or measures."""
