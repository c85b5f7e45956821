"""Views of records: tables, orderings, figures and sample sheets. Nothing here imports torch or trains.

cells     records -> tidy frames and means over seeds
wording   how numbers, metrics and rows are written
captions  what a table's reader must know: protocol, seeds, origin, warnings
orderings the paper's claims as paired comparisons
tables    the table itself, Markdown and CSV
plots     speed against distance
samples   sheets of generated images
"""
