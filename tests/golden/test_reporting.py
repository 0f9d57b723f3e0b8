"""What the formats show: complete, escaped, within 80 columns, and well formed."""

import io
import json
import re
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import yaml
from report_samples import HOSTILE, bare, diagnosed, failing, hostile, sample
from rich.console import Console

import qtool.report.render.formatting as formatting
from qtool.errors import RecipeError
from qtool.report.render import FORMATS, render, write_run_files
from qtool.report.render.charts import dashes, drop_strip, line, ticks
from qtool.report.render.compare import compare
from qtool.report.render.html import breakable, html
from qtool.report.render.layers import bars, layer_strips, layer_values
from qtool.report.render.terminal import print_report
from qtool.report.report import Finding, Report
from qtool.report.verdict import verdict


class Page(HTMLParser):
    """Collects tags and addresses, and checks that tags close in order."""

    VOID = frozenset({"meta", "br", "wbr", "img"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.links = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in {"src", "href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("make", [sample, failing, diagnosed, hostile, bare])
def test_every_format_takes_every_report(fmt, make):
    assert render(make(), fmt).endswith("\n")
    assert render({"a": make(), "b": sample()}, fmt, baseline=sample()).endswith("\n")


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4, 60])
def test_every_format_takes_any_number_of_layers(fmt, layers):
    one = {"op": "Conv", "weight_bits": 8, "activation_bits": 8, "sqnr_db": 30.0, "bytes": 4}
    made = sample(layers=[{"name": f"/conv{k}", **one} for k in range(layers)])
    assert render(made, fmt).endswith("\n")


def test_terminal_golden():
    text = render(sample(layers=[], stages=[], parity=None), "terminal")
    assert text == GOLDEN_TERMINAL


GOLDEN_TERMINAL = """\
╭─ qtool ptq  PASSED ──────────────────────────────────────────────────────────╮
│ net.onnx → model.onnx                                                        │
│ 272 k parameters, 40.8 M MACs, opset 21, seed 0                              │
│ The gate passes; drop 0.12 points.                                           │
╰──────────────────────────────────────────────────────────────────────────────╯

                  float  simulated  quantized
 top-1 (%)        91.73      91.62      91.61  drop 0.12 points
                                               95 %: −0.05 to 0.29
 agreement (%)                          98.40  with float, 10000 samples
 file size      1.09 MB                290 kB  3.76x smaller
                                               codes and numbers 270 kB, scales
                                               9.10 kB, graph 11.0 kB
 latency        2.10 ms               1.00 ms  2.10x faster
                                               1 thread, batch 1

 Gates
   ✓ max_drop  0.12  at most 1

 Kernels
   20 integer    QLinearConv x20
   0 float       –
   0 stray Q/DQ  none left unfused
"""


@pytest.mark.parametrize("width", [60, 80, 160])
@pytest.mark.parametrize("make", [sample, failing, diagnosed, hostile, bare])
def test_terminal_fits_its_columns_and_carries_no_control_characters(make, width):
    alone = render(make(), "terminal", width=width)
    for text in (alone, render([make(), sample()], "terminal", sample(), width=width)):
        assert max(len(line) for line in text.splitlines()) <= width
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)


def test_a_narrow_terminal_breaks_no_words():
    text = render(failing(), "terminal", width=60)
    assert (
        "✗ max_drop   " in text and "✓ parity_share_off  " in text and "✗ parity_max_lsb  " in text
    )
    board = render(several(), "terminal", width=60)
    lines = [line.split() for line in board.splitlines() if line.split()]
    assert lines[0] == ["run", "bits", "top-1", "(%)", "drop", "size", "speed"]
    assert {("passed",), ("failed",)} <= set(map(tuple, lines))
    assert ["net.onnx", "float", "91.73", "1.09", "MB", "1.00x"] in lines


def test_terminal_shows_markup_in_names_as_it_is():
    layers = [{"name": "[red]x[/]", "op": "[b]", "sqnr_db": 1.0}]
    text = render(sample(layers=layers, command="[u]"), "terminal")
    assert "[red]x[/]" in text
    assert "[b]" in text
    assert "qtool [u]" in text


def test_terminal_colour_is_an_option_and_no_color_wins(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" not in render(sample(), "terminal")
    assert "\x1b[32m" in render(sample(), "terminal", color=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in render(sample(), "terminal", color=True)


def test_terminal_without_unicode_is_ascii():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    print_report(sample(), Console(file=stream, width=80))
    stream.flush()
    assert b"+ max_drop" in raw.getvalue()
    assert b"-0.05 to 0.29" in raw.getvalue()


def test_terminal_shows_the_worst_layers_worst_first_and_the_files(tmp_path):
    write_run_files(sample(), tmp_path)
    text = render(sample(), "terminal", folder=tmp_path, width=200)
    shown = re.findall(r"/conv(\d+)/Conv", text)
    assert shown == ["11", "10", "9", "8", "7", "6", "5", "4"]
    assert str(tmp_path / "report.html") in text


def test_html_is_one_file_without_network():
    for text in (render(failing(), "html"), render([failing(), sample()], "html", sample())):
        page = Page(text)
        assert page.links == []
        assert {"link", "img", "iframe"}.isdisjoint(page.tags) and page.tags.count("script") == 1
        assert "url(" not in text
        assert "http" not in text
        assert "prefers-color-scheme: dark" in text


def test_html_escapes_names():
    for text in (render(hostile(), "html"), render({HOSTILE: hostile(), "b": sample()}, "html")):
        page = Page(text)
        assert page.tags.count("script") == 1  # the page's own
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        assert "\x1b" not in text


def test_html_shows_each_layer_and_the_verdict():
    text = render(failing(), "html")
    assert text.count("/<wbr>Conv</code>") == 12 + 3
    assert ">Failed</span>" in text
    assert "max_drop 1.7 (limit 1)" in text


@pytest.mark.parametrize("fmt", ["terminal", "html", "markdown"])
def test_findings_and_warnings_stand_above_the_results(fmt):
    text = unescape(render(diagnosed(), fmt))
    results = text.index({"markdown": "| float |", "html": 'class="cards"'}.get(fmt, "simulated"))
    warning = text.index("look out")
    assert text.count("look out") == 1 and "WARNING: " not in text
    places = [text.index(f"cause {number}") for number in range(3)]
    assert warning < places[0] < places[1] < places[2] < results
    assert text.index("plain note") > results
    for words in ("evidence 0", 'layers: {"name:/conv0": 8}', "predicted +9.0 points", "1.00 kB"):
        assert words in text
    assert ("cause 3" in text) is (fmt == "html")
    assert "What next" not in render(sample(), fmt)


def test_a_warning_that_a_finding_explains_is_not_repeated():
    finding = Finding(finding="labels", evidence="look out; more about it")
    report = diagnosed().model_copy(update={"diagnosis": [finding]})
    assert formatting.warnings(diagnosed()) == ["look out"] and not formatting.warnings(report)
    assert render(report, "terminal").count("look out") == 1


@pytest.mark.parametrize("fmt", ["html", "markdown"])
def test_classes_that_changed_are_listed(fmt):
    text = re.sub(r"<[^>]*>|\|", " ", render(diagnosed(), fmt))
    assert re.search(r"cat\s+50\s+7\s+2\s+dog", text)
    assert "Classes that changed" not in render(sample(), fmt)


def test_lines_of_findings_can_be_copied_from_markdown():
    blocks = re.findall(r"```yaml\n(.*?)```", render(diagnosed(), "markdown"), re.S)
    assert [yaml.safe_load(block) for block in blocks] == [
        {"bits": {"layers": {f"name:/conv{number}": 8}}} for number in range(3)
    ]


@pytest.mark.parametrize("fmt", ["terminal", "html", "markdown"])
def test_the_parts_of_the_file_are_shown_where_there_are_some(fmt):
    shown = " ".join(render(sample(), fmt).split())
    for words in ("codes and numbers", "270 kB", "scales", "9.10 kB", "graph"):
        assert words in shown
    assert "code books" not in shown
    assert "codes and numbers" not in render(bare(), fmt)


@pytest.mark.parametrize("fmt", ["terminal", "html", "markdown"])
def test_several_outputs_and_their_quantities_are_shown_and_the_worst_named(fmt):
    group = {"axis": 1, "start": 4, "stop": 84, "source": "/cls/Sigmoid", "sqnr_db": 21.5}
    several = [{"name": "boxes", "sqnr_db": 31.5, "groups": [group]}, {"name": "same"}]
    shown = " ".join(render(sample(outputs=several), fmt).split())
    for words in ("boxes[:, 4:84]", "/cls/Sigmoid", "31.5", "none lost"):
        assert words in shown.replace("\\", "")
    assert shown.count("worst") == 1 and shown.index("21.5") < shown.index("worst")
    for outputs in ([several[1]], [{"name": "indices", "compared": False}] * 2, None):
        assert "none lost" not in render(sample(outputs=outputs), fmt)


def test_markdown_says_the_verdict_first_and_keeps_its_tables_whole():
    text = render(failing(), "markdown")
    assert text.startswith("### ❌ qtool ptq: failed\n")
    assert "<details><summary>12 layers</summary>" in text
    for table in re.findall(r"(?:^\|.*\n)+", render(hostile(), "markdown"), re.M):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1


def test_markdown_does_not_mention_or_embed():
    text = render(hostile(), "markdown")
    outside_code = re.sub(r"`[^`]*`", "", text)
    assert "<script" not in outside_code
    assert "@you" not in outside_code


def test_junit_has_one_case_per_gate_and_failures_say_limit_and_value():
    root = ElementTree.fromstring(render({"run": failing()}, "junit"))
    assert root.tag == "testsuites"
    (suite,) = root
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert list(cases) == ["max_drop", "parity_share_off", "parity_max_lsb"]
    failed = {name for name, case in cases.items() if case.find("failure") is not None}
    assert failed == {"max_drop", "parity_max_lsb"}
    assert cases["max_drop"].find("failure").get("message") == (
        "max_drop: value 1.7, limit at most 1"
    )
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    assert (root.get("tests"), root.get("failures")) == ("3", "2")


def test_junit_of_hostile_names_parses_and_of_several_runs_has_suites():
    root = ElementTree.fromstring(render({HOSTILE: hostile(), "b": sample()}, "junit"))
    assert len(root) == 2
    assert root.get("failures") == "0"


@pytest.mark.parametrize("fmt", ["terminal", "html", "markdown", "junit"])
def test_every_format_shows_the_parity_gate_that_failed(fmt):
    shares = {"share_off": 1e-5, "integer_share_off": 1e-4, "after_float_share_off": 0.0}
    report = sample(passed=False, parity={"samples": 64, "max_lsb": 1, **shares})
    text = render(report, fmt).replace("<wbr>", "")
    mark = {
        "terminal": r"✗ parity_integer_share_off +0.0001 +at most 1e-05",
        "html": r"parity_integer_share_off</code>(?:(?!</tr>).)*>failed<",
        "markdown": r"❌ \| `parity_integer_share_off` \| 0.0001",
        "junit": r'name="parity_integer_share_off" time="0">\s*<failure type="gate"',
    }[fmt]
    assert re.search(mark, text) and "parity_after_float_share_off" in text
    assert "parity_integer_share_off" in verdict(report).reason


@pytest.mark.parametrize("fmt", ["terminal", "markdown", "html"])
def test_a_file_that_is_slower_than_float_says_what_costs_it(fmt):
    timing = {**json.loads(sample().to_json())["latency"], "quantized_ms": 3.0, "speedup": 0.7}
    kernels = {"integer": {"QLinearConv": 2}, "float": {"Softmax": 1, "Erf": 4}}
    times = [("Softmax", 1, 1.5), ("QLinearConv", 2, 1.0), ("Erf", 4, 0.5)]
    measured = {"kernels": [{"op": op, "nodes": nodes, "ms": ms} for op, nodes, ms in times]}
    slow = sample(latency={**timing, **measured, "nodes": []}, kernels=kernels)
    shown = " ".join(render(slow, fmt).split())
    assert "Softmax 50%, Erf 17%" in shown
    stray = [f"/block/conv{number}_DequantizeLinear" for number in range(7)]
    plain = sample(latency=timing, kernels={**kernels, "stray_quantize": stray})
    shown = " ".join(render(plain, fmt).split())
    assert re.search(r"Erf x4, Softmax x1; 7 stray Q/DQ", shown), shown
    if fmt != "html":  # which lists all
        assert "and 4 more" in shown and "conv3_De" not in shown
    assert "in floats: " not in render(sample(), fmt)


def test_comparison_takes_differences_to_the_baseline():
    small = {"float_bytes": 1092222, "quantized_bytes": 145056, "compression": 7.53}
    rows = compare({"a": failing(), "b": sample(), "c": sample(size=small)}, "b").rows
    assert [row.name for row in rows] == ["b", "c", "a"]  # the baseline, then the best
    assert [row.baseline for row in rows] == [True, False, False]
    base, c, a = rows
    assert base.metric.delta is None
    assert a.metric.delta == pytest.approx(-1.58)  # exact up to the rounding of two doubles
    assert (a.metric.better, a.size.delta, a.size.better) == (False, 0, None)
    assert c.size.delta == pytest.approx(-50.0)  # likewise
    assert c.size.better is True


def several():
    """Return three runs of one network, the worst first, and one of another network."""
    timing = {**json.loads(sample().to_json())["latency"], "quantized_ms": 3.0, "speedup": 0.7}
    scores = json.loads(sample().to_json())["accuracy"]
    gained = sample(accuracy={**scores, "drop": -0.22, "quantized": 91.95}, latency=timing)
    other = {"path": "b/other.onnx", "sha256": "ef", "parameters": 1}
    lead = "runs/a-long-common-name/"
    return {
        f"{lead}failing": failing(),
        f"{lead}sample": sample(),
        f"{lead}gained": gained,
        "runs/other": sample(model=other, accuracy=None, latency=None),
    }


def test_a_leaderboard_has_the_float_models_and_the_best_run_first():
    board = compare(several())
    assert [(f.name, f.metric, f.latency) for f in board.floats] == [
        ("net.onnx", 91.73, 2.1),
        ("other.onnx", None, None),
    ]
    assert [row.name.rpartition("/")[2] for row in board.rows] == [
        *("gained", "sample", "failing", "other"),
    ]
    assert [row.bits for row in board.rows] == ["8"] * 4  # no mean width of weights: activations'
    lines = render(several(), "terminal").splitlines()
    assert max(map(len, lines)) <= 80
    shown = [line.split() for line in lines if line.split()]
    assert shown[0] == ["run", "verdict", "bits", "top-1", "(%)", "drop", "size", "speed"]
    assert ["net.onnx", "float", "32", "91.73", "1.09", "MB", "1.00x"] in shown
    (gained,) = [words for words in shown if "gained" in words[0]]
    assert gained[-5:] == ["gained", "0.22", "290", "kB", "0.70x"]
    wide = render(several(), "terminal", width=120)
    assert "worst layer" in wide and "27.0 dB" in wide


def test_a_leaderboard_is_a_table_in_markdown_and_can_be_sorted_in_html():
    text = render(several(), "markdown")
    assert (
        "| run | verdict | bits | top-1 (%) | drop | size | speed | latency | worst layer |" in text
    )
    assert "| `net.onnx` | float | 32 | 91.73 |  | 1.09 MB | 1.00x | 2.10 ms |  |" in text
    page = render(several(), "html")
    assert '<table class="sortable">' in page
    row = next(part for part in page.split("<tr") if "gained" in part)
    assert re.findall(r'data-value="([^"]*)"', row) == [
        *("91.95", "-0.22", "98.4", "290112", "0.7", "3.0", "27.0"),
    ]


def test_comparison_leaves_out_what_was_measured_otherwise():
    other = sample(data={"evaluation": {"count": 9, "sha256": "other"}}, environment={"cpu": "b"})
    comparison = compare({"a": sample(), "b": other}, "a")
    row = comparison.rows[1]
    assert (row.metric.delta, row.latency.delta) == (None, None)
    assert row.size.delta == 0
    assert len(comparison.caveats) == 2


def test_comparison_reads_an_error_rate_the_right_way_round():
    rates = {"metric": "wer", "unit": "%", "samples": 9, "float": 5.0}
    good = sample(accuracy={**rates, "quantized": 5.5, "drop": 0.5})
    bad = sample(accuracy={**rates, "quantized": 7.0, "drop": 2.0})
    comparison = compare({"good": good, "bad": bad}, "good")
    assert comparison.rows[1].metric.better is False
    assert comparison.higher_is_better is False


def test_json_of_one_is_the_report_and_of_several_one_object():
    assert render(sample(), "json") == sample().to_json()
    data = json.loads(render({"a": failing(), "b": sample()}, "json", baseline=sample()))
    assert data["baseline"] == "b"
    assert [run["name"] for run in data["runs"]] == ["b", "a"]
    assert data["runs"][1]["delta"]["metric"] == pytest.approx(-1.58)
    assert data["runs"][0]["report"] == json.loads(sample().to_json())


def test_a_baseline_from_elsewhere_joins_and_equal_names_are_numbered():
    data = json.loads(render([failing(), failing()], "json", baseline=sample()))
    assert [run["name"] for run in data["runs"]] == ["baseline", "net", "net (2)"]


def test_unknown_format_and_no_report_are_errors():
    with pytest.raises(RecipeError, match='did you mean "markdown"'):
        render(sample(), "markdwn")
    with pytest.raises(RecipeError, match="no report"):
        render([], "html")


def test_run_files_are_written_all_or_none(tmp_path, monkeypatch):
    paths = write_run_files(sample(), tmp_path)
    assert [path.name for path in paths] == ["report.json", "report.html", "report.md"]
    assert Report.read(tmp_path) == sample()

    def broken(report):
        raise ZeroDivisionError

    monkeypatch.setattr("qtool.report.render.markdown.markdown", broken)
    with pytest.raises(ZeroDivisionError):
        write_run_files(failing(), tmp_path)
    assert Report.read(tmp_path) == sample()


def test_chart_marks_the_worst_and_keeps_within_its_box():
    noise, *_ = strips = layer_strips(sample())
    assert [column.rank for column in noise.columns[-3:]] == [3, 2, 1]
    assert [strip.title for strip in strips[1:]] == ["Bits", "Bytes in the file"]
    for strip in strips:
        assert len(strip.columns) == 12
        assert all(0 <= column.height <= 100 for column in strip.columns)
    assert layer_strips(bare()) == []
    unmeasured = sample(layers=[{"name": "a", "op": "Conv", "weight_bits": 4, "bytes": 9}])
    assert [strip.title for strip in layer_strips(unmeasured)] == ["Bits", "Bytes in the file"]
    kinds = [(8, 8, 30.0), (8, "float", None), (4, "dynamic", 20.0)]
    noise, bits, _ = layer_strips(
        sample(
            layers=[
                {"name": f"{k}", "op": "Conv", "weight_bits": w, "activation_bits": a}
                | ({} if db is None else {"sqnr_db": db})
                for k, (w, a, db) in enumerate(kinds)
            ]
        )
    )
    assert ("none", "not measured") in noise.legend
    assert [(tick.label, tick.at) for tick in bits.ticks[2:]] == [("8", 80.0), ("float", 100.0)]
    assert [column.height for column in bits.columns] == [80.0, 80.0, 40.0]
    assert bits.line == dashes([80.0, 100.0, 80.0])
    assert drop_strip(None, []) is None


def test_lines_are_interrupted_where_nothing_was_measured():
    assert line([10.0, None, 30.0, 40.0]) == "M0.5 90h0M2.5 70h0L3.5 60h0"
    assert dashes([50.0, None]) == "M0.25 50h.5"
    assert bars([1, 0, 4]) == "M0 100V75H33.33V100zM66.67 100V0H100V100z"


def test_histograms_of_the_weakest_are_open_and_the_others_folded():
    shown = {"low": -1.0, "high": 1.0, "counts": [1, 2, 1], "grid": [-0.5, 1.5], "channels": [0.1]}
    layers = [
        {"name": f"/conv{k}/Conv", "op": "Conv", "sqnr_db": 40.0 - k, "weights": shown}
        | {"inputs": {**shown, "outside": 0.0123}}
        for k in range(5)
    ]
    weakest, others = layer_values(sample(layers=layers))
    assert [values.layer.name for values in weakest] == [f"/conv{k}/Conv" for k in (4, 3, 2)]
    assert [values.layer.name for values in others] == ["/conv0/Conv", "/conv1/Conv"]
    chart = weakest[0].charts[1]
    assert (chart.grid, chart.box) == ((20.0, 100.0), (0.0, 80.0))
    assert (chart.note, chart.range) == ("1.23 % outside the grid", "−0.5 to 1.5")
    layers[0]["inputs"] = {**shown, "outside": 1e-6}
    assert (
        layer_values(sample(layers=layers))[1][0].charts[1].note == "below 0.01 % outside the grid"
    )
    page = html(sample(layers=layers))
    assert page.count('<details class="weight" open') == 3 == page.count(" open data-layer=")
    assert "2 other layers" in page and "output channel" in page


def test_times_by_kernel_and_changed_samples_stand_in_the_page():
    timing = json.loads(sample().to_json())["latency"] | {
        "kernels": [
            {"op": "QLinearConv", "nodes": 3, "ms": 0.9},
            *({"op": f"Pool{k}", "nodes": 1, "ms": 0.01} for k in range(10)),
        ],
        "nodes": [{"name": HOSTILE, "op": "QLinearConv", "ms": 0.5}],
    }
    changed = {
        "name": "a.png",
        "label": "cat",
        "float": "cat",
        "quantized": HOSTILE,
        "margin": 1.25,
    }
    changed |= {"margin_after": -0.5, "thumbnail": "data:image/webp;base64,AAAA"}
    accuracy = json.loads(sample().to_json())["accuracy"]
    accuracy |= {"changed": 160, "changed_samples": [changed]}
    text = html(sample(latency=timing, accuracy=accuracy))
    page = Page(text)
    assert page.links == ["data:image/webp;base64,AAAA"]
    shown = " ".join(re.sub("<[^>]*>", " ", text).split())
    assert "QLinearConv 0.900 ms 90%" in shown and "1 of 160" in shown
    assert "Pool8 0.010 ms 1% 1 more kernel Pool9 " in shown
    assert "label cat" in shown and "1.25 -0.5" in shown


@pytest.mark.parametrize(
    ("scores", "title"), [([71.2, 80.0], "Top-1 in %"), ([-0.7, -0.5], "Loss against the float")]
)
def test_training_shows_ptq_beside_qat(scores, title):
    epochs = [
        {"epoch": k, "score": s, **({"loss": 1.5} if k else {})} for k, s in enumerate(scores)
    ]
    training = {"count": 5, "sha256": "0", "validation": 2, "quantizer": "lsq", "best": 1}
    page = html(sample(data={"training": {**training, "epochs": epochs, "float_score": 90.0}}))
    assert f"<h3>{title}" in page and "on 2 held-out samples" in page and ">Training loss" in page
    assert "<span>before</span><span>1 epoch</span><span>end</span>" in page
    assert '<div class="good" title="epoch 1: ' in page
    shown = " ".join(re.sub("<[^>]*>", " ", page).split())
    unit = " %" if scores[0] > 0 else ""
    first, last = (f"{abs(s):.2f} %" if unit else f"{abs(s):.4g}" for s in scores)
    assert f"before training (PTQ) {first} after epoch 1 (QAT) {last}" in shown


@pytest.mark.parametrize("top", [0.0, 1e-9, 0.3, 1.0, 38.0, 41.0, 1e9])
def test_ticks_are_few_and_cover_the_top(top):
    values = ticks(top)
    assert values[0] == 0
    assert values[-1] >= top
    assert 2 <= len(values) <= 8


def test_names_in_pages_break_behind_their_separators():
    text = render(sample(), "html")
    assert "<code>parity_<wbr>share_<wbr>off</code>" in text
    assert str(breakable("</a.b_c>")) == "&lt;/<wbr>a.<wbr>b_<wbr>c&gt;"


@pytest.mark.parametrize(("speedup", "amber"), [(0.8, True), (1.0, False)])
def test_a_slower_file_is_amber(speedup, amber):
    timing = {"threads": 1, "batch": 1, "float_ms": 1.0, "quantized_ms": 1 / speedup}
    report = sample(latency={**timing, "speedup": speedup, "runs": 9}, gates=[])
    assert ("fair toned" in render(report, "html")) is amber
    shown = render(report, "terminal", color=True)
    assert ("\x1b[33m" in shown) is amber
