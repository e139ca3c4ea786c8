"""Every container that libsndfile writes: whole, cut, with something behind, of unknown length."""

import re
import struct
import tempfile
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ast_fast.data.audio import read_clip, read_windows
from ast_fast_kernels.audio.containers import AudioView
from ast_fast_kernels.audio.content import Content
from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.flaws import Survey
from ast_fast_kernels.audio.source import AudioSource

RATE = 16000
NUM_FRAMES = 3201
"""An odd number, so that chunks are padded."""
FORMATS = sorted(set(soundfile.available_formats()) - {"RAW", "SD2"})
"""All that are one file with a header: SD2's is a file of its own."""
NO_LENGTH = {"PAF", "PVF", "IRCAM", "XI"}
"""Formats whose header does not say how long the audio is."""
ENDS_WITH_THE_FILE = NO_LENGTH | {"VOC", "WVE"}
"""Formats of which libsndfile takes all that follows for audio."""


def tone(num_frames=NUM_FRAMES, rate=RATE):
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(num_frames) / rate)


@cache
def written(file_format, subtype, channels=1):
    """Return a file of a tone, and its rate; None if libsndfile cannot write that."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a")
        for rate in (RATE, 44100, 8000):
            wave = np.stack([tone(rate=rate)] * channels, axis=1)
            try:
                soundfile.write(path, wave, rate, format=file_format, subtype=subtype)
            except soundfile.SoundFileError:
                continue
            return path.read_bytes(), soundfile.info(path).samplerate  # some have only one
    return None


def read_both(path, content, rate=RATE, survey=None):
    """Return the samples, or the reason why there are none, by both functions; they must agree."""
    path.write_bytes(content)
    settings = {"sample_rate": rate, "resample_quality": "HQ"}
    try:
        clip = read_clip(path, num_samples=20000, survey=survey, **settings)
    except BadAudioError as error:
        reason = str(error)
        with pytest.raises(BadAudioError, match=f"^{re.escape(reason)}$"):
            list(read_windows(path, num_samples=1000, **settings))
        return reason
    windows = list(read_windows(path, num_samples=1000, **settings))
    whole, last = 1000 * (len(windows) - 1), windows[-1]
    np.testing.assert_array_equal(np.concatenate([clip[:0], *windows[:-1]]), clip[:whole])
    tail = clip[whole : whole + 1000]
    rest = len(np.trim_zeros(tail, "b"))
    assert rest == 0 or len(windows) == 1 or tail[:rest].tobytes() in last.tobytes()
    return clip


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_is_read_whole_or_told_to_be_cut(tmp_path, file_format):
    path = tmp_path / "a"
    tried = 0
    for subtype in soundfile.available_subtypes(file_format):
        if (made := written(file_format, subtype)) is None:
            continue
        content, rate = made
        whole = read_both(path, content, rate)
        if subtype.startswith(("PCM_", "FLOAT", "DOUBLE")) and file_format != "VOC":
            bound = 256 if "8" in subtype else 1
            wave = 32768 * tone(rate=rate)
            assert np.abs(whole[: NUM_FRAMES - 200] - wave[: NUM_FRAMES - 200]).max() <= bound
        half = read_both(path, content[: len(content) // 2], rate)
        if file_format in NO_LENGTH:
            assert isinstance(half, np.ndarray), subtype
        else:
            assert isinstance(half, str), subtype
            assert "cut short" in half or "cannot" in half or "is not audio" in half
        # one byte less loses no whole frame of plain samples; packed ones may need it
        less = read_both(path, content[:-1], rate)
        if subtype.startswith(("PCM_", "FLOAT", "DOUBLE")) and file_format not in (
            *("FLAC", "HTK", "VOC", "OGG", "PAF"),
        ):
            np.testing.assert_array_equal(less[: NUM_FRAMES - 1], whole[: NUM_FRAMES - 1])
        for behind in (b"\0", bytes(3000), b"ID3v1" * 99):
            more = read_both(path, content + behind, rate)
            if file_format in ("HTK", "VOC"):
                continue  # HTK's header must fit the file; VOC's sections must end
            is_packed = subtype.startswith(("G72", "GSM", "NMS")) or subtype.endswith("ADPCM")
            if file_format in ENDS_WITH_THE_FILE or is_packed:
                np.testing.assert_array_equal(more[:3000], whole[:3000])
            else:
                np.testing.assert_array_equal(more, whole)
        tried += 6
    assert tried


def put(content, marker, offset, form, value):
    """Write a number at an offset from the last place of a marker."""
    changed = bytearray(content)
    struct.pack_into(form, changed, content.rindex(marker) + offset, value)
    return bytes(changed)


SIZES = {
    "WAV": (b"data", 4, "<I"),
    "AIFF": (b"SSND", 4, ">I"),
    "SVX": (b"BODY", 4, ">I"),
    "CAF": (b"data", 4, ">q"),
    "W64": (b"data", 16, "<q"),
    "RF64": (b"ds64", 16, "<q"),
    "AU": (b".snd", 8, ">I"),
    "NIST": None,
}
"""Where a header has the size of the audio, in bytes."""


def promising(file_format, content, more, frame):
    """Return a file whose header promises so many bytes more."""
    if file_format == "NIST":
        frames = b"sample_count -i %d\n"
        return content.replace(frames % NUM_FRAMES, frames % (NUM_FRAMES + -(-more // frame)))
    marker, offset, form = SIZES[file_format]
    (size,) = struct.unpack_from(form, content, content.rindex(marker) + offset)
    return put(content, marker, offset, form, size + more)


@pytest.mark.parametrize(
    ("file_format", "subtype", "channels"),
    [
        (file_format, subtype, channels)
        for file_format in SIZES
        for subtype in ("PCM_16", "PCM_24")
        for channels in (1, 2)
        if file_format != "SVX" or (subtype, channels) == ("PCM_16", 1)  # it has no more
    ],
)
def test_a_promise_may_be_off_by_less_than_a_frame(tmp_path, file_format, subtype, channels):
    content, _ = written(file_format, subtype, channels)
    if file_format == "AU":
        assert content.startswith(b".snd")
    whole = read_both(tmp_path / "a", content)
    frame = {"PCM_16": 2, "PCM_24": 3}[subtype] * channels
    for more in (1, frame - 1):
        np.testing.assert_array_equal(
            read_both(tmp_path / "a", promising(file_format, content, more, frame)), whole
        )
    told = read_both(tmp_path / "a", promising(file_format, content, 8 * frame, frame))
    assert "is cut short: its header promises" in told


UNKNOWN = {
    "wav-zero": ("WAV", [(b"data", 4, "<I", 0)]),
    "wav-zero-everywhere": ("WAV", [(b"data", 4, "<I", 0), (b"RIFF", 4, "<I", 0)]),
    "wav-zero-never-closed": ("WAV", [(b"data", 4, "<I", 0), (b"RIFF", 4, "<I", 8)]),
    "wav-ffmpeg": ("WAV", [(b"data", 4, "<I", 2**32 - 1), (b"RIFF", 4, "<I", 2**32 - 1)]),
    "wav-sox": ("WAV", [(b"data", 4, "<I", 0x7FFFF000), (b"RIFF", 4, "<I", 0x7FFFF024)]),
    "wav-arecord": ("WAV", [(b"data", 4, "<I", 2**31), (b"RIFF", 4, "<I", 2**31 + 36)]),
    "wavex-ffmpeg": ("WAVEX", [(b"data", 4, "<I", 2**32 - 1)]),
    "wavex-zero": ("WAVEX", [(b"data", 4, "<I", 0)]),
    "aiff-zero": ("AIFF", [(b"SSND", 4, ">I", 0), (b"COMM", 10, ">I", 0)]),
    "aiff-nothing-yet": ("AIFF", [(b"SSND", 4, ">I", 8), (b"COMM", 10, ">I", 0)]),
    "aiff-sox": ("AIFF", [(b"SSND", 4, ">I", 0x7F000008), (b"COMM", 10, ">I", 0x3F800000)]),
    "aiff-all-bits": ("AIFF", [(b"SSND", 4, ">I", 2**32 - 1)]),
    "au-all-bits": ("AU", [(b".snd", 8, ">I", 2**32 - 1)]),
    "au-zero": ("AU", [(b".snd", 8, ">I", 0)]),
    "au-largest": ("AU", [(b".snd", 8, ">I", 2**31 - 1)]),
    "caf-minus-one": ("CAF", [(b"data", 4, ">q", -1)]),
    "caf-zero": ("CAF", [(b"data", 4, ">q", 0)]),
    "w64-zero": ("W64", [(b"data", 16, "<q", 0)]),
    "w64-nothing-yet": ("W64", [(b"data", 16, "<q", 24)]),
    "w64-minus-one": ("W64", [(b"data", 16, "<q", -1)]),
    "w64-largest": ("W64", [(b"data", 16, "<q", 2**63 - 1)]),
    "rf64-zero": ("RF64", [(b"ds64", 16, "<q", 0), (b"ds64", 24, "<q", 0)]),
    "rf64-minus-one": ("RF64", [(b"ds64", 16, "<q", -1), (b"ds64", 24, "<q", -1)]),
}


@pytest.mark.parametrize(("file_format", "changes"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_a_stream_whose_header_does_not_know_is_read_to_its_end(tmp_path, file_format, changes):
    content, _ = written(file_format, "PCM_16")
    whole = read_both(tmp_path / "a", content)
    for change in changes:
        content = put(content, *change)
    np.testing.assert_array_equal(read_both(tmp_path / "a", content), whole)


def test_a_file_without_audio_stays_empty_though_chunks_follow(tmp_path):
    content = BytesIO()
    soundfile.write(content, np.zeros(0), RATE, format="WAV")
    chunk = b"LIST" + struct.pack("<I", 4) + b"INFO"
    for behind in (b"", chunk, 3 * chunk):
        assert read_both(tmp_path / "a", content.getvalue() + behind) == "holds no samples"


def without_length(flac):
    """Return a FLAC file as a pipe gets it: with zero for the number of samples, and no MD5."""
    start = flac.index(b"fLaC") + 8
    info = bytearray(flac)
    info[start + 13] &= 0xF0
    info[start + 14 : start + 34] = bytes(20)
    return bytes(info)


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_flac_of_unknown_length_is_read_to_its_end(tmp_path, subtype):
    content, _ = written("FLAC", subtype)
    stream = without_length(content)
    whole = read_both(tmp_path / "a", content)
    np.testing.assert_array_equal(read_both(tmp_path / "a", stream), whole)
    for end in (len(stream) - 1, len(stream) - 100, len(stream) // 2):
        assert "lost sync" in read_both(tmp_path / "a", stream[:end])


def pages_of(ogg):
    pages = []
    while ogg:
        size = 27 + ogg[26] + sum(ogg[27 : 27 + ogg[26]])
        pages.append(ogg[:size])
        ogg = ogg[size:]
    return pages


def with_checksum(page):
    """Return an Ogg page with its CRC of polynomial 0x04c11db7 (RFC 3533, section 6)."""
    blank, value = page[:22] + bytes(4) + page[26:], 0
    for byte in blank:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x104C11DB7 if value & 0x80000000 else 0)) & 0x1FFFFFFFF
    return page[:22] + struct.pack("<I", value) + page[26:]


def test_ogg_is_whole_unfinished_holed_or_chained(tmp_path):
    content = BytesIO()
    samples = 0.3 * np.random.default_rng(0).standard_normal(RATE)
    soundfile.write(content, samples, RATE, format="OGG", subtype="VORBIS")
    pages = pages_of(content.getvalue())
    path, survey = tmp_path / "a", Survey()
    whole = read_both(path, b"".join(pages), survey=survey)
    assert survey.flaws == ()
    last = with_checksum(pages[-1][:5] + bytes([pages[-1][5] & ~4]) + pages[-1][6:])
    unfinished = read_both(path, b"".join([*pages[:-1], last]), survey=survey)
    np.testing.assert_array_equal(unfinished, whole)
    assert survey.flaws == ("unfinished",)
    np.testing.assert_array_equal(read_both(path, b"".join(pages) + bytes(3000)), whole)
    assert "last Ogg page is not whole" in read_both(path, b"".join(pages)[:-1])
    assert "a chain of Ogg streams" in read_both(path, 2 * b"".join(pages))


def test_a_view_shows_libsndfile_other_bytes_and_another_size(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))
    with Content(AudioSource.of(path)) as file:
        view = AudioView(file, start=10, replaced={8: b"abcd", 98: b"xyz"})
        buffer = bytearray(200)
        assert view.readinto(memoryview(buffer)) == 90
        assert bytes(buffer[:4]) == b"cd" + bytes([12, 13])
        assert bytes(buffer[86:90]) == bytes([96, 97]) + b"xy"
        assert view.seek(0, 2) == view.tell() == 90
        short = AudioView(file, size=20)
        assert short.readinto(memoryview(buffer)) == 20
        assert short.readinto(memoryview(buffer)) == 0
        long = AudioView(file, size=1000)
        long.seek(100)
        assert long.readinto(memoryview(buffer)) == 0
        long.seek(-128, 2)
        assert long.readinto(memoryview(buffer)) == 128
        assert not any(buffer[:128])


def test_random_damage_gives_samples_or_a_reason(tmp_path):
    files = [
        made
        for file_format in sorted(set(FORMATS) - {"SDS"})  # libsndfile prints about it
        for subtype in list(soundfile.available_subtypes(file_format))[:2]
        if (made := written(file_format, subtype)) is not None
    ]
    path = tmp_path / "a"
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(400):
        content = bytearray(files[rng.integers(len(files))][0])
        at = int(rng.integers(min(len(content), 120)))
        anywhere = int(rng.integers(len(content)))
        match rng.integers(5):
            case 0:
                del content[anywhere:]
            case 1:
                content[at] = rng.integers(256)
            case 2:
                content[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
            case 3:
                content[anywhere:anywhere] = rng.bytes(100)
            case 4:
                del content[anywhere : anywhere + 100]
        path.write_bytes(content)
        settings = {"sample_rate": RATE, "num_samples": 5000, "resample_quality": "QQ"}
        for read in (read_clip, lambda *args, **kwargs: next(read_windows(*args, **kwargs))):
            try:
                outcomes.add(read(path, **settings).shape)
            except BadAudioError as error:
                outcomes.add(str(error).split()[0])
    assert outcomes <= {(5000,), "is", "holds", "claims"}
