"""MPEG audio with a tag that counts its frames, without one, and with one that lies."""

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ast_fast.data.audio import read_clip, read_windows
from ast_fast_kernels.audio.content import Content
from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.flaws import Survey
from ast_fast_kernels.audio.mpeg import read_mpeg_stream
from ast_fast_kernels.audio.source import AudioSource

RATE = 44100
KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
ID3 = b"ID3\x04\0\0" + bytes([0, 0, 2, 0]) + bytes(256)


def frames_of(mp3):
    """Split MPEG-1 layer III at 44.1 kHz into frames."""
    frames = []
    while mp3:
        size = 144000 * KBITS[mp3[2] >> 4] // RATE + (mp3[2] >> 1 & 1)
        frames.append(mp3[:size])
        mp3 = mp3[size:]
    return frames


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return a loud second and two quiet ones, each with its Xing frame first."""
    path = tmp_path_factory.mktemp("mp3") / "a.mp3"
    loud = 0.2 * np.random.default_rng(0).standard_normal(RATE)
    quiet = 0.1 * np.sin(2 * np.pi * 1000 * np.arange(2 * RATE) / RATE)
    made = []
    for wave, quality in ((loud, 0.0), (quiet, 0.9)):
        soundfile.write(
            path, wave, RATE, bitrate_mode="VARIABLE", compression_level=quality, format="MP3"
        )
        made.append(frames_of(path.read_bytes()))
        assert b"Xing" in made[-1][0]
    return made


def layer_1_or_2(layer, rates):
    """Return silent frames of MPEG-1 layer I or II at 44.1 kHz, by the index of their bit rate."""
    kbits = {1: range(0, 480, 32), 2: (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)}
    frames = []
    for index in rates:
        bits = 1000 * kbits[layer][index]
        size = 4 * (12 * bits // RATE) if layer == 1 else 144 * bits // RATE
        header = bytes([0xFF, 0xFF if layer == 1 else 0xFD, index << 4, 0xC0])
        frames.append(header + bytes(size - 4))
    return b"".join(frames)


def stream_of(path, **settings):
    with Content(AudioSource.of(path)) as content:
        return read_mpeg_stream(content, **settings)


def duration(path):
    """Return the frames that all windows of a file hold, which must begin like its clip."""
    settings = {"sample_rate": RATE, "resample_quality": "HQ"}
    clip = read_clip(path, num_samples=20000, **settings)
    windows = list(read_windows(path, num_samples=100, **settings))
    np.testing.assert_array_equal(
        np.concatenate(windows[:-1])[:20000], clip[: 100 * (len(windows) - 1)]
    )
    return 100 * len(windows)


def cases(loud, quiet):
    whole = b"".join(loud[1:] + quiet[1:])
    num = len(loud) + len(quiet) - 2
    return {
        "loud-first": (whole, num),
        "quiet-first": (b"".join(quiet[1:] + loud[1:]), num),
        "loud-twice": (b"".join(loud[1:] + loud[1:]), 2 * len(loud) - 2),
        "a-tag-in-front": (ID3 + whole, num),
        "two-tags-in-front": (ID3 + ID3 + whole, num),
        "a-tag-between": (b"".join(loud[1:]) + ID3 + b"".join(quiet[1:]), num),
        "id3v1-behind": (whole + b"TAG" + bytes(125), num),
        "ape-behind": (whole + b"APETAGEX" + bytes(range(97, 122)) * 200, num),
        "zeros-behind": (whole + bytes(5000), num),
        "a-little-junk-between": (b"".join(loud[1:]) + bytes(500) + b"".join(quiet[1:]), num),
        "begun-in-the-middle": (b"".join(loud[9:] + quiet[1:]), num - 8),
        "begun-in-a-frame": (b"".join(loud[8:] + quiet[1:])[100:], num - 8),
        "ended-in-a-frame": (whole[:-40], num - 1),
        "files-joined": (b"".join(loud + quiet), num + 1),
        "frames-behind-the-tagged": (b"".join(loud + quiet[1:]), num),
        "tag-without-a-count": (loud[0].replace(b"Xing\0\0\0\x0f", b"Xing\0\0\0\x0e") + whole, num),
        "layer-2-loud-first": (layer_1_or_2(2, [12] * 20 + [3] * 60), 80),
        "layer-2-quiet-first": (layer_1_or_2(2, [3] * 20 + [12] * 60), 80),
        "layer-1-loud-first": (layer_1_or_2(1, [14] * 60 + [3] * 180), 80),
    }


CASES = list(cases([b"", b""], [b"", b""]))


@pytest.mark.parametrize("case", CASES)
def test_every_frame_is_read_whatever_libsndfile_estimates(tmp_path, parts, case):
    content, num_frames = cases(*parts)[case]
    path = tmp_path / "a.mp3"
    path.write_bytes(content)
    # the last window is filled from the one before
    assert duration(path) == 100 * -(-1152 * num_frames // 100)


def test_samples_are_those_that_libsndfile_gives_as_far_as_it_reads(tmp_path, parts):
    loud, quiet = parts
    path = tmp_path / "a.mp3"
    path.write_bytes(b"".join(loud[1:] + quiet[1:]))
    alone, _ = soundfile.read(path)
    whole = read_clip(path, sample_rate=RATE, num_samples=5 * RATE, resample_quality="HQ")
    assert 0.1 * RATE < len(alone) < RATE  # it stops in the first of three seconds
    np.testing.assert_array_equal(whole[: len(alone)], np.rint(32768 * alone))


def test_a_tag_that_tells_the_truth_is_left_to_libsndfile(tmp_path, parts):
    path = tmp_path / "a.mp3"
    for frames, num_samples in zip(parts, (RATE, 2 * RATE), strict=True):
        path.write_bytes(b"".join(frames))
        alone, _ = soundfile.read(path)
        assert len(alone) == num_samples  # what was encoded, without the encoder's padding
        clip = read_clip(path, sample_rate=RATE, num_samples=3 * RATE, resample_quality="HQ")
        np.testing.assert_array_equal(clip[:num_samples], np.rint(32768 * alone))
        assert not clip[num_samples:].any()


def test_random_cuts_lose_nothing_but_the_frames_cut(tmp_path, parts):
    loud, quiet = parts
    whole = b"".join(loud[1:] + quiet[1:])
    rng = np.random.default_rng(0)
    path = tmp_path / "a.mp3"
    ends = np.cumsum([len(frame) for frame in loud[1:] + quiet[1:]])
    for _ in range(40):
        begin, end = np.sort(rng.integers(0, len(whole), 2))
        path.write_bytes(whole[begin:end])
        kept = np.searchsorted(ends, end, "right") - np.searchsorted(ends, begin, "left") - 1
        if kept < 8:
            continue
        assert abs(duration(path) - 1152 * kept) <= 1152 + 100


def test_a_tag_that_promises_more_frames_tells_a_cut(tmp_path, parts):
    path = tmp_path / "a.mp3"
    for frames in parts:
        content = b"".join(frames)
        for share in (0.3, 0.5, 0.9):
            path.write_bytes(content[: int(share * len(content))])
            for read in (read_clip, lambda *args, **kwargs: list(read_windows(*args, **kwargs))):
                with pytest.raises(BadAudioError, match=r"cut short: its header promises \d+ fram"):
                    read(path, sample_rate=RATE, num_samples=4 * RATE, resample_quality="HQ")
        path.write_bytes(content[:-1])  # less than a frame is missing
        read_clip(path, sample_rate=RATE, num_samples=4 * RATE, resample_quality="HQ")


def test_a_file_that_ends_in_a_frame_is_unfinished(tmp_path, parts):
    path = tmp_path / "a.mp3"
    for cut, flaws in ((None, ()), (-40, ("unfinished",))):
        path.write_bytes(b"".join(parts[0][1:])[:cut])
        survey = Survey()
        read_clip(
            path, sample_rate=RATE, num_samples=2 * RATE, resample_quality="HQ", survey=survey
        )
        assert survey.flaws == flaws


def test_a_gap_that_stops_the_decoder_is_told(tmp_path, parts):
    loud, quiet = parts
    path = tmp_path / "a.mp3"
    path.write_bytes(b"".join(loud[1:]) + bytes(5000) + b"".join(quiet[1:]))
    begin = sum(map(len, loud[1:]))
    with pytest.raises(BadAudioError, match=rf"1024 bytes from byte {begin} on are no MPEG audio"):
        list(read_windows(path, sample_rate=RATE, num_samples=1000, resample_quality="HQ"))
    read_clip(path, sample_rate=RATE, num_samples=1000, resample_quality="HQ")  # before the gap


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_count_is_that_of_the_tag_at_every_rate(tmp_path, rate, channels):
    path = tmp_path / "a.mp3"
    for mode in ("CONSTANT", "VARIABLE"):
        wave = 0.1 * np.random.default_rng(0).standard_normal((rate, channels))
        soundfile.write(path, wave, rate, bitrate_mode=mode, compression_level=0.5, format="MP3")
        stream = stream_of(path)
        assert stream.num_frames == stream.promised_frames > 0
        assert stream_of(path, at_most=3).num_frames == 3


@pytest.mark.parametrize(
    "content", [b"\xff", b"hello" * 99, b"\xff\xfb\x00\xc4" + bytes(500), b"ID3" + bytes(7)]
)
def test_what_has_no_countable_frame_is_none(tmp_path: Path, content):
    (tmp_path / "a").write_bytes(content)
    assert stream_of(tmp_path / "a") is None


def test_a_resource_fork_beside_it_does_no_harm(tmp_path, parts):
    path = tmp_path / "a.mp3"
    for frames in (parts[0], parts[0][1:]):  # with its tag, and without
        path.write_bytes(b"".join(frames))
        alone = duration(path)
        (tmp_path / "._a.mp3").write_bytes(bytes.fromhex("0005160700020000") + bytes(4000))
        with pytest.raises(soundfile.SoundFileError):
            soundfile.info(path)
        assert duration(path) == alone
        (tmp_path / "._a.mp3").unlink()


def test_a_file_without_a_whole_frame_says_so(tmp_path, parts):
    path = tmp_path / "a.mp3"
    path.write_bytes(parts[0][0][:100])
    with pytest.raises(BadAudioError, match=r"can decode \(no whole frame\)|not recognised"):
        read_clip(path, sample_rate=RATE, num_samples=1000, resample_quality="HQ")


def in_a_wav(mp3):
    """Return a WAV file of MPEG layer III, with a chunk behind it."""
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 16000, 1, 0, 12, 1, 2, 417, 1, 1393)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"fact" + struct.pack("<II", 4, RATE)
    body += b"data" + struct.pack("<I", len(mp3)) + mp3 + bytes(len(mp3) % 2)
    body += b"LIST" + struct.pack("<I", 2000) + bytes(2000)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_mpeg_in_a_wav_is_read_whole(tmp_path, parts):
    loud, quiet = parts
    path = tmp_path / "a.wav"
    for frames in (loud[1:] + quiet[1:], quiet[1:] + loud[1:]):
        path.write_bytes(in_a_wav(b"".join(frames)))
        assert duration(path) == 100 * -(-1152 * len(frames) // 100)
    path.write_bytes(in_a_wav(b"".join(loud)))
    assert duration(path) == RATE
