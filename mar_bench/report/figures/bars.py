"""Error bars of figures: what they are, which is what the ± of tables is."""

from __future__ import annotations

from collections.abc import Iterable

from mar_bench.report.frame import Spread

OVER = {"training": "sd over seeds", "sampling": "sd over seeds", "images": "standard error of one run"}


def bars_word(spreads: Iterable[Spread]) -> list[str]:
    """What the bars of a distance are: ``± sd over seeds``; none where there are no bars."""
    words = list(dict.fromkeys(OVER[s.over] for s in spreads if s.over and s.sd))
    return [f"± {' or '.join(words)}"] if words else []
