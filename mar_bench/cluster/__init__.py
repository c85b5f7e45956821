"""Submission of an experiment to Slurm as a graph of jobs, its status and logs, and what a job runs.

Nothing here parses a command line or imports torch before a job starts. Read in this order: ``profile`` and ``jobs``
(what a cluster is, how stages become jobs), ``submit`` (a submission from end to end), ``work`` and ``signals``
(inside a job), then ``status``. ``slurm`` is the only module that calls Slurm's programs.
"""
