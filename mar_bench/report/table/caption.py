"""Deprecated names, until compare.py imports them from where they are."""

from mar_bench.report.spread import design  # noqa: F401
from mar_bench.report.table.notes import jackknife_groups  # noqa: F401
