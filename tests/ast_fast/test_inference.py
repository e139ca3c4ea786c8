"""A model made ready for inference gives what the model gives, whatever the product."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ast_fast.explain import attention_rollout
from ast_fast.exporting.graph import check_model
from ast_fast.features import Statistics
from ast_fast.inference import FrozenLinear, InferenceModel
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.pretrained import Pretrained, save
from ast_fast.settings.config import Config, FbankConfig, FeatureConfig, ModelConfig
from ast_fast_kernels._torch import onednn

needs_onednn = pytest.mark.skipif(not onednn.IS_THERE, reason="torch without oneDNN")


def build(pool: str = "distilled", *, qkv_bias: bool = True) -> AudioSpectrogramTransformer:
    """Return a model whose larger weights are worth packing; not one value is its first."""
    torch.manual_seed(0)
    config = ModelConfig(embed_dim=320, num_heads=5, depth=2, pool=pool, qkv_bias=qkv_bias)
    model = AudioSpectrogramTransformer(
        config, num_mel_bins=32, num_frames=64, num_classes=5
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def clips(count: int) -> Tensor:
    return torch.randn(count, 64, 32, generator=torch.Generator().manual_seed(1))


def packed_parts(model: nn.Module) -> list[str]:
    return [name for name, part in model.named_modules() if isinstance(part, FrozenLinear)]


@needs_onednn
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_packed_weights_give_the_models_logits(
    qkv_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ast_fast.inference.packs_faster_here", lambda *_: True)
    expected, model = build(qkv_bias=qkv_bias), build(qkv_bias=qkv_bias)
    ready, features = InferenceModel(model), clips(3)
    parts = ("attention.qkv", "mlp.0", "mlp.2")
    assert packed_parts(ready) == [f"model.blocks.{n}.{part}" for n in range(2) for part in parts]
    with torch.no_grad():
        torch.testing.assert_close(ready(features), expected(features))
        torch.testing.assert_close(ready.embed(features), expected.embed(features))
    torch.testing.assert_close(
        attention_rollout(model, features), attention_rollout(expected, features)
    )
    assert not ready(features).requires_grad


@needs_onednn
def test_autocast_around_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ast_fast.inference.packs_faster_here", lambda *_: True)
    ready, features = InferenceModel(build()), clips(2)
    expected = ready(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ready(features), expected)


@needs_onednn
def test_a_clip_in_a_turn_has_the_same_bits_alone_and_on_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With all packed and a clip in a turn, as a model of the original's size and classes has."""
    monkeypatch.setattr("ast_fast.inference.packs_faster_here", lambda *_: True)
    monkeypatch.setattr("ast_fast.inference.LEAST_VALUES", 1)
    monkeypatch.setattr("ast_fast.inference.ROWS_OF_A_THREAD", 1)
    ready, features, before = InferenceModel(build()), clips(9), torch.get_num_threads()
    expected = ready(features)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(ready(features), expected)
            assert torch.equal(ready(features[7:8]), expected[7:8])
    finally:
        torch.set_num_threads(before)


@needs_onednn
def test_turns_of_many_clips_differ_by_the_order_of_sums_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As shipped: 76 clips in a turn of a thread; unpacked products sum in an order of their own.

    Within what rounding takes of the longest sum, the 1,280 products of `mlp.2`.
    """
    monkeypatch.setattr("ast_fast.inference.packs_faster_here", lambda *_: True)
    ready, features, before = InferenceModel(build()), clips(160), torch.get_num_threads()
    exact = build().double()(features.double()).detach()
    within = 1280 * torch.finfo(torch.float32).eps / 2 * exact.abs().max().item()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for rows in (slice(None), slice(7, 8)):
                torch.testing.assert_close(
                    ready(features[rows]).double(), exact[rows], rtol=0, atol=within
                )
    finally:
        torch.set_num_threads(before)


def test_bfloat16_is_multiplied_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are lowered once; where they cannot be packed, torch multiplies them."""
    monkeypatch.setattr("ast_fast.inference.multiplies_bfloat16", lambda _: True)
    monkeypatch.setattr("ast_fast.inference.packs_faster_here", lambda *_: False)
    expected, model, features = build(), build(), clips(3)
    ready = InferenceModel(model, precision=torch.bfloat16)
    kinds = {part.weight.dtype for part in model.modules() if isinstance(part, FrozenLinear)}
    assert kinds == {torch.bfloat16}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        lowered = expected(features)
    with torch.no_grad():
        exact = expected(features)
    torch.testing.assert_close(ready(features), lowered, rtol=0, atol=2**-7 * exact.abs().max())
    assert not torch.equal(ready(features), exact.bfloat16())
    shares = attention_rollout(model, features)
    torch.testing.assert_close(shares, attention_rollout(expected, features), rtol=0, atol=2**-8)


def test_bfloat16_is_not_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ast_fast.inference.multiplies_bfloat16", lambda _: False)
    ready = InferenceModel(build(), precision=torch.bfloat16)
    assert torch.equal(ready(clips(2)), InferenceModel(build())(clips(2)))


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_clips_are_taken_a_few_at_a_time(pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ast_fast.inference.packs_faster_here", lambda *_: False)
    monkeypatch.setattr("ast_fast.inference.ROWS_OF_A_THREAD", 9)
    model = build(pool)
    ready, features, batches = InferenceModel(model), clips(5), []
    assert packed_parts(ready) == []
    model.blocks[0].register_forward_hook(lambda _, given, out: batches.append(len(out[0])))
    with torch.no_grad():
        expected = build(pool)(features)
    torch.testing.assert_close(ready(features), expected)
    clips_a_turn = torch.get_num_threads() * 9 // (8 + model.num_class_tokens)
    assert max(batches) == min(clips_a_turn, 5)
    assert sum(batches) == 5
    assert ready(features[:0]).shape == (0, 5)


def test_a_model_that_is_not_ready_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision must be torch\.float32 or .* torch\.float16"):
        InferenceModel(build(), precision=torch.float16)
    with pytest.raises(ValueError, match="model must be in eval mode"):
        InferenceModel(build().train())
    with pytest.raises(
        ValueError, match=r"model must be in float32 on the CPU, got .* in torch.float64 on cpu"
    ):
        InferenceModel(build().double())


LACKS = (
    r"model must have all its weights(?: to be saved)?, lacks blocks\.0\..*weight; one made ready "
    r"for a CPU \(InferenceModel, Classifier\.ready\) has none to give"
)


@needs_onednn
def test_what_would_lose_packed_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ast_fast.inference.packs_faster_here", lambda *_: True)
    config = Config(
        features=FeatureConfig(target_frames=64, norm_per_sample=False, padding="zero"),
        fbank=FbankConfig(num_mel_bins=32),
        model=ModelConfig(
            embed_dim=320, num_heads=5, depth=1, pool="distilled", token_positions=True,
            head_norm=True,
        ),
    )  # fmt: skip
    model = AudioSpectrogramTransformer.of(config, 5).eval()
    names = [f"sound {number}" for number in range(5)]
    ast = Pretrained(model, config, names, Statistics(0.0, 0.5), multi_label=False)
    save(ast, tmp_path / "whole", layer_norm_eps=1e-12)
    ready = InferenceModel(model)
    assert packed_parts(model)
    with pytest.raises(ValueError, match=LACKS):
        save(ast, tmp_path / "model", layer_norm_eps=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    for take in (check_model, InferenceModel, lambda model: model.state_dict()):
        with pytest.raises(ValueError, match=LACKS):
            take(model)
    for part in (ready, model):
        for take in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot be pickled or copied; load it in each"):
                take(part)


def test_one_that_packs_nothing_is_as_little_copied_and_never_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ast_fast.inference.packs_faster_here", lambda *_: False)
    ready = InferenceModel(build())
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        pickle.dumps(ready)
    with pytest.raises(ValueError, match="made ready for inference must stay in eval mode"):
        ready.train()
    assert not ready.eval().training
    assert not any(part.training for part in ready.modules())
