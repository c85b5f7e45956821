"""Views of records: tables, claims, figures and sample sheets. Nothing here trains or imports torch.

Start with ``frames.frame``: every number of an experiment is one line of a tidy data frame, also for notebooks:
``mar_bench.frame("table1", scale="tiny")``. Tables, figures and claims read it."""
