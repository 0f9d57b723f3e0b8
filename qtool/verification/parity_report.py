"""Describe parity counts for the report."""

from typing import TYPE_CHECKING

from qtool.report.schema import Parity

if TYPE_CHECKING:
    from qtool.verification.parity import ParityCounts

# Values named in the notes where codes differ.
WORST = 5


def parity_notes(counts: "ParityCounts") -> list[str]:
    """Describe the numbers of codes that differ, by kind of value, and the values with the most."""
    integer, floats, wide = counts.integer, counts.after_float, counts.wide
    notes = [
        f"integer kernels: {integer.off} of {integer.total} codes differ; after float ops: "
        f"{floats.off} of {floats.total}"
    ]
    if wide.total:
        notes.append(
            f"values of more than 8 bits, computed in floats: {wide.off} of {wide.total} codes "
            f"differ, by {wide.largest} at most"
        )
    worst = sorted(counts.worst.items(), key=lambda item: -item[1])[:WORST]
    return [*notes, *(f"{name}: {off} codes differ" for name, off in worst)]


def parity_part(counts: "ParityCounts", samples: int) -> Parity:
    """Return the parity part of the report.

    Args:
        counts: of all captured samples.
        samples: number of captured samples.
    """
    integer, floats, wide = counts.integer, counts.after_float, counts.wide
    return Parity(
        samples=samples,
        max_lsb=max(integer.largest, floats.largest, wide.largest),
        share_off=(integer.off + floats.off) / max(integer.total + floats.total, 1),
        # With float operators between integer ones, the two shares have separate limits.
        integer_share_off=integer.share if floats.total else None,
        after_float_share_off=floats.share if floats.total else None,
        wide_share_off=wide.share if wide.total else None,
    )
