"""Views of records: tables, orderings, figures and sample sheets. Nothing here imports torch or trains.

cells      records -> tidy frames and means over seeds
pairing    differences on common seeds, with intervals
wording    how numbers, metrics and rows are written
captions   what a table's reader must know: protocol, seeds, origin
cautions   what they must be warned of: numbers that do not compare, repeated images, failed runs
orderings  the paper's claims as paired comparisons
tables     the table itself, Markdown and CSV
comparison two sets of runs, metric by metric
plots      speed against distance
samples    sheets of generated images
"""
