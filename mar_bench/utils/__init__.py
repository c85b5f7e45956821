"""Helpers that do not depend on the benchmark: errors, files, locks, console output and the noise source.

Only noise.py may import torch or numpy. Start with errors.py and files.py."""
