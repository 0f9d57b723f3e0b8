"""Log-mel spectrograms in numpy, by the formulas that librosa and torchaudio use.

Source: Slaney 1998, "Auditory Toolbox" (the slaney scale and area); Young et al., "The HTK Book"
    (2595 log10(1 + f / 700)).
"""

from functools import lru_cache

import numpy as np

from qtool.data.reader_options import LogMel

LINEAR_STEP = 200 / 3
"""Slaney's scale below 1000 Hz: Hz per mel."""
LOG_START = 1000.0
LOG_STEP = np.log(6.4) / 27


def log_mel(signal: np.ndarray, rate: int, how: LogMel) -> np.ndarray:
    """The log-mel spectrogram of one recording.

    Args:
        signal: float [samples], at least ``shortest(how)`` of them.
        rate: samples a second.
        how: the settings.

    Returns:
        float32 [mels, frames], or [frames, mels] for the layout time_mel.
    """
    filters = mel_filters(rate, how.n_fft, how.mels, how.fmin, how.fmax, how.scale, how.norm)
    energy = filters @ _magnitude(signal.astype(np.float64), how) ** how.power + how.offset
    found: np.ndarray = np.log(energy) if how.log == "natural" else np.log10(energy)
    if how.log == "db":
        found = 10 * found
    if how.normalise == "sample":
        found = (found - found.mean()) / (found.std() or 1.0)
    elif isinstance(how.normalise, tuple):
        found = (found - how.normalise[0]) / how.normalise[1]
    return np.ascontiguousarray(found.T if how.layout == "time_mel" else found, np.float32)


def frame_count(samples: int, how: LogMel) -> int:
    """How many frames a recording of this length has."""
    padded = samples + 2 * (how.n_fft // 2) * how.center
    return 1 + (padded - how.n_fft) // how.hop


def shortest(how: LogMel) -> int:
    """The fewest samples that give a frame; mirroring needs more than it mirrors."""
    return how.n_fft // 2 + 1 if how.center else how.n_fft


def samples_of(frames: int, how: LogMel) -> int:
    """The fewest samples with this many frames."""
    padded = how.n_fft + (frames - 1) * how.hop
    return max(padded - 2 * (how.n_fft // 2) * how.center, shortest(how))


def _magnitude(signal: np.ndarray, how: LogMel) -> np.ndarray:
    """|STFT|, [n_fft / 2 + 1, frames], with a periodic Hann window."""
    length = how.window or how.n_fft
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    before = (how.n_fft - length) // 2
    window = np.pad(window, (before, how.n_fft - length - before))
    if how.center:
        signal = np.pad(signal, how.n_fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(signal, how.n_fft)[:: how.hop]
    return np.abs(np.fft.rfft(frames * window, axis=1)).T


def _to_mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 2595.0 * np.log10(1 + hertz / 700)
    above = LOG_START / LINEAR_STEP + np.log(np.maximum(hertz, LOG_START) / LOG_START) / LOG_STEP
    return np.where(hertz < LOG_START, hertz / LINEAR_STEP, above)


def _to_hertz(mels: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 700.0 * (10 ** (mels / 2595) - 1)
    start = LOG_START / LINEAR_STEP
    above = LOG_START * np.exp(LOG_STEP * (np.maximum(mels, start) - start))
    return np.where(mels < start, mels * LINEAR_STEP, above)


@lru_cache(maxsize=4)
def mel_filters(
    rate: int,
    n_fft: int,
    mels: int,
    fmin: float,
    fmax: float | None,
    scale: str,
    norm: str,
) -> np.ndarray:
    """Triangular filters, evenly spaced in mels, float64 [mels, n_fft / 2 + 1]."""
    bins = np.fft.rfftfreq(n_fft, 1 / rate)
    ends = _to_mel(np.array([fmin, fmax if fmax is not None else rate / 2]), scale)
    edges = _to_hertz(np.linspace(ends[0], ends[1], mels + 2), scale)
    left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    filters: np.ndarray = np.maximum(0, np.minimum(rising, falling))
    return filters * (2 / (right - left)) if norm == "slaney" else filters
