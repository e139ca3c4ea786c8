"""The reader of WAV files, beside libsndfile: the same samples, the same reasons."""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ast_fast_kernels.audio.content import Content
from ast_fast_kernels.audio.decode import as_float
from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.flaws import Survey
from ast_fast_kernels.audio.libsndfile import open_by_libsndfile
from ast_fast_kernels.audio.source import AudioSource
from ast_fast_kernels.audio.wav import open_wav

SUBTYPES = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"]


def audio_of(decoder):
    """Return what a decoder gives, in blocks of odd sizes: samples, or the reason for none."""
    try:
        decoder.check_whole(Survey())
    except BadAudioError as error:
        return str(error)
    blocks = [decoder.read(0)]
    while len(block := decoder.read(777)):
        blocks.append(block)
    return decoder.sample_rate, as_float(np.concatenate(blocks))


def by_libsndfile(content):
    try:
        with open_by_libsndfile(content, None) as decoder:
            return audio_of(decoder)
    except BadAudioError as error:
        return str(error)


def by_ours(content):
    """Return what our reader gives, and None where it leaves a file to libsndfile."""
    try:
        decoder = open_wav(content)
    except BadAudioError as error:
        return str(error)
    return None if decoder is None else audio_of(decoder)


def assert_alike(path, written):
    """Compare both readers; return whether ours took the file."""
    path.write_bytes(written)
    with Content(AudioSource.of(path)) as content:
        ours = by_ours(content)
        if ours is None:
            return False
        theirs = by_libsndfile(content)
    if isinstance(ours, str) or isinstance(theirs, str):
        assert ours == theirs
    else:
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(ours[1], theirs[1])
    return True


def samples(num_frames, channels):
    rng = np.random.default_rng(num_frames + channels)
    return rng.uniform(-1, 1, (num_frames, channels))


@pytest.mark.parametrize("file_format", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("subtype", SUBTYPES)
def test_samples_are_those_of_libsndfile(tmp_path, file_format, subtype):
    for channels, num_frames in ((1, 2001), (2, 1000), (3, 77), (1, 1)):
        written = BytesIO()
        waves = samples(num_frames, channels)
        soundfile.write(written, waves, 22050, format=file_format, subtype=subtype)
        content = written.getvalue()
        has_peak = b"PEAK" in content  # that libsndfile writes, and checks
        assert assert_alike(tmp_path / "a", content) != has_peak
        without = content.replace(b"PEAK", b"JUNK")
        assert assert_alike(tmp_path / "a", without)
        for cut in (len(without) - 1, max(1, len(without) - 200)):
            assert_alike(tmp_path / "a", without[:cut])


def test_bw64_is_rf64_by_another_name(tmp_path):
    path = tmp_path / "a"
    wave = np.arange(-500, 500, dtype=np.int16)
    soundfile.write(path, wave, 16000, format="RF64")
    path.write_bytes(path.read_bytes().replace(b"RF64", b"BW64"))
    with Content(AudioSource.of(path)) as content:
        np.testing.assert_array_equal(open_wav(content).read(9999)[:, 0], wave)


def test_a_span_of_frames_is_read_where_it_lies(tmp_path):
    path = tmp_path / "a"
    wave = np.arange(3000, dtype=np.int16).reshape(1000, 3)
    soundfile.write(path, wave, 16000, format="WAV")
    with Content(AudioSource.of(path)) as content:
        decoder = open_wav(content)
        assert decoder.skip(100) == 100
        np.testing.assert_array_equal(decoder.read(50), wave[100:150])
        assert decoder.skip(10**9) == 850
        assert decoder.read(1).shape == (0, 3)


GUID = bytes.fromhex("000000001000800000aa00389b71")
words = st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 0xFFFE, 0xFFFF])
sizes = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 18, 40, 41, 100, 1000, 2**31, 2**32 - 1])


@st.composite
def formats(draw):
    """Return the content of a chunk `fmt `: mostly sound, sometimes not."""
    bits = draw(st.sampled_from([8, 16, 24, 32, 64, 12, 0]))
    number = 3 if bits == 64 else draw(st.sampled_from([1, 3, 1, 6, 7, 2]))
    channels = draw(st.sampled_from([1, 2, 1, 5, 0, 1025]))
    rate = draw(st.sampled_from([16000, 44100, 8000, 0, 2**31, 99, 10**6]))
    align = draw(st.just(channels * bits // 8) | words)
    head = (number, channels, rate, rate * align % 2**32, align & 0xFFFF, bits)
    kind = draw(st.sampled_from(["plain", "with-size", "extensible", "long", "short"]))
    if kind == "extensible":
        valid = draw(st.sampled_from([bits, 0, 20]))
        tail = draw(st.sampled_from([GUID, bytes(14)]))
        rest = struct.pack("<HHIH", 22, valid, draw(words), number) + tail
        return struct.pack("<HHIIHH", 0xFFFE, *head[1:]) + rest
    plain = struct.pack("<HHIIHH", *head)
    return {"plain": plain, "with-size": plain + bytes(2), "long": plain + bytes(9)}.get(
        kind, plain[:14]
    )


@st.composite
def files(draw):
    """Return a WAV file of chunks in any order, with sizes that may lie."""
    content = b""
    names = [b"fmt ", b"data", b"LIST", b"JUNK", b"fact", b"PEAK", b"ds64", b"\0\1\2\3", b"cue "]
    order = draw(st.lists(st.sampled_from(names), max_size=3))
    order += [b"fmt "] * draw(st.sampled_from([1, 1, 1, 2])) + [b"data"]
    order += draw(st.lists(st.sampled_from(names), max_size=2))
    for name in order:
        if name == b"fmt ":
            body = draw(formats())
        elif name == b"data":
            body = samples(draw(st.sampled_from([0, 1, 99, 500])), 1).tobytes()
        else:
            body = draw(st.binary(max_size=40))
        told = draw(st.just(len(body)) | st.just(len(body)) | sizes)
        content += name + struct.pack("<I", told) + body + bytes(len(body) % 2)
    magic = draw(st.sampled_from([b"RIFF", b"RIFF", b"RF64"]))
    told = draw(st.just(len(content) + 4) | sizes)
    return magic + struct.pack("<I", told) + b"WAVE" + content + draw(st.binary(max_size=9))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(written=files())
def test_headers_of_all_sorts_are_read_as_libsndfile_reads_them(tmp_path, written):
    assert_alike(tmp_path / "a", written)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_headers_are_read_as_libsndfile_reads_them(tmp_path, data):
    written = BytesIO()
    kind = data.draw(st.sampled_from(["WAV", "WAVEX", "RF64"]))
    soundfile.write(written, samples(300, 2), 16000, format=kind, subtype="PCM_16")
    content = bytearray(written.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 119))
        content[at] = data.draw(st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    assert_alike(Path(tmp_path / "a"), bytes(content))
