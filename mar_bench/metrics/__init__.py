"""Feature extractors, metrics as functions of features, references of real images, and the scores of a set of images.

Nothing here knows a model, a run or an experiment. Start with ``score.Measure``, which computes every metric of a set;
``functions`` has the formulas."""
