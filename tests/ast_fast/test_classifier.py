"""A trained model in use: in forked processes, and by several threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from ast_fast.classifier import Classifier
from ast_fast.features import Statistics
from ast_fast.machine.device import Placement
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.settings.config import AudioConfig, Config, FbankConfig, FeatureConfig, ModelConfig
from ast_fast_kernels._torch import onednn
from ast_fast_kernels.testing.processes import run_program

CONFIG = Config(
    audio=AudioConfig(clip_seconds=0.7),
    features=FeatureConfig(norm_per_sample=False, target_frames=64),
    fbank=FbankConfig(num_mel_bins=32),
    model=ModelConfig(embed_dim=320, num_heads=5, depth=1, pool="distilled"),
)

FORKED = """
import os, signal, sys, torch
from ast_fast_kernels import use_backend
sys.path.insert(0, {folder!r})
from test_classifier import build

torch.set_num_threads(2)
classifier, fresh = build(), build()
windows = torch.zeros(8, 11200, dtype=torch.int16)
with use_backend("reference"):
    for ready in (False, True):
        if ready:
            classifier = classifier.ready()
        expected = classifier.outputs(windows)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            if not ready:
                fresh.ready().logits(windows)
            found = (*classifier.outputs(windows), classifier.logits(windows))
            same = all(abs(a.numpy() - b.numpy()).max() < 1e-5 for a, b in zip(found, expected))
            os._exit(not same or torch.get_num_threads() != 2)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == 0, (code, ready)
"""


def build() -> Classifier:
    torch.manual_seed(0)
    model = AudioSpectrogramTransformer.of(CONFIG, 5).eval().requires_grad_(False)
    placement = Placement(torch.device("cpu"), None)
    return Classifier(model, CONFIG, ["a", "b", "c", "d", "e"], Statistics(-6.0, 4.0), placement)


def test_a_temperature_divides_logits_before_the_softmax_alone() -> None:
    windows = torch.randint(-9999, 9999, (3, 11200), dtype=torch.int16)
    plain = build()
    cooler = replace(plain, temperature=0.4)
    for ours, ready in ((cooler, cooler), (replace(build(), temperature=0.4).ready(), cooler)):
        embeddings, probabilities = ours.outputs(windows)
        assert torch.equal(ready.embeddings(windows), plain.embeddings(windows))
        assert torch.equal(ready.logits(windows), plain.logits(windows))
        torch.testing.assert_close(embeddings, plain.embeddings(windows), rtol=1e-4, atol=1e-5)
        expected = (plain.logits(windows) / 0.4).softmax(dim=1)
        torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours.probabilities(windows), probabilities)
    assert not torch.allclose(plain.probabilities(windows), probabilities)
    several = replace(cooler, multi_label=True)
    torch.testing.assert_close(several.probabilities(windows), plain.logits(windows).sigmoid())


def test_a_forked_process_classifies() -> None:
    """Without the threads of its parent, for which torch's operators would wait for ever."""
    run_program(FORKED.format(folder=__file__.rpartition("/")[0]))


@pytest.mark.skipif(not onednn.IS_THERE, reason="torch without oneDNN")
def test_threads_that_share_a_ready_classifier_get_its_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ast_fast.inference.packs_faster_here", lambda *_: True)
    classifier = build().ready()
    generator = torch.Generator().manual_seed(1)
    batches = [
        torch.randint(-9999, 9999, (2, 11200), generator=generator, dtype=torch.int16)
        for _ in range(12)
    ]
    expected = [classifier.outputs(batch) for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        found = [*pool.map(classifier.outputs, batches)]
    for ours, theirs in zip(found, expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert not torch.equal(found[0][0], found[1][0])
