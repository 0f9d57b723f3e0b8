"""The wav reader: every sample format, lengths, rates, and log-mel against its formula."""

import math
import wave

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from qtool.data import DataSection, InputSpec, LogMel, open_dataset
from qtool.data.readers.mel import frame_count, log_mel, mel_filters, samples_of, shortest
from qtool.data.readers.wav_file import fit, read_wav, resample
from qtool.errors import DataError

RATE = 8000
SPEC = {"input": InputSpec("input", ("N", 1, 100), "float32")}
SIGNAL = np.sin(np.arange(120) / 7) * 0.7


def save(path, signal=SIGNAL, rate=RATE, dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    if np.dtype(dtype).kind == "i":
        signal = np.round(signal * (np.iinfo(dtype).max)).astype(dtype)
    wavfile.write(path, rate, np.asarray(signal).astype(dtype))
    return path


def save_pcm(path, codes, width, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(RATE)
        file.writeframes(codes)
    return path


def read(folder, inputs=SPEC, labels=None, **wav):
    return open_dataset(DataSection(wav={"path": str(folder), **wav}, labels=labels), inputs)


def rows(data):
    return np.concatenate([batch["input"] for batch in data.batches(2)])


@pytest.mark.parametrize(
    ("width", "codes", "expected"),
    [
        (1, [0, 128, 255], [-1, 0, 127 / 128]),
        (2, [-(2**15), 0, 2**15 - 1], [-1, 0, 1 - 2**-15]),
        (3, [-(2**23), 1, 2**23 - 1], [-1, 2**-23, 1 - 2**-23]),
        (4, [-(2**31), 0, 2**31 - 1], [-1, 0, 1 - 2**-31]),
    ],
)
def test_integers_of_every_width_become_fractions(tmp_path, width, codes, expected):
    packed = b"".join(code.to_bytes(width, "little", signed=width > 1) for code in codes)
    signal, rate = read_wav(save_pcm(tmp_path / "a.wav", packed, width))
    assert rate == RATE and signal.tolist() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_stay_as_they_are(tmp_path, dtype):
    signal, _ = read_wav(save(tmp_path / "a.wav", dtype=dtype))
    assert np.array_equal(signal, SIGNAL.astype(dtype))


def test_stereo_is_averaged_and_said(tmp_path):
    save_pcm(tmp_path / "a.wav", np.array([[2, 4], [-6, 0]], "<i2").tobytes() * 50, 2, channels=2)
    signal, _ = read_wav(tmp_path / "a.wav")
    assert (signal[:2] * 2**15).tolist() == [3, -3]
    assert "1 of 1 recordings have several channels; they are averaged" in read(tmp_path).notes


def test_class_folders_flat_folders_and_label_files(tmp_path):
    for name in ("no/b.wav", "no/a.wav", "yes/c.WAV"):
        save(tmp_path / "classes" / name)
    data = read(tmp_path / "classes")
    assert data.names == ("no/a.wav", "no/b.wav", "yes/c.WAV")
    assert data.labels.tolist() == [0, 0, 1] and data.classes == ("no", "yes")
    save(tmp_path / "flat" / "x.wav")
    assert read(tmp_path / "flat").labels is None
    (tmp_path / "labels.csv").write_text("x.wav,3\n")
    labels = str(tmp_path / "labels.csv")
    assert read(tmp_path / "flat", labels=labels).labels.tolist() == [3]


def test_recordings_are_cut_and_padded():
    signal = np.arange(1.0, 6)
    assert fit(signal, 3, "start").tolist() == [1, 2, 3]
    assert fit(signal, 3, "center").tolist() == [2, 3, 4]
    assert fit(signal, 8, "start").tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
    assert fit(signal, 8, "center").tolist() == [0, 1, 2, 3, 4, 5, 0, 0]


def test_raw_samples_take_the_model_s_length(tmp_path):
    save(tmp_path / "a.wav", dtype=np.float32)
    data = read(tmp_path)
    assert rows(data).shape == (1, 1, 100) and rows(data).dtype == np.float32
    assert np.array_equal(rows(data)[0, 0], SIGNAL[:100].astype(np.float32))
    open_end = {"input": InputSpec("input", ("N", "T"), "float32")}
    with pytest.raises(
        DataError, match=r"length of a sample is open, .*: set `wav: \{samples: 16000\}`"
    ):
        read(tmp_path, open_end)
    assert rows(read(tmp_path, open_end, samples=130)).shape == (1, 130)


def test_rates_that_differ_need_one_rate(tmp_path):
    save(tmp_path / "a.wav")
    time = np.arange(4000) / 16000
    save(tmp_path / "b.wav", np.sin(2 * np.pi * 440 * time) / 2, rate=16000, dtype=np.float32)
    with pytest.raises(DataError, match=r"rates 8000 Hz \(a.wav\), 16000 Hz \(b.wav\).*8000"):
        read(tmp_path)
    data = read(tmp_path, rate=8000)
    assert "1 of 2 recordings are resampled to 8000 Hz" in data.notes
    reference = np.sin(2 * np.pi * 440 * np.arange(2000) / 8000) / 2
    result = resample(read_wav(tmp_path / "b.wav")[0], 16000, 8000)
    # away from the ends the filter's ripple is below a percent
    assert np.abs(result[100:-100] - reference[100:-100]).max() < 5e-3


def hertz_of(mel, scale):
    """librosa.mel_to_hz, one number at a time."""
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    return 200 / 3 * mel if mel < 15 else 1000 * math.exp(math.log(6.4) / 27 * (mel - 15))


def mel_of(hertz, scale):
    if scale == "htk":
        return 2595 * math.log10(1 + hertz / 700)
    return 3 * hertz / 200 if hertz < 1000 else 15 + math.log(hertz / 1000) * 27 / math.log(6.4)


def filters_by_hand(how, rate):
    low, high = mel_of(how.fmin, how.scale), mel_of(how.fmax or rate / 2, how.scale)
    step = (high - low) / (how.mels + 1)
    edges = [hertz_of(low + step * k, how.scale) for k in range(how.mels + 2)]
    result = np.zeros((how.mels, how.n_fft // 2 + 1))
    for m in range(how.mels):
        left, middle, right = edges[m : m + 3]
        for k in range(result.shape[1]):
            f = k * rate / how.n_fft
            up, down = (f - left) / (middle - left), (right - f) / (right - middle)
            result[m, k] = max(0.0, min(up, down))
        if how.norm == "slaney":
            result[m] *= 2 / (right - left)
    return result


@pytest.mark.parametrize("scale", ["htk", "slaney"])
@pytest.mark.parametrize("norm", ["none", "slaney"])
@pytest.mark.parametrize(("window", "center"), [(None, True), (50, False)])
def test_log_mel_is_the_formula_of_librosa_and_torchaudio(scale, norm, window, center):
    options = {"n_fft": 64, "hop": 24, "mels": 7, "fmin": 60.0, "fmax": 3500.0, "offset": 1e-5}
    how = LogMel(scale=scale, norm=norm, window=window, center=center, **options)
    signal = np.random.default_rng(1).normal(0, 0.3, 500)
    result = log_mel(signal, RATE, how)
    spectrum = torch.stft(
        torch.from_numpy(signal),
        64,
        24,
        window or 64,
        torch.hann_window(window or 64, periodic=True, dtype=torch.float64),
        center=center,
        pad_mode="reflect",
        return_complex=True,
    )
    expected = np.log(filters_by_hand(how, RATE) @ spectrum.abs().numpy() ** 2 + 1e-5)
    assert result.dtype == np.float32 and result.shape == expected.shape == (
        7,
        frame_count(500, how),
    )
    # two FFT libraries in float64, rounded once to float32
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-5)


def test_published_mel_filters():
    # librosa's documentation of filters.mel(sr=22050, n_fft=2048) prints [0., 0.016, ..., 0.]
    filters = mel_filters(22050, 2048, 128, 0.0, None, "slaney", "slaney")
    assert filters.shape == (128, 1025)
    assert round(float(filters[0, 1]), 3) == 0.016


def test_logarithms_powers_normalisation_and_layout():
    signal = np.random.default_rng(2).normal(0, 0.3, 400)
    base = {"n_fft": 64, "hop": 32, "mels": 5}
    plain = log_mel(signal, RATE, LogMel(**base)).astype(np.float64)
    ten = log_mel(signal, RATE, LogMel(**base, log="log10"))
    np.testing.assert_allclose(ten * np.log(10), plain, rtol=1e-5)
    db = log_mel(signal, RATE, LogMel(**base, log="db"))
    np.testing.assert_allclose(db, 10 * ten, rtol=1e-5)
    turned = log_mel(signal, RATE, LogMel(**base, layout="time_mel"))
    assert np.array_equal(turned.T, plain.astype(np.float32))
    each = log_mel(signal, RATE, LogMel(**base, normalise="sample"))
    assert abs(each.mean()) < 1e-6 and abs(each.std() - 1) < 1e-6
    fixed = log_mel(signal, RATE, LogMel(**base, normalise=[-3, 2]))
    np.testing.assert_allclose(fixed, (plain + 3) / 2, rtol=1e-5, atol=1e-6)
    silent = log_mel(np.zeros(400), RATE, LogMel(**base, normalise="sample"))
    assert not silent.any()


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_the_fewest_samples_for_so_many_frames(center, frames):
    how = LogMel(n_fft=50, hop=20, mels=4, center=center)
    samples = samples_of(frames, how)
    assert frame_count(samples, how) in (frames, frames + 1) and samples >= shortest(how)
    assert log_mel(np.ones(samples), RATE, how).shape[1] == frame_count(samples, how)


def test_log_mel_feeds_an_image_like_input(tmp_path):
    save(tmp_path / "a.wav", np.tile(SIGNAL, 40))
    spec = {"input": InputSpec("input", ("N", 1, 10, 21), "float32")}
    how = {"n_fft": 128, "hop": 64, "mels": 10}
    data = read(tmp_path, spec, log_mel=how)
    assert rows(data).shape == (1, 1, 10, 21)
    assert "recordings are cut or padded to 1280 samples, 0.16 s" in data.notes
    with pytest.raises(DataError, match=r"becomes \[1, 11, 21\]: expected it to fit"):
        read(tmp_path, spec, log_mel={**how, "mels": 11})
    with pytest.raises(DataError, match=r"0..5000 Hz does not fit a rate of 8000 Hz"):
        read(tmp_path, spec, log_mel={**how, "fmax": 5000.0})
    with pytest.raises(DataError, match=r"expected \[N, samples\].*set `wav: \{log_mel"):
        read(tmp_path, spec)
    turned = {"input": InputSpec("input", ("N", "T", 10), "float32")}
    result = rows(read(tmp_path, turned, samples=1280, log_mel={**how, "layout": "time_mel"}))
    assert result.shape == (1, 21, 10)
    with pytest.raises(DataError, match="30 samples are fewer than one frame"):
        read(tmp_path, turned, samples=30, log_mel={**how, "layout": "time_mel"})
