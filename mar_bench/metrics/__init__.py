"""Feature extractors, formulas of metrics, references and scores of a set of images; start with ``score.Measure``."""
