"""BibTeX of the paper and of this suite, with what identifies the numbers of a table."""

from __future__ import annotations

from mar_bench import __version__
from mar_bench.report import format as fmt
from mar_bench.report.render import render
from mar_bench.report.table.grid import Measured


def bibtex(found: Measured) -> str:
    """Two entries; the suite's note has its version, the commits and the ids of the records behind the table."""
    records = {record.id: record for of_row in found.selection.values() for of in of_row.values() for record in of}
    commits = {str((r.provenance.get("git") or {}).get("commit") or "unknown")[:10] for r in records.values()}
    return render(
        "cite.tex.j2",
        experiment=found.experiment,
        scale=fmt.scale_title(found.experiment).partition(",")[0],
        version=__version__,
        commits=sorted(commits),
        records=sorted(records),
    )
