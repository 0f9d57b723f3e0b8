"""Write scikit-learn's bundled digits as class folders of PNG: data/{train,test}/<digit>/NNNN.png.

The 8 x 8 scans (0..16) become 8-bit gray images of 32 x 32, enlarged bilinearly. Every fourth image
belongs to the test part: 1347 to train and calibrate, 450 to evaluate. Nothing is downloaded.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

SIDE = 32
TEST_EVERY = 4


def prepare(folder: Path) -> bool:
    """Write the images to ``folder`` and return True, or False if the folder exists.

    They are written to a temporary folder and renamed, so that an existing folder is complete; of
    two processes that write at once, the second deletes its copy.
    """
    if folder.is_dir():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write_images(scratch)
        scratch.chmod(0o755)
        os.rename(scratch, folder)
    except OSError:
        if not folder.is_dir():
            raise
        return False
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def write_images(folder: Path) -> None:
    """Write all 1797 images below ``folder``."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = "test" if index % TEST_EVERY == 0 else "train"
        path = folder / part / str(label) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        scan = Image.fromarray((pixels * (255 / 16)).round().astype("uint8"))
        scan.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(path)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data"
    print(f"{target}: {'written' if prepare(target) else 'already there'}")
