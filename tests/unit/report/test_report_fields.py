"""The walk over a report's fields finds what says nothing."""

import pytest
from report_fields import empty_fields


@pytest.mark.parametrize(
    ("report", "page", "count"),
    [
        ('{"accuracy": {"float": 1.5}, "kernels": {"float": {}}}', "<td>1.5</td>", 0),
        ('{"accuracy": {"float": null, "metric": ""}}', "<td>1</td>", 2),
        ('{"layers": [{"sqnr_db": NaN}, {"name": "None"}]}', "<td>1</td>", 2),
        ("{}", "<td></td><dd>None</dd><th>size</th>", 2),
        ("{}", "<li>score nan %</li><td><img></td><dd>none: every pair was fused</dd>", 1),
    ],
)
def test_fields_that_say_nothing_are_listed(tmp_path, report, page, count):
    (tmp_path / "report.json").write_text(report)
    (tmp_path / "report.html").write_text(page)
    assert len(empty_fields(tmp_path)) == count
