"""Views of records: tables, claims, figures and sample sheets. Nothing here imports torch or trains.

Start with ``frames.frame``: every number of an experiment as one line of a tidy data frame, also for notebooks:
``mar_bench.frame("table1", scale="tiny")``. Tables, figures and claims read it."""
