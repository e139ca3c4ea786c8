"""load and fbank_files: spans, parts of files, bad files, threads, early ends, other processes."""

import json
import pickle
import tarfile
import threading
import time
import tracemalloc
from dataclasses import asdict

import numpy as np
import pytest
import soundfile
import xxhash

from ast_fast_kernels import (
    AudioSource,
    BadAudioError,
    FbankConfig,
    fbank,
    fbank_files,
    load,
    resample,
)
from ast_fast_kernels.audio import decode
from ast_fast_kernels.audio.ahead import in_order
from ast_fast_kernels.audio.load import read_waveform
from ast_fast_kernels.testing.processes import run_program

RATE = 16000


def noise(seconds=1.0, rate=RATE, channels=1, seed=0):
    shape = (round(seconds * rate), channels)
    return 0.1 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of files of many formats, by name: their rate is 44.1 kHz."""
    made = tmp_path_factory.mktemp("audio")
    wave = noise(2.0, 44100, 2)
    for name, subtype in (
        ("a.wav", "PCM_16"), ("b.wav", "FLOAT"), ("c.flac", "PCM_16"), ("d.ogg", "VORBIS"),
        ("e.mp3", "MPEG_LAYER_III"), ("f.aiff", "PCM_24"), ("g.w64", "PCM_16"), ("h.caf", "ALAW"),
    ):  # fmt: skip
        soundfile.write(made / name, wave, 44100, subtype=subtype)
    return made


def test_load_gives_the_mean_of_channels_resampled(folder):
    stored = soundfile.read(folder / "a.wav", dtype="float32")[0].mean(axis=1)
    waveform, rate = load(folder / "a.wav")
    assert (rate, waveform.dtype) == (16000, np.float32)
    expected = resample(stored, 44100, 16000)
    np.testing.assert_allclose(waveform, expected, atol=1e-6)
    kept, rate = load(folder / "a.wav", sample_rate=None)
    assert rate == 44100
    np.testing.assert_allclose(kept, stored, atol=1e-7)


def test_every_format_is_loaded(folder):
    stored = load(folder / "a.wav")[0]
    for path in sorted(folder.iterdir()):
        waveform = load(path)[0]
        close = {".ogg": 0.2, ".mp3": 0.9, ".caf": 0.1}.get(path.suffix, 1e-3)  # of lossy ones
        assert abs(len(waveform) - len(stored)) < 2000
        count = min(map(len, (waveform, stored)))
        error = waveform[:count] - stored[:count]
        assert path.suffix == ".mp3" or np.square(error).sum() < close * np.square(stored).sum()


@pytest.mark.parametrize("rate", [None, 16000, 48000])
def test_a_span_is_a_part_of_the_whole(folder, rate):
    for path in sorted(folder.iterdir()):
        whole, rate_of_whole = load(path, sample_rate=rate)
        for start, duration in ((0.0, 0.5), (0.7, 0.4), (1.5, None), (1.9, 5.0)):
            span, _ = load(path, sample_rate=rate, start=start, duration=duration)
            begin = round(start * rate_of_whole)
            count = len(whole) - begin if duration in (None, 5.0) else duration * rate_of_whole
            assert len(span) == round(count)
            np.testing.assert_allclose(span, whole[begin : begin + len(span)], atol=3e-5)


def test_a_span_of_features_ends_where_its_file_does(folder):
    with pytest.raises(BadAudioError, match=r"a\.wav ends before the span, which begins at 3\.0 s"):
        load(folder / "a.wav", start=3.0)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="start must be a finite number from 0 on"):
            load(folder / "a.wav", start=bad)
    with pytest.raises(ValueError, match=r"start must be at most 1e\+09 s, got 1e\+305"):
        load(folder / "a.wav", start=1e305)


def test_a_name_that_no_file_has_is_told():
    with pytest.raises(BadAudioError, match="has a name with a NUL, as no file has"):
        load("a\0.wav")


def test_a_part_of_a_file_is_a_file(folder, tmp_path):
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    with tarfile.open(tmp_path / "all.tar") as tar:
        for member in tar.getmembers():
            source = AudioSource(str(tmp_path / "all.tar"), member.offset_data, member.size)
            whole = AudioSource.of(folder / member.name)
            (waveform, info), (expected, expected_info) = (
                read_waveform(one, digest=True) for one in (source, whole)
            )
            np.testing.assert_array_equal(waveform, expected)
            assert info == expected_info
            assert len(info.digest) == 32


def test_the_digest_is_of_all_bytes_also_of_a_span(folder):
    for path in sorted(folder.iterdir()):
        expected = xxhash.xxh3_128_hexdigest(path.read_bytes())
        for source in (AudioSource.of(path), AudioSource(str(path), start=0.5, duration=0.1)):
            assert read_waveform(source, digest=True)[1].digest == expected
    assert read_waveform(AudioSource.of(folder / "a.wav"))[1].digest is None


@pytest.mark.parametrize("preset", ["kaldi", "whisper"])
def test_blocks_change_no_bit(folder, monkeypatch, preset):
    config = FbankConfig.preset(preset)

    def read(path):
        (found,) = fbank_files([path], config, threads=1)
        spans = [load(path, start=0.7, duration=0.9)[0], load(path, start=1.3)[0]]
        kept = load(path, sample_rate=None)[0]
        return [load(path)[0], kept, *spans, found.features]

    for name in ("a.wav", "b.wav", "c.flac"):
        monkeypatch.setattr(decode, "BLOCK_VALUES", 2**20)
        whole = read(folder / name)
        monkeypatch.setattr(decode, "BLOCK_VALUES", 2 * 5003)
        for expected, found in zip(whole, read(folder / name), strict=True):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


def test_memory_is_that_of_the_result(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", noise(120.0, 44100), 44100, subtype="PCM_16")
    monkeypatch.setattr(decode, "BLOCK_VALUES", 2**16)
    load(tmp_path / "a.wav", duration=1.0)
    tracemalloc.start()
    try:
        waveform = load(tmp_path / "a.wav")[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * waveform.nbytes


def test_a_source_is_plain_values():
    source = AudioSource("a.wav", 3, 5, 0.5, 1.5)
    assert AudioSource(**json.loads(json.dumps(asdict(source)))) == source
    assert pickle.loads(pickle.dumps(source)) == source
    assert AudioSource.of(source) is source


@pytest.mark.parametrize("threads", [1, 3])
def test_features_are_those_of_loaded_files_in_order(folder, threads):
    config = FbankConfig()
    paths = 2 * sorted(folder.iterdir())
    results = fbank_files(iter(paths), config, threads=threads)
    for path, found in zip(paths, results, strict=True):
        assert found.path == str(path)
        assert found.error is None
        expected = fbank(load(path)[0], config)
        np.testing.assert_array_equal(found.features, expected)


def test_int16_at_the_right_rate_gives_the_features_of_floats(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(), RATE)
    (found,) = fbank_files([tmp_path / "a.wav"])
    np.testing.assert_array_equal(found.features, fbank(load(tmp_path / "a.wav")[0]))
    assert found.seconds == 1.0


@pytest.fixture
def some_bad(tmp_path):
    """Return a good file, one of 5 ms, a text and a missing one, then a good one."""
    paths = [tmp_path / name for name in ("a.wav", "short.wav", "text.wav", "missing.wav", "b.wav")]
    soundfile.write(paths[0], noise(), RATE)
    soundfile.write(paths[1], noise(0.005), RATE)
    paths[2].write_text("hello")
    soundfile.write(paths[4], np.zeros(RATE), RATE)
    return paths


@pytest.mark.parametrize("threads", [1, 2])
def test_bad_files_raise_are_left_out_or_returned(some_bad, threads):
    found = list(fbank_files(some_bad, threads=threads, errors="return"))
    assert [str(one.error) if one.error else None for one in found] == [
        None,
        "is too short: 0.0050 s are less than one frame",
        "is not audio that libsndfile can decode (Format not recognised)",
        "is absent",
        None,
    ]
    assert [one.features is None for one in found] == [False, True, True, True, False]
    assert found[4].flaws == ("silent",)
    kept = list(fbank_files(some_bad, threads=threads, errors="skip"))
    assert [one.path for one in kept] == [found[0].path, found[4].path]
    reading = fbank_files(some_bad, threads=threads)
    assert next(reading).path == found[0].path
    with pytest.raises(BadAudioError, match=r"short\.wav is too short"):
        next(reading)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"errors": "ignore"}, "errors must be one of raise, skip, return, got 'ignore'"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        (
            {"config": FbankConfig(sample_frequency=16000.5)},
            r"sample_frequency must be a whole number of Hz for files, got 16000\.5",
        ),
    ],
)
def test_arguments_are_checked_at_the_call(arguments, message):
    with pytest.raises(ValueError, match=message):
        fbank_files([], **arguments)


def helpers():
    return [thread for thread in threading.enumerate() if thread.name == "ast-fast-files"]


def test_work_goes_no_further_ahead_than_asked():
    taken = []

    def items():
        for item in range(1000):
            taken.append(threading.current_thread())
            yield item

    results = in_order(lambda item: item, items(), threads=3, ahead=4)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(taken) == 16
    assert set(taken) == {threading.current_thread()}
    results.close()
    assert not helpers()


def test_an_error_comes_in_its_turn_and_ends_the_threads():
    def work(item):
        if item == 5:
            raise RuntimeError("five")
        return item

    results = in_order(work, range(100), threads=3, ahead=9)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(RuntimeError, match="five"):
        next(results)
    assert not helpers()


def test_an_interrupt_while_the_caller_waits_ends_the_threads():
    begun = threading.Event()

    def work(item):
        begun.set()
        time.sleep(0.2)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return item

    with pytest.raises(KeyboardInterrupt):
        list(in_order(work, range(8), threads=3, ahead=2))
    assert begun.is_set()
    assert not helpers()


WORKERS = """
import sys
import torch
from ast_fast_kernels import fbank_files

class Files(torch.utils.data.IterableDataset):
    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        paths = sys.argv[1:][info.id :: info.num_workers]
        for found in fbank_files(paths, threads=2):
            yield found.path, found.features.sum()

if __name__ == "__main__":
    here = {found.path: found.features.sum() for found in fbank_files(sys.argv[1:], threads=2)}
    for method, workers in (("fork", 2), ("spawn", 1)):
        loader = torch.utils.data.DataLoader(
            Files(), batch_size=None, num_workers=workers, multiprocessing_context=method
        )
        assert dict(loader) == here
    print(len(here), "files")
"""


def test_files_are_read_in_a_loaders_workers(folder, tmp_path):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    paths = [str(path) for path in sorted(folder.iterdir())]
    run = f"import runpy, sys; sys.argv[0] = {str(script)!r}; runpy.run_path({str(script)!r}, "
    assert "8 files" in run_program(run + "run_name='__main__')", *paths)


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("soundfile", "soxr", "torch")))
from ast_fast_kernels import fbank_files, load
print(len(load(sys.argv[1])[0]), len(next(fbank_files(sys.argv[1:2])).features))
try:
    load(sys.argv[2])
except ImportError as error:
    print(error)
"""


def test_wav_needs_neither_soundfile_nor_soxr(folder):
    printed = run_program(WITHOUT, str(folder / "a.wav"), str(folder / "c.flac"))
    assert printed.startswith("32000 198\n")
    assert "c.flac: formats other than plain WAV need soundfile: pip install" in printed
    assert "ast-fast-kernels[audio]" in printed
