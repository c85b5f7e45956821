"""The paper's claims, judged from the records: orderings of rows, other kinds of evidence, and the claims report.

Intervals and verdicts come from report/stats.py. Start with orderings.py."""
