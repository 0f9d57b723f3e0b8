"""The HTML report in headless Chromium: no errors, charts drawn, sorting, filters and zoom work."""

import json
import re
import shutil
import subprocess

import pytest
from report_samples import diagnosed, large

from qtool.report.render import render
from qtool.report.render.html import html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: install it to test the page's script and layout"
)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--virtual-time-budget=3000", "--enable-logging=stderr", "--dump-dom"),
)
SCRIPT = """
<script>
const click = (element) => element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const one = (selector) => document.querySelector(selector);
const every = (selector) => Array.from(document.querySelectorAll(selector));
const done = {};
const rows = () => every("#layers tbody tr").filter((row) => !row.hidden);
const column = (k) => rows().map((row) => parseFloat(row.cells[k].dataset.value));
done.errors = [];
addEventListener("error", (event) => done.errors.push(event.message));

const sqnr = every("#layers th")[4];
click(sqnr);
done.ascending = column(4);
click(sqnr);
done.descending = column(4);
const filter = one("#layers").parentElement.previousElementSibling.querySelector("input");
filter.value = "layer1 conv";
filter.dispatchEvent(new Event("input"));
done.filtered = rows().map((row) => row.cells[0].textContent);
done.count = filter.nextSibling.textContent;

const chart = one(".strips[data-rows]");
const width = () => chart.querySelector(".plot").getBoundingClientRect().width;
const narrow = width();
click(chart.previousElementSibling.querySelectorAll("button")[1]);
done.zoom = width() / narrow;

const last = chart.querySelector(".bars").lastElementChild;
const box = last.getBoundingClientRect();
last.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left, clientY: box.top }));
done.tip = one(".tip").textContent;
const folded = every("details[data-layer]").filter((each) => !each.open);
const name = folded[0].dataset.layer;
const names = NAMES;
click(chart.querySelector(".bars").children[names.indexOf(name)]);
done.opened = folded[0].open && folded[0].parentElement.open;

const histogram = one(".histogram[data-counts]");
const path = () => histogram.querySelector("path").getAttribute("d");
const logarithmic = path();
click(one("#values .tools button"));
done.redrawn = path() !== logarithmic && path().startsWith("M0 100V");
const area = histogram.getBoundingClientRect();
histogram.dispatchEvent(
  new PointerEvent("pointermove", { clientX: area.left + 2, clientY: area.top + 2 }));
done.bin = one(".tip").textContent;
const height = (element) => element.getBoundingClientRect().height;
done.drawn = every(".strips .bars i").filter((bar) => height(bar) > 1).length;
done.lines = every("svg.line path").map((line) => line.getBoundingClientRect().width > 100);
done.images = every("figure img").length;
done.overflow = document.documentElement.scrollWidth > innerWidth;
document.body.dataset.done = JSON.stringify(done);
</script>
"""

PROBE = """
<script>
const wide = [...document.querySelectorAll("main *")].filter(
  (e) => !e.closest(".scroll, .strips") && e.getBoundingClientRect().right > innerWidth);
parent.postMessage(wide.length + " of " + innerWidth, "*");
</script>
"""


def browse(page, width, folder):
    """Return the page's DOM after its scripts ran, and the messages of the console."""
    file = folder / "page.html"
    file.write_text(page)
    size = (f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900")
    done = subprocess.run(
        [CHROMIUM, *OPTIONS, *size, file.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


def test_the_page_of_a_large_network_works(tmp_path):
    report = large()
    page = html(report)
    assert len(page.encode()) < 3_000_000
    names = json.dumps([layer.name for layer in report.layers])
    dom, console = browse(page + SCRIPT.replace("NAMES", names), 1280, tmp_path)
    assert console == []
    done = json.loads(re.search(r"data-done=\"([^\"]*)\"", dom)[1].replace("&quot;", '"'))
    ratios = sorted(layer.sqnr_db for layer in report.layers)
    assert done["ascending"] == ratios and done["descending"] == ratios[::-1]
    assert len(done["filtered"]) == 14 and all("layer1" in name for name in done["filtered"])
    assert done["count"] == "14 of 54"
    assert done["zoom"] == pytest.approx(2, rel=0.05)
    assert report.layers[-1].name in done["tip"] and "dB with all before it" in done["tip"]
    assert done["opened"] and done["redrawn"] and done["images"] == 24
    first = min(report.layers, key=lambda layer: layer.sqnr_db).weights.counts[0]
    assert f": {first:,} values, " in done["bin"]
    assert done["drawn"] == 3 * 54 and done["lines"] == [True] * 6  # two with dots
    assert done["errors"] == [] and not done["overflow"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280, 1920])
def test_no_page_is_wider_than_its_window(width, tmp_path):
    pages = [html(large()), html(diagnosed()), render([large(), diagnosed()], "html")]
    for number, page in enumerate(pages):
        folder = tmp_path / str(number)
        folder.mkdir()
        # A headless window is at least 500 wide; a frame in it can be as narrow as a phone.
        (folder / "inner.html").write_text(page + PROBE)
        frame = f'<iframe src="inner.html" width="{width}" height="900" style="border:0"></iframe>'
        listen = "<script>onmessage = (m) => { document.body.dataset.wide = m.data }</script>"
        dom, console = browse(listen + frame, 2000, folder)
        assert console == []
        assert re.search(r'data-wide="([^"]*)"', dom)[1] == f"0 of {width}"
