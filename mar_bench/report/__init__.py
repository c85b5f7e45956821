"""Views of records: tables, orderings, claims, figures and sample sheets. Nothing here imports torch or trains.

cells       records -> tidy frames and means over seeds; which records belong to a row
pairing     differences on common seeds, with intervals
wording     how numbers, metrics and rows are written
measured    all that was measured of an experiment, from which its table is rendered
verdict     whether a number agrees with the paper's
grid        the main table as cells: ours and the paper's
tables      the table itself; as LaTeX in latex, as CSV in tidy
against     ours against the paper's, number by number
quoted      published rows of other systems
choices     at which point of its sweep a row stands
captions    what a table's reader must know: protocol, seeds, origin
cautions    what they must be warned of: numbers that do not compare, repeated images, failed runs
orderings   an experiment's claims as paired comparisons
claims      the paper's ten claims: written in claim_file, each piece judged in evidence
comparison  two sets of runs, metric by metric
figures     an experiment's figure by its kind: plots, curve, tradeoff; lines and names are what these share
            bars and floor_lines are of what their bars and dashed lines mean
samples     sheets of generated images
"""
