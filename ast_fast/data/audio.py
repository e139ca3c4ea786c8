"""Decode an audio file to clips: mono int16, at one sample rate and length."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from ast_fast.settings.config import SAMPLE_RATES

RESAMPLE_MARGIN = 0.1
"""Seconds read beyond a clip's end, so that soxr's filter does not see the signal stop there."""
BLOCK_VALUES = 2**20
"""Samples decoded at once, over all channels: bounds memory whatever a header claims."""
UNKNOWN_LENGTH = 0x7FFF0000
"""Data size, in bytes, from which a header holds a streaming writer's placeholder."""
SHORT_READ = 0.99
"""Share of the promised frames that counts as all of them: MP3 headers only estimate."""
LARGEST_OGG_PAGE = 27 + 255 + 255 * 255
"""Bytes of a header, the lengths of 255 segments, and the segments."""

_CUT_CHUNK = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_CUT_OGG = "Last page lacks an end-of-stream bit"


class BadAudioError(Exception):
    """A file holds no usable audio; the message is a reason that follows the file's name."""


def read_clip(
    path: Path, *, sample_rate: int, num_samples: int, resample_quality: str
) -> NDArray[np.int16]:
    """Decode the beginning of an audio file to a clip of fixed length.

    Takes any format, sample rate and number of channels that libsndfile reads. Channels are
    averaged; the mean is resampled, then cut or padded with zeros. Values beyond ±1.0, which lossy
    formats give, are clipped. Only what the clip needs is read, so later damage stays unseen.

    Args:
        path: The file.
        sample_rate: Of the clip, in Hz.
        num_samples: Of the clip.
        resample_quality: soxr's quality: QQ, LQ, MQ, HQ or VHQ.
    Returns:
        Samples, shape (num_samples,).
    Raises:
        BadAudioError: The file is absent, empty, not audio, cut short, or holds NaN or infinity.
    """
    with _opened(path) as file:
        return _first_clip(file, sample_rate, num_samples, resample_quality)


def _first_clip(
    file: soundfile.SoundFile, sample_rate: int, num_samples: int, resample_quality: str
) -> NDArray[np.int16]:
    waveform = _read_mono(file, sample_rate, num_samples)
    if file.samplerate != sample_rate:
        waveform = soxr.resample(waveform, file.samplerate, sample_rate, quality=resample_quality)
    clip = np.zeros(num_samples, np.int16)
    samples = _as_int16(waveform[:num_samples])
    clip[: len(samples)] = samples
    return clip


def read_windows(
    path: Path, *, sample_rate: int, num_samples: int, resample_quality: str
) -> Iterator[NDArray[np.int16]]:
    """Yield a whole audio file as clips of fixed length, however long it is.

    Each clip begins where the one before ends. The last clip ends with the file, so it may overlap
    the one before. A file no longer than one clip gives the clip of `read_clip`. Memory holds only
    a few clips at a time.

    Args:
        path: The file.
        sample_rate: Of the clips, in Hz.
        num_samples: Of a clip.
        resample_quality: soxr's quality: QQ, LQ, MQ, HQ or VHQ.
    Raises:
        BadAudioError: As `read_clip`. Damage late in a file is found after its first clips.
    """
    with _opened(path) as file:
        if file.frames * sample_rate > num_samples * file.samplerate:
            yield from _long_windows(file, sample_rate, num_samples, resample_quality)
        else:
            yield _first_clip(file, sample_rate, num_samples, resample_quality)


def _long_windows(
    file: soundfile.SoundFile, sample_rate: int, num_samples: int, resample_quality: str
) -> Iterator[NDArray[np.int16]]:
    _check_rate(file)
    _check_whole(file)
    resampler = soxr.ResampleStream(
        file.samplerate, sample_rate, 1, dtype="float32", quality=resample_quality
    )
    window = rest = np.empty(0, np.int16)
    for block, is_last in _with_last(_mono_blocks(file, file.frames, file.frames)):
        if file.samplerate != sample_rate:
            block = resampler.resample_chunk(block, last=is_last)
        rest = np.concatenate((rest, _as_int16(block)))
        while len(rest) >= num_samples:
            window, rest = rest[:num_samples], rest[num_samples:]
            yield window
    if len(rest):
        last = np.concatenate((window, rest))[-num_samples:]
        yield np.pad(last, (0, num_samples - len(last)))


_T = TypeVar("_T")


def _with_last(items: Iterable[_T]) -> Iterator[tuple[_T, bool]]:
    """Yield each item, and whether it is the last."""
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item, False
            item = following
        yield item, True


def _as_int16(waveform: NDArray[np.float32]) -> NDArray[np.int16]:
    scaled = np.rint(np.clip(waveform, -1.0, 1.0) * 32768.0)
    samples: NDArray[np.int16] = np.minimum(scaled, 32767.0).astype(np.int16)
    return samples


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """Open a file, and raise BadAudioError for every error of opening or reading it."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadAudioError("is not a file")
        if status.st_size == 0:
            raise BadAudioError("is empty (0 bytes)")
        with soundfile.SoundFile(os.fsencode(path)) as file:  # a name need not be UTF-8
            yield file
    except FileNotFoundError:
        raise BadAudioError("is absent") from None
    except OSError as error:
        raise BadAudioError(f"cannot be read: {error.strerror or error}") from None
    except (soundfile.SoundFileError, TypeError, ValueError) as error:  # TypeError: headerless .raw
        reason = getattr(error, "error_string", str(error)).strip(" .")
        raise BadAudioError(f"is not audio that libsndfile can decode ({reason})") from None


def _check_rate(file: soundfile.SoundFile) -> None:
    lowest, highest = SAMPLE_RATES
    if not lowest <= file.samplerate <= highest:
        raise BadAudioError(f"claims a sample rate of {file.samplerate} Hz")


def _read_mono(
    file: soundfile.SoundFile, sample_rate: int, num_samples: int
) -> NDArray[np.float32]:
    """Read the part of a file that a clip needs, as the mean of its channels."""
    _check_rate(file)
    needed = math.ceil(num_samples * file.samplerate / sample_rate)
    if file.frames < needed:
        _check_whole(file)
    wanted = min(file.frames, needed + math.ceil(RESAMPLE_MARGIN * file.samplerate))
    return np.concatenate(list(_mono_blocks(file, wanted, needed)))


def _mono_blocks(
    file: soundfile.SoundFile, wanted: int, needed: int
) -> Iterator[NDArray[np.float32]]:
    """Yield up to `wanted` frames, as the mean of their channels, in blocks of bounded size.

    Raises:
        BadAudioError: No frames, fewer than needed, or one that is not finite.
    """
    block_size = max(1, BLOCK_VALUES // file.channels)
    count = 0
    while count < wanted:
        channels = file.read(min(block_size, wanted - count), dtype="float32", always_2d=True)
        if not len(channels):
            break
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are found below
            block: NDArray[np.float32] = channels.mean(axis=1, dtype=np.float32)
        if not np.isfinite(block).all():
            first = count + int(np.flatnonzero(~np.isfinite(block))[0])
            raise BadAudioError(f"holds NaN or infinity (first at frame {first})")
        count += len(block)
        yield block
    if not count:
        raise BadAudioError("holds no samples")
    if count < SHORT_READ * min(wanted, needed):
        raise BadAudioError(f"is cut short: its header promises {file.frames} frames, {count} read")


def _check_whole(file: soundfile.SoundFile) -> None:
    """Raise if a file ends before its header says; libsndfile only notes that."""
    notes: str = file.extra_info
    for promised, found in _CUT_CHUNK.findall(notes):
        if int(found) < int(promised) < UNKNOWN_LENGTH:
            raise BadAudioError(
                f"is cut short: its header promises {promised} bytes of audio, it holds {found}"
            )
    if file.format == "OGG" and _CUT_OGG in notes:
        raise BadAudioError("is cut short: its last Ogg page does not end the stream")
    if file.format == "OGG" and not _last_ogg_page_is_whole(Path(os.fsdecode(file.name))):
        raise BadAudioError("is cut short: its last Ogg page is not whole")


def _last_ogg_page_is_whole(path: Path) -> bool:
    """Return whether a file's last Ogg page is complete: libsndfile silently drops a partial one.

    Source: RFC 3533, section 6: a page begins with the capture pattern and version; byte 26 is the
        number of segments, and their lengths follow.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LARGEST_OGG_PAGE))
        tail = file.read()
    begin = tail.rfind(b"OggS\0")
    if begin < 0:
        return True  # something else follows the stream
    page = tail[begin:]
    if len(page) <= 26:
        return False
    return len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
