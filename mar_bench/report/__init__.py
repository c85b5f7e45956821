"""Views of records: tables, claims, figures and sample sheets. Nothing here imports torch or trains.

Start with ``frames.frame``: every number of an experiment as one line of a tidy data frame, also for notebooks:
``from mar_bench.report import frame; frame("table1", scale="tiny")``. Tables, figures and claims read it."""


def __getattr__(name: str):
    if name == "frame":  # pandas is imported on first use
        from mar_bench.report.frames import frame

        return frame
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
