"""Abuse with a known right answer: kills, damaged files, nonsense in experiment files, full disks, load.

    python -m tests.torture [--quick] [--only NAME] [--write FILE]

Start with ``__main__``, the table of scenarios; ``workshop`` runs commands and reads what they left."""
