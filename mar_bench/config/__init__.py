"""Configuration: YAML -> Experiment -> rows of RunSpec, and their ids.

Specs are frozen dataclasses (spec.py and its parts), parsed strictly (parse.py) and put into normal form (checks.py).
No torch, numpy or pandas here: planning must be fast. Start with ``load_experiment`` in experiment.py."""
