"""Read samples: images, arrays, text, recordings, a Python function, or noise."""

from qtool.data.reader import Reader
from qtool.data.readers.arrays import ArrayReader
from qtool.data.readers.images import ImageReader
from qtool.data.readers.python import PythonReader
from qtool.data.readers.synthetic import SyntheticReader
from qtool.data.readers.text import TextReader
from qtool.data.readers.wav import WavReader

READERS: dict[str, Reader] = {
    "images": ImageReader(),
    "arrays": ArrayReader(),
    "text": TextReader(),
    "wav": WavReader(),
    "python": PythonReader(),
    "synthetic": SyntheticReader(),
}
"""Key of a data section -> the reader it names."""
