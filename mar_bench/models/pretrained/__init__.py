"""Published weights: which files there are and how to get them (`fetch.py`, `public_files.yaml`), and their
conversion into our parameter names (`convert.py`, `names.py`). No other folder knows a published name."""
