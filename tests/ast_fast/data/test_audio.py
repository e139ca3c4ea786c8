import os
import threading

import numpy as np
import pytest
import soundfile
import soxr

from ast_fast.data.audio import read_clip
from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.libsndfile import LibsndfileDecoder
from ast_fast_kernels.audio.wav import WavDecoder

RATE = 16000
QUALITY = "HQ"


def clip_of(path, num_samples=RATE):
    return read_clip(path, sample_rate=RATE, num_samples=num_samples, resample_quality=QUALITY)


def tone(rate, seconds, frequency=440.0):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, num_samples)


def test_samples_at_the_wanted_rate_come_through_to_the_bit(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32768, RATE, dtype=np.int16)
    samples[:2] = -32768, 32767
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="PCM_16")
    np.testing.assert_array_equal(clip_of(tmp_path / "a.wav"), samples)


@pytest.mark.parametrize("num_frames", [1, 15999, 16001, 40001])
def test_a_clip_is_cut_or_padded_with_zeros(tmp_path, num_frames):
    samples = np.random.default_rng(0).integers(-9999, 9999, num_frames, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    clip = clip_of(tmp_path / "a.wav")
    assert clip.shape == (RATE,)
    kept = min(num_frames, RATE)
    np.testing.assert_array_equal(clip[:kept], samples[:kept])
    assert not clip[kept:].any()


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_any_rate_and_channels_give_the_tone_that_went_in(tmp_path, rate, channels):
    wave = np.stack([tone(rate, 1.2)] * channels, axis=1)
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="FLOAT")
    difference = clip_of(tmp_path / "a.wav") - 32768 * tone(RATE, 1.0)
    # away from the start, where a filter sees silence before the tone
    assert np.abs(difference[800:]).max() < 4


@pytest.mark.parametrize(
    ("suffix", "largest"), [("flac", 0), ("aiff", 0), ("au", 0), ("caf", 0), ("ogg", 500)]
)
def test_every_format_gives_the_same_clip(tmp_path, suffix, largest):
    path = tmp_path / f"a.{suffix}"
    samples = np.rint(32768 * tone(44100, 1.2)).astype(np.int16)
    soundfile.write(path, samples, 44100)
    soundfile.write(tmp_path / "a.wav", samples, 44100)
    difference = clip_of(path).astype(int) - clip_of(tmp_path / "a.wav")
    assert np.abs(difference).max() <= largest


def test_channels_are_averaged(tmp_path):
    left, right = noise(RATE, 0), noise(RATE, 1)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), RATE, subtype="DOUBLE")
    expected = np.rint(16384 * (left + right))
    assert np.abs(clip_of(tmp_path / "a.wav") - expected).max() <= 1


def test_values_beyond_full_scale_are_clipped_not_wrapped(tmp_path):
    wave = np.array([0.0, 1.0, 1.5, -1.0, -1.5, 3e38, -3e38])
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    clip = clip_of(tmp_path / "a.wav", 7)
    assert clip.tolist() == [0, 32767, 32767, -32768, -32768, 32767, -32768]


def test_values_are_rounded_to_nearest(tmp_path):
    wave = np.array([0.6, -0.6, 1.4, -1.4]) / 32768
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="DOUBLE")
    assert clip_of(tmp_path / "a.wav", 4).tolist() == [1, -1, 1, -1]


@pytest.mark.parametrize("quality", ["QQ", "LQ", "MQ", "HQ", "VHQ"])
def test_the_end_of_a_clip_is_resampled_as_if_the_rest_had_been_read(tmp_path, quality):
    wave = noise(3 * 44100).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 44100, subtype="FLOAT")
    clip = read_clip(
        tmp_path / "a.wav", sample_rate=RATE, num_samples=RATE, resample_quality=quality
    )
    whole = np.rint(soxr.resample(wave, 44100, RATE, quality=quality)[:RATE] * 32768)
    np.testing.assert_array_equal(clip, whole.clip(-32768, 32767))


@pytest.mark.parametrize(
    ("name", "decoder"), [("a.wav", WavDecoder), ("a.flac", LibsndfileDecoder)]
)
def test_a_long_file_is_read_no_further_than_its_clip(tmp_path, monkeypatch, name, decoder):
    soundfile.write(tmp_path / name, np.zeros((60 * RATE, 2)), RATE)
    read = []
    plain_read = decoder.read

    def counting_read(self, count):
        block = plain_read(self, count)
        read.append(len(block))
        return block

    monkeypatch.setattr(decoder, "read", counting_read)
    clip_of(tmp_path / name)
    assert RATE <= sum(read) <= 1.2 * RATE


def _cut(share):
    def damage(path):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return damage


def _scramble(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(content)


def _cut_last_page(path, kept):
    """Keep so many bytes of an Ogg file's last page."""
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"OggS\0") + kept])


@pytest.mark.parametrize(
    ("suffix", "damage", "reason"),
    [
        ("wav", _cut(0.5), r"is cut short: its header promises 32000 bytes of audio, it holds"),
        ("wav", _cut(0.99), r"is cut short: its header promises 32000 bytes of audio, it holds"),
        ("wav", _cut(0.0005), r"is not audio that libsndfile can decode \("),
        ("aiff", _cut(0.5), r"is cut short: its header promises"),
        ("au", _cut(0.5), r"is cut short: its header promises 32000 bytes of audio, it holds"),
        ("flac", _cut(0.5), r"is not audio that libsndfile can decode \(.*lost sync\)"),
        ("flac", _scramble, r"is not audio that libsndfile can decode \("),
        ("ogg", _cut(0.7), r"is cut short: its last Ogg page is not whole"),
        ("ogg", _cut(0.97), r"is cut short: its last Ogg page is not whole"),
        ("ogg", lambda path: _cut_last_page(path, 20), r"its last Ogg page is not whole"),
        ("ogg", lambda path: _cut_last_page(path, 27), r"its last Ogg page is not whole"),
        ("mp3", _cut(0.5), r"is cut short: its header promises 16000 frames, \d+ read"),
    ],
    ids=lambda value: None if isinstance(value, str) else value.__name__.strip("<>"),
)
def test_a_damaged_file_is_told_from_a_short_one(tmp_path, suffix, damage, reason):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(RATE), RATE)
    clip_of(path)
    damage(path)
    with pytest.raises(BadAudioError, match=reason):
        clip_of(path)


def test_damage_beyond_the_clip_does_no_harm(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(4 * RATE), RATE)
    whole = clip_of(tmp_path / "a.wav")
    _cut(0.5)(tmp_path / "a.wav")
    np.testing.assert_array_equal(clip_of(tmp_path / "a.wav"), whole)


def test_a_streamed_wav_without_a_length_is_whole(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(8000), RATE)
    whole = clip_of(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    np.testing.assert_array_equal(clip_of(path), whole)


def _folder(path):
    path.mkdir()


def _fifo(path):
    os.mkfifo(path)


def _wave(values):
    def write(path):
        soundfile.write(path, np.array(values, np.float32), RATE, subtype="FLOAT")

    return write


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: None, r"^is absent$"),
        (_folder, r"^is not a file$"),
        (_fifo, r"^is not a file$"),
        (lambda path: path.write_bytes(b""), r"^is empty \(0 bytes\)$"),
        (lambda path: path.write_text("hello " * 99), r"is not audio .*\(Format not recognised\)$"),
        (_wave([]), r"^holds no samples$"),
        (_wave([0, 0, np.nan, np.inf]), r"^holds NaN or infinity \(first at frame 2\)$"),
        (_wave([0, -np.inf]), r"^holds NaN or infinity \(first at frame 1\)$"),
        (_wave([[np.inf, -np.inf]]), r"^holds NaN or infinity \(first at frame 0\)$"),
    ],
    ids=["absent", "folder", "fifo", "empty", "text", "no-frames", "nan", "inf", "stereo-inf"],
)
def test_a_file_without_usable_audio_says_why(tmp_path, write, reason):
    write(tmp_path / "a.wav")
    with pytest.raises(BadAudioError, match=reason):
        clip_of(tmp_path / "a.wav")


def test_a_headerless_file_is_no_audio(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(1000))
    with pytest.raises(BadAudioError, match="is not audio that libsndfile can decode"):
        clip_of(tmp_path / "a.raw")


@pytest.mark.parametrize("suffix", ["au", "snd", "gsm", "vox", "raw", "wav", ""])
def test_a_suffix_alone_makes_no_audio(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_text("hello " * 999)
    with pytest.raises(BadAudioError, match="is not audio that libsndfile can decode"):
        clip_of(path)


@pytest.mark.parametrize("rate", [1, 2_000_000_000])
def test_a_mad_sample_rate_is_refused_before_anything_is_read(tmp_path, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(RATE), RATE)
    content = bytearray(path.read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(BadAudioError, match=f"claims a sample rate of {rate} Hz"):
        clip_of(path)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "aiff", "au", "caf"])
def test_a_scrambled_header_gives_a_clip_or_a_reason(tmp_path, suffix):
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(2000), RATE)
    whole = path.read_bytes()
    outcomes = set()
    for _ in range(40):
        content = bytearray(whole)
        for at in rng.integers(0, min(len(content), 200), 4):
            content[at] = rng.integers(256)
        path.write_bytes(content)
        try:
            outcomes.add(clip_of(path, 3000).shape)
        except BadAudioError:
            outcomes.add("refused")
    assert outcomes <= {(3000,), "refused"}


def test_threads_decode_independently(tmp_path):
    for index in range(8):
        soundfile.write(tmp_path / f"{index}.flac", noise(RATE, index), 44100)
    alone = [clip_of(tmp_path / f"{index}.flac") for index in range(8)]
    together = [None] * 8

    def decode(index):
        together[index] = clip_of(tmp_path / f"{index}.flac")

    threads = [threading.Thread(target=decode, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(alone, together)
