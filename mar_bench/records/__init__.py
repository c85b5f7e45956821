"""Records: what runs measured, one JSON file each, and what is needed to read and compare them.

No tables and no models here. Start with record.py (the format), then metrics.py (the metrics a record holds)."""
