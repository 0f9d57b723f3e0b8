"""Calibration and evaluation data: readers, datasets and preprocessing."""

from qtool.data.config import DataSection, Take
from qtool.data.dataset import Dataset, drop_overlap, drop_unusable, split
from qtool.data.inputs import InputSpec, check_sample_shapes
from qtool.data.opening import fit_batch_axes, open_dataset
from qtool.data.preprocess import Preprocess, load_preprocess
from qtool.data.reader import Reader, Section
from qtool.data.reader_options import Arrays, LogMel, Python, Synthetic, Text, Wav
from qtool.data.readers import READERS
from qtool.data.source import Batch, Opening, Source

__all__ = [
    "READERS",
    "Arrays",
    "Batch",
    "DataSection",
    "Dataset",
    "InputSpec",
    "LogMel",
    "Opening",
    "Preprocess",
    "Python",
    "Reader",
    "Section",
    "Source",
    "Synthetic",
    "Take",
    "Text",
    "Wav",
    "check_sample_shapes",
    "drop_overlap",
    "drop_unusable",
    "fit_batch_axes",
    "load_preprocess",
    "open_dataset",
    "split",
]
