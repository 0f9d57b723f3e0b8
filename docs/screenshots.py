"""Make the screenshots of the documents from real runs: ``python docs/screenshots.py``.

Needs Chromium, and runs recipes/digits in about two minutes: 3-bit weights and activations without
repair, so that there is something to see, and six epochs of training at 2 bits on 600 images. The
screenshots are written to docs/images.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "recipes" / "digits"
IMAGES = ROOT / "docs" / "images"
COARSE = ("bits={weights: 3, activations: 3, layers: {first: 8, last: 8}}", "ptq=[]")
CHROMIUM = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
    *("--disable-background-networking", "--virtual-time-budget=3000"),
)
# Name of the image -> run, CSS selector of what is shown (None: the top of the page).
SHOTS: dict[str, tuple[str, str | None]] = {
    "report": ("coarse", None),
    "layers": ("coarse", "#chart-of-layers"),
    "values": ("coarse", "#values"),
    "changes": ("coarse", "#changed-samples"),
    "training": ("trained", "#training"),
}
WIDTH, TOP = 1180, 900
LARGEST = 100_000


def run(out: Path, command: str, recipe: str, *options: str) -> None:
    """Run one recipe; a gate that fails is part of what is shown."""
    arguments = [command, "--recipe", str(DIGITS / recipe), "--out", str(out), "--quiet", *options]
    code = subprocess.run([sys.executable, "-m", "qtool", *arguments], cwd=ROOT).returncode
    if code not in (0, 1):
        raise SystemExit(f"qtool {' '.join(arguments)}: exit code {code}")


def shoot(page: Path, selector: str | None, file: Path) -> None:
    """Write one image: the top of a page, or one part of it without the rest."""
    if selector is not None:
        rule = f"main > *:not({selector}) {{ display: none !important }} main {{ padding: 12px }}"
        text = page.read_text().replace("</head>", f"<style>{rule}</style></head>")
        page = page.with_name("part.html")
        page.write_text(text)
    height = TOP if selector is None else 2000
    shot = page.with_name("shot.png")
    options = [f"--window-size={WIDTH},{height}", f"--screenshot={shot}"]
    subprocess.run([*CHROMIUM, *options, page.as_uri()], check=True, stderr=subprocess.DEVNULL)
    image = Image.open(shot).convert("RGB")
    if selector is not None:
        empty = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
        left, top, right, bottom = ImageChops.difference(image, empty).getbbox() or (0, 0, 1, 1)
        image = image.crop((max(left - 8, 0), max(top - 8, 0), right + 8, bottom + 8))
    image.save(file, "WEBP", quality=80, method=6)
    size = file.stat().st_size
    print(f"{file.relative_to(ROOT)}  {image.width} x {image.height}  {size:,} bytes")
    if size > LARGEST:
        raise SystemExit(f"{file}: above {LARGEST:,} bytes")


def main() -> None:
    """Run the recipes, or use finished runs, and write all images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, help="finished runs: a folder with coarse and trained")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as scratch:
        if runs is None:
            runs = Path(scratch)
            subprocess.run([sys.executable, DIGITS / "prepare.py"], check=True)
            settings = [word for pair in COARSE for word in ("--set", pair)]
            run(runs / "coarse", "ptq", "int8.yaml", *settings, "--set", "evaluate.thumbnails=16")
            run(runs / "trained", "qat", "qat_w2a4.yaml", "--epochs", "6", "--set", "qat.count=600")
        IMAGES.mkdir(exist_ok=True)
        for name, (folder, selector) in SHOTS.items():
            page = Path(scratch) / "report.html"
            page.write_text((runs / folder / "report.html").read_text())
            shoot(page, selector, IMAGES / f"{name}.webp")


if __name__ == "__main__":
    main()
