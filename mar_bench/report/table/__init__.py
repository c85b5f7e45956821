"""The table of an experiment. ``build.table`` starts from records and renders Markdown, LaTeX and CSV.

``measured`` holds what was measured, ``grid`` turns it into columns and lines of cells, ``notes`` and ``caveats`` into
sentences; the templates in report/templates only lay these out."""
