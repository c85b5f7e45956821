"""The table of an experiment. ``build.table`` starts from records and renders Markdown, LaTeX and CSV.

``grid`` turns measurements into columns and lines of cells, ``notes`` turns them into sentences; the templates in
report/templates lay these out."""
