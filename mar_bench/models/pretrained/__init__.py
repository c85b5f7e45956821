"""Published weights: the catalogue of files and their download (`fetch.py`, `public_files.yaml`), and their conversion
to our parameter names (`convert.py`, `names.py`). No other folder uses published parameter names."""
