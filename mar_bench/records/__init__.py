"""Records: the measurements of runs, one JSON file each, and the code to read and compare them.

No tables and no models here. Start with record.py (the format), then metrics.py (the metrics a record holds)."""
