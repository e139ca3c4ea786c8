"""The command with an extractor that needs no compiled kernel, and that can end its process."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from ast_fast_kernels.console import fail
from ast_fast_kernels.corpus.run import Corpus, extract_corpus
from ast_fast_kernels.errors import InputError

DEADLY = 12345
"""Samples of a waveform that ends its process."""
SLOW = 0.5
"""Seconds of a call: a kill that is meant for a shard must not come after the last one."""


class EnergyExtractor:
    """Makes each frame's energy and mean, in frames of 160 samples."""

    sample_rate = 16000
    width = 2
    ragged = True
    frame_shift = 10.0
    batch_size = 3
    takes_int16 = False
    needs_gpu = False
    is_random = False

    def settings(self):
        return {"kind": "energy"}

    def __call__(self, waveforms):
        rows = []
        for waveform in waveforms:
            if len(waveform) == DEADLY:
                os.kill(os.getpid(), signal.SIGSEGV)
            if "SLOW" in os.environ:
                time.sleep(SLOW)
            frames = waveform[: len(waveform) // 160 * 160].reshape(-1, 160)
            both = (np.square(frames).sum(axis=1), frames.mean(axis=1))
            rows.append(np.stack(both, axis=1).astype(np.float32))
        return rows


def main(source, out, jobs, *flags):
    corpus = Corpus(
        (Path(source),),
        Path(out),
        shard_size=4,
        jobs=int(jobs),
        resume="--resume" in flags,
        skip_bad_files="--skip-bad-files" in flags,
        stop_at_bad_file="--stop-at-bad-file" in flags,
    )
    try:
        return extract_corpus(corpus, EnergyExtractor())
    except InputError as error:
        return fail(*error.problems)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
