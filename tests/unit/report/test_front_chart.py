"""The front of a search as a chart: bytes to the right, the logarithm of the divergence upwards."""

import pytest
from full_report import changed

from qtool.report.render.search import front_chart, points
from qtool.report.search_schema import SearchPart, SearchPoint


def point(kl, size, **more):
    return SearchPoint(name=f"{size} bytes", bits={"weights": 8}, kl=kl, bytes=size, **more)


def report_of(*front, chosen=None):
    return changed(search=SearchPart(front=list(front), chosen=chosen or front[0]))


def test_points_stand_at_their_bytes_and_at_the_logarithm_of_their_divergence():
    front = [point(1e-1, 1000), point(1e-2, 2000), point(1e-4, 4000, ms=0.5, drop=0.25)]
    chart = front_chart(report_of(*front, chosen=front[1]))
    x, y = ([getattr(dot, axis) for dot in chart.dots] for axis in "xy")
    assert x == pytest.approx([x[0], 2 * x[0], 4 * x[0]])
    assert y == pytest.approx([100, 100 - 100 / 3, 0], abs=0.01)
    assert [dot.number for dot in chart.dots] == [1, 2, 3]
    assert [dot.baseline for dot in chart.dots] == [False, True, False]
    assert "kl 0.0001" in chart.dots[2].tip and "drop 0.25" in chart.dots[2].tip
    labels = {tick.label: tick for tick in chart.y_ticks}
    assert list(labels) == ["1e-4", "1e-3", "1e-2", "1e-1"]
    assert all(0 <= value <= 100 for value in (*x, *y))


@pytest.mark.parametrize("divergences", [(0.0, 0.0), (1e-3, 1e-3), (0.0, 1.0)])
def test_equal_and_vanishing_divergences_stay_on_the_chart(divergences):
    chart = front_chart(report_of(*(point(kl, 100 + k) for k, kl in enumerate(divergences))))
    assert all(0 <= dot.y <= 100 and 0 < dot.x <= 100 for dot in chart.dots)
    assert len({tick.label for tick in chart.y_ticks}) == len(chart.y_ticks) >= 2


def test_a_single_point_is_no_chart_and_the_chosen_one_is_listed_always():
    only, other = point(0.1, 100), point(0.2, 200)
    assert front_chart(report_of(only)) is None
    assert front_chart(changed()) is None
    listed = points(report_of(only, chosen=other))
    assert [(each.name, chosen) for each, _, chosen in listed] == [
        ("100 bytes", False),
        ("200 bytes", True),
    ]
