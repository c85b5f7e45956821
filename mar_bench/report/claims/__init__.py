"""The paper's claims judged by the records: orderings of rows, other kinds of evidence, and the claims report.

No statistics here: intervals and verdicts come from report/stats.py. Start with orderings.py."""
