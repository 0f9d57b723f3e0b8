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
"""Slaney's scale above 1000 Hz: 27 mels span a factor of 6.4."""


def log_mel(signal: np.ndarray, rate: int, options: LogMel) -> np.ndarray:
    """Compute the log-mel spectrogram of one recording.

    log(filters @ |STFT|^power + offset), then normalised.

    Args:
        signal: float [samples], at least ``shortest(options)`` of them.
        rate: samples a second.
        options: the settings.

    Returns:
        float32 [mels, frames], or [frames, mels] for the layout time_mel.
    """
    o = options
    filters = mel_filters(rate, o.n_fft, o.mels, o.fmin, o.fmax, o.scale, o.norm)
    energy = filters @ _magnitude(signal.astype(np.float64), o) ** o.power + o.offset
    mels: np.ndarray = np.log(energy) if o.log == "natural" else np.log10(energy)
    if o.log == "db":
        mels = 10 * mels
    if o.normalise == "sample":
        mels = (mels - mels.mean()) / (mels.std() or 1.0)
    elif isinstance(o.normalise, tuple):
        mels = (mels - o.normalise[0]) / o.normalise[1]
    return np.ascontiguousarray(mels.T if o.layout == "time_mel" else mels, np.float32)


def frame_count(samples: int, options: LogMel) -> int:
    """Return how many frames a recording of this length has."""
    padded = samples + 2 * (options.n_fft // 2) * options.center
    return 1 + (padded - options.n_fft) // options.hop


def shortest(options: LogMel) -> int:
    """Return the fewest samples that give a frame; mirroring needs one more than it mirrors."""
    return options.n_fft // 2 + 1 if options.center else options.n_fft


def samples_of(frames: int, options: LogMel) -> int:
    """Return the fewest samples with this many frames."""
    padded = options.n_fft + (frames - 1) * options.hop
    return max(padded - 2 * (options.n_fft // 2) * options.center, shortest(options))


def _magnitude(signal: np.ndarray, options: LogMel) -> np.ndarray:
    """Compute |STFT|, [n_fft / 2 + 1, frames], with a periodic Hann window."""
    length = options.window or options.n_fft
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    before = (options.n_fft - length) // 2
    window = np.pad(window, (before, options.n_fft - length - before))
    if options.center:
        signal = np.pad(signal, options.n_fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(signal, options.n_fft)[:: options.hop]
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
    """Compute triangular filters, evenly spaced in mels, float64 [mels, n_fft / 2 + 1].

    Args:
        rate: samples a second.
        n_fft: samples of one Fourier transform.
        mels: how many filters.
        fmin: the lowest frequency, in Hz.
        fmax: the highest frequency, in Hz; None is half the rate.
        scale: the mel scale, "htk" or "slaney".
        norm: "slaney" gives every filter the area 1 over Hz.
    """
    bins = np.fft.rfftfreq(n_fft, 1 / rate)
    low, high = _to_mel(np.array([fmin, fmax if fmax is not None else rate / 2]), scale)
    edges = _to_hertz(np.linspace(low, high, mels + 2), scale)
    left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    filters: np.ndarray = np.maximum(0, np.minimum(rising, falling))
    return filters * (2 / (right - left)) if norm == "slaney" else filters
