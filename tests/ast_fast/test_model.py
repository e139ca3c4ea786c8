import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from ast_fast.model import AudioSpectrogramTransformer, sinusoidal_position_embedding, strongest
from ast_fast.settings.config import ModelConfig
from ast_fast.settings.rules import check_model
from ast_fast_kernels import use_backend
from ast_fast_kernels.errors import InputError

SMALL = ModelConfig(embed_dim=16, num_heads=2, depth=2)


def build(config: ModelConfig, *, num_frames: int = 64, num_mel_bins: int = 32):
    torch.manual_seed(0)
    model = AudioSpectrogramTransformer(
        config, num_mel_bins=num_mel_bins, num_frames=num_frames, num_classes=5
    )
    features = torch.randn(3, num_frames, num_mel_bins)
    return model.eval(), features


@pytest.mark.parametrize("pool", ["mean", "strongest", "cls", "distilled"])
@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
@pytest.mark.parametrize(
    ("patch_size", "patch_stride", "num_patches"),
    [
        pytest.param((16, 16), (16, 16), 2 * 4, id="tiled"),
        pytest.param((16, 16), (10, 10), 2 * 5, id="overlapping"),
        pytest.param((32, 4), (32, 4), 16, id="whole-columns"),
        pytest.param((5, 7), (3, 11), 10 * 6, id="with-gaps-and-primes"),
        pytest.param((32, 64), (1, 1), 1, id="one-patch"),
    ],
)
def test_logits_have_a_row_for_each_clip(pool, position, patch_size, patch_stride, num_patches):
    model, features = build(
        replace(
            SMALL,
            pool=pool,
            position_embedding=position,
            patch_size=patch_size,
            patch_stride=patch_stride,
        )
    )
    logits = model(features)
    assert model.num_patches == num_patches
    assert logits.shape == (3, 5)
    assert logits.isfinite().all()


def test_the_original_patches_are_600():
    original = ModelConfig(patch_size=(16, 16), patch_stride=(10, 10))
    assert original.patch_grid(num_mel_bins=128, num_frames=512) == (12, 50)


def test_a_patch_covers_its_mel_bins_and_frames():
    model, features = build(replace(SMALL, patch_size=(8, 4), patch_stride=(6, 3)))
    embedding = model.patch_embedding
    tokens = embedding(features)
    grid_freq, grid_time = embedding.grid
    for freq, time in [(0, 0), (1, 2), (grid_freq - 1, grid_time - 1)]:
        index = freq * grid_time + time
        patch = features[:, time * 3 : time * 3 + 4, freq * 6 : freq * 6 + 8].transpose(1, 2)
        expected = embedding.projection(patch.flatten(1)) + embedding.position[index]
        torch.testing.assert_close(tokens[:, index], expected)


def test_the_projection_is_the_originals_convolution():
    model, features = build(replace(SMALL, patch_stride=(10, 10)))
    embedding = model.patch_embedding
    weight = embedding.projection.weight.view(-1, 1, *embedding.patch_size)
    image = features.transpose(1, 2).unsqueeze(1)  # (batch, 1, freq, time)
    convolved = functional.conv2d(image, weight, embedding.projection.bias, stride=10)
    expected = convolved.flatten(2).transpose(1, 2) + embedding.position
    torch.testing.assert_close(embedding(features), expected)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_left_out_patches_are_never_seen(pool):
    model, features = build(replace(SMALL, pool=pool))
    grid_time = model.patch_embedding.grid[1]
    keep = torch.tensor([[0, 2, 5], [1, 6, 7], [0, 1, 2]])
    seen = torch.zeros_like(features, dtype=torch.bool)
    for clip, indices in enumerate(keep.tolist()):
        for index in indices:
            freq, time = 16 * (index // grid_time), 16 * (index % grid_time)
            seen[clip, time : time + 16, freq : freq + 16] = True
    logits = model(features, keep=keep)
    torch.testing.assert_close(model(features.where(seen, torch.nan), keep=keep), logits)
    assert not torch.allclose(model(features), logits)


def test_stochastic_depth_leaves_out_whole_updates_and_keeps_their_mean():
    model, _ = build(replace(SMALL, depth=4, stochastic_depth=0.4))
    assert [block.left_out for block in model.blocks] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    block = model.blocks[-1]
    tokens = torch.randn(4000, 2, 16)
    with torch.no_grad():
        whole, mlp = block(tokens)
        assert torch.equal(block(tokens)[0], whole)  # nothing is left out in tests
        block.train()
        found = block(tokens)[0] - tokens
    expected = whole - tokens
    kept = found.abs().amax(dim=(1, 2)) > 0
    torch.testing.assert_close(found[kept], expected[kept] / 0.6, rtol=1e-3, atol=1e-5)
    assert kept.float().mean().item() == pytest.approx(0.6, abs=0.04)  # five deviations
    with torch.no_grad():
        assert 0.5 < (block(tokens)[1].abs().amax(dim=(1, 2)) > 0).float().mean() < 0.7
    assert (mlp.abs().amax(dim=(1, 2)) > 0).all()


def test_no_stochastic_depth_draws_no_number():
    model, features = build(SMALL)
    model.train()
    before = torch.get_rng_state()
    model(features)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("num_tokens", "expected"), [(7, [9.0, 6.0]), (17, [8.5, 15.5])])
def test_the_strongest_eighth_of_a_feature_is_at_least_one_token(num_tokens, expected):
    rising = torch.arange(num_tokens, dtype=torch.float32)
    first = torch.tensor([9.0, 8.0, *[-1.0] * (num_tokens - 2)])
    tokens = torch.stack((first, rising), dim=1).unsqueeze(0)
    torch.testing.assert_close(strongest(tokens), torch.tensor([expected]))
    tokens.requires_grad_()
    torch.testing.assert_close(strongest(tokens), torch.tensor([expected]))


def test_the_gradient_of_the_strongest_is_that_of_their_mean():
    tokens = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(0))
    again = tokens.clone()
    weights = torch.arange(15.0).view(3, 5)
    for given, pooled in (
        (tokens, strongest),
        (again, lambda given: given.topk(5, dim=1).values.mean(dim=1)),
    ):
        (pooled(given.requires_grad_()) * weights).sum().backward()
    torch.testing.assert_close(tokens.grad, again.grad)


@pytest.mark.parametrize("head_norm", [False, True])
def test_the_strongest_stand_beside_the_mean(head_norm):
    (model, features), (mean, _) = (
        build(replace(SMALL, pool=pool, head_norm=head_norm)) for pool in ("strongest", "mean")
    )
    assert model.head.in_features == 32
    mean.load_state_dict(
        {name: value for name, value in model.state_dict().items() if not name.startswith("head")},
        strict=False,
    )
    embeddings = model.embed(features)
    torch.testing.assert_close(embeddings[:, :16], mean.embed(features))
    assert (embeddings[:, 16:] > embeddings[:, :16]).all()


CONDITIONAL = replace(SMALL, patch_size=(8, 8), patch_stride=(8, 8), conditional_position=True)
STEM = replace(SMALL, patch_size=(8, 8), patch_stride=(8, 8), stem_widths=(6, 8))
CONVOLUTION = replace(SMALL, patch_size=(8, 8), patch_stride=(8, 8), conv_depth=1)


def test_a_conditional_position_is_a_convolution_of_a_patchs_neighbours():
    model, features = build(CONDITIONAL)
    plain, _ = build(replace(CONDITIONAL, conditional_position=False))
    embedding = model.patch_embedding
    plain.load_state_dict(model.state_dict(), strict=False)
    tokens = plain.patch_embedding(features).unflatten(1, embedding.grid)  # (3, 4, 8, 16)
    weight, bias = embedding.neighbours.weight, embedding.neighbours.bias
    for freq, time in [(0, 0), (2, 3), (3, 7)]:
        expected = tokens[:, freq, time] + bias
        for step_freq, step_time in itertools.product((-1, 0, 1), repeat=2):
            if 0 <= freq + step_freq < 4 and 0 <= time + step_time < 8:
                gains = weight[:, 0, step_freq + 1, step_time + 1]
                expected = expected + gains * tokens[:, freq + step_freq, time + step_time]
        torch.testing.assert_close(embedding(features)[:, freq * 8 + time], expected)


def test_a_convolution_stem_is_its_convolutions():
    config = replace(STEM, patch_size=(16, 4), patch_stride=(16, 4))
    model, features = build(config, num_frames=67, num_mel_bins=40)  # more than whole patches
    embedding = model.patch_embedding
    hidden = features.transpose(1, 2).unsqueeze(1)  # (batch, 1, freq, time)
    for stage, cell in zip(embedding.stem, [(4, 1), (2, 2)], strict=True):
        weight = stage.projection.weight.unflatten(1, (*cell, -1)).movedim(3, 1)
        hidden = functional.conv2d(hidden, weight, stage.projection.bias, stride=cell)
        hidden = functional.gelu(stage.norm(hidden.movedim(1, 3))).movedim(3, 1)
        if cell == (4, 1):
            hidden = hidden[:, :, :8, :64]  # what no patch covers is not a neighbour either
        convolution = stage.neighbours
        weight, bias = convolution.weight, convolution.bias
        hidden = hidden + functional.conv2d(hidden, weight, bias, padding=1, groups=len(bias))
    weight = embedding.projection.weight.unflatten(1, (2, 2, -1)).movedim(3, 1)
    merged = functional.conv2d(hidden, weight, embedding.projection.bias, stride=2)
    assert merged.shape == (3, 16, 2, 16)
    expected = merged.flatten(2).transpose(1, 2) + embedding.position
    torch.testing.assert_close(embedding(features), expected)


def test_a_convolution_block_is_a_convolution_and_an_mlp():
    model, features = build(replace(CONVOLUTION, conv_depth=2, conv_mlp_ratio=3.0))
    plain, _ = build(replace(CONVOLUTION, conv_depth=0))
    embedding = model.patch_embedding
    plain.load_state_dict(model.state_dict(), strict=False)
    tokens = plain.patch_embedding(features).unflatten(1, embedding.grid)
    assert [block.mlp[0].out_features for block in embedding.blocks] == [48, 48]
    for block in embedding.blocks:
        weight, bias = block.neighbours.weight, block.neighbours.bias
        heard = functional.conv2d(tokens.movedim(3, 1), weight, bias, padding=1, groups=16)
        tokens = tokens + heard.movedim(1, 3)
        hidden = functional.gelu(block.mlp[0](block.norm(tokens)))
        tokens = tokens + block.mlp[2](hidden)
    torch.testing.assert_close(embedding(features), tokens.flatten(1, 2))


@pytest.mark.parametrize(
    "config", [CONDITIONAL, STEM, CONVOLUTION], ids=["conditional", "stem", "convolution"]
)
def test_kept_patches_know_neighbours_that_are_not(config):
    model, features = build(config)
    keep = torch.tensor([[0, 9, 31]] * 3)
    every = model.patch_embedding(features)
    torch.testing.assert_close(model.patch_embedding(features, keep), every[:, [0, 9, 31]])
    unseen = features.clone()
    unseen[:, 24:48] = torch.nan  # three columns of patches from 9's neighbours on
    tokens = model.patch_embedding(unseen, keep)
    torch.testing.assert_close(tokens, every[:, [0, 9, 31]])
    unseen[:, 16:24] = torch.nan  # 9's neighbours
    assert model.patch_embedding(unseen, keep).isnan().any(2).tolist() == [[False, True, False]] * 3


@pytest.mark.parametrize("conv_depth", [0, 1, 2])
def test_keeping_every_patch_is_keeping_all(conv_depth):
    model, features = build(replace(SMALL, conv_depth=conv_depth))
    keep = torch.arange(model.num_patches).expand(3, -1)
    torch.testing.assert_close(model(features, keep=keep), model(features))


def test_the_order_of_kept_patches_does_not_matter():
    model, features = build(SMALL)
    keep = torch.tensor([[0, 2, 5]] * 3)
    torch.testing.assert_close(model(features, keep=keep.flip(1)), model(features, keep=keep))


ORIGINAL = replace(SMALL, pool="distilled", token_positions=True, head_norm=True)


def test_defaults_have_the_parameters_that_they_had():
    model, _ = build(SMALL)
    block = ("norm1", "attention.qkv", "attention.projection", "norm2", "mlp.0", "mlp.2")
    parts = [f"blocks.{number}.{part}" for number in range(2) for part in block]
    names = [f"{part}.{kind}" for part in (*parts, "norm", "head") for kind in ("weight", "bias")]
    embedding = ("position", "projection.weight", "projection.bias")
    assert list(model.state_dict()) == [*(f"patch_embedding.{n}" for n in embedding), *names]
    assert {part.eps for part in model.modules() if hasattr(part, "eps")} == {1e-5}


def test_both_tokens_have_positions_and_the_head_reads_their_mean():
    model, features = build(replace(ORIGINAL, depth=1))
    for block in model.blocks:  # so that tokens stay as they are embedded
        block.attention.projection.weight.data.zero_()
        block.mlp[2].weight.data.zero_()
    first = torch.stack((model.class_token, model.distillation_token)) + model.token_position
    expected = functional.layer_norm(first, (16,)).mean(dim=0)
    torch.testing.assert_close(model.embed(features), expected.expand(3, -1))
    torch.testing.assert_close(model(features)[0], model.head(model.head_norm(expected)))


@pytest.mark.parametrize("keep", [None, torch.tensor([[0, 3], [1, 2], [6, 7]])])
@pytest.mark.parametrize("pool", ["cls", "distilled"])
def test_the_last_block_leaves_out_what_the_head_does_not_read(pool, keep):
    """Logits and gradients are those of a last block that computes every token."""
    config = replace(SMALL, pool=pool)
    (model, features), (whole, _) = build(config), build(config)
    seen = []
    for parts in (model, whole):
        parts.blocks[-1].mlp.register_forward_hook(lambda _, given, out: seen.append(out.shape[1]))
    every = whole.blocks[-1].forward
    whole.blocks[-1].forward = lambda tokens, update, count: [
        part[:, :count] for part in every(tokens, update)
    ]
    logits, expected = model(features, keep=keep), whole(features, keep=keep)
    count = config.num_class_tokens
    assert seen == [count, count + (8 if keep is None else 2)]
    torch.testing.assert_close(logits, expected)
    for found in (logits, expected):
        found.square().sum().backward()
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_norms_epsilon_is_the_one_set():
    model, _ = build(replace(ORIGINAL, norm_eps=1e-12, head_norm_eps=1e-6, stem_widths=(4,)))
    found = {name: part.eps for name, part in model.named_modules() if hasattr(part, "eps")}
    assert found.pop("head_norm") == 1e-6
    assert len(found) == 2 * 2 + 1 + 1
    assert set(found.values()) == {1e-12}


def test_queries_keys_and_values_need_no_bias():
    model, features = build(replace(SMALL, qkv_bias=False))
    assert model.blocks[0].attention.qkv.bias is None
    same, _ = build(SMALL)  # whose biases are 0
    missing, _ = same.load_state_dict(model.state_dict(), strict=False)
    assert missing == [f"blocks.{number}.attention.qkv.bias" for number in range(2)]
    assert torch.equal(same(features), model(features))


@pytest.mark.parametrize("keep", [None, torch.tensor([[0, 3], [1, 2], [6, 7]])])
def test_every_parameter_of_the_original_gets_a_gradient(keep):
    model, features = build(ORIGINAL)
    model(features, keep=keep).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("keep", [None, torch.tensor([[0, 3], [1, 2], [6, 7]])])
@pytest.mark.parametrize("pool", ["mean", "strongest", "cls"])
@pytest.mark.parametrize(("conditional", "conv_depth"), [(False, 0), (True, 0), (False, 2)])
@pytest.mark.parametrize("stem", [(), (4,), (4, 6)])
def test_every_parameter_gets_a_gradient(pool, stem, conditional, conv_depth, keep):
    config = replace(SMALL, pool=pool, stem_widths=stem)
    config = replace(config, conditional_position=conditional, conv_depth=conv_depth)
    model, features = build(config)
    model(features, keep=keep).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("stem", [(), (4, 6)])
def test_neighbours_join_any_positions_on_any_grid(stem):
    config = replace(CONDITIONAL, stem_widths=stem, position_embedding="sinusoidal", conv_depth=1)
    model, features = build(config, num_frames=67, num_mel_bins=12)  # a row of eight patches
    assert model.patch_embedding.grid == (1, 8)
    assert model(features).isfinite().all()
    assert model(features[:0]).shape == (0, 5)


def test_attention_backends_agree():
    model, features = build(SMALL)
    with use_backend(attention="reference"):
        expected = model(features)
    with use_backend(attention="sdpa"):
        torch.testing.assert_close(model(features), expected)


def test_dropout_acts_in_training_only():
    model, features = build(replace(SMALL, dropout=0.5, conv_depth=1))
    for part in (model, model.patch_embedding):
        assert torch.equal(part(features), part(features))
    model.train()
    for part in (model, model.patch_embedding):
        assert not torch.equal(part(features), part(features))


@pytest.mark.parametrize("stem", [(), (48, 96)])
def test_weights_start_small_and_biases_at_zero(stem):
    config = ModelConfig(pool="cls", stem_widths=stem, conv_depth=1)
    model, _ = build(config, num_frames=512, num_mel_bins=128)
    for name, parameter in model.named_parameters():
        if "norm" in name or "neighbours" in name:  # torch's own
            continue
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.abs().max() <= 0.04, name
            assert 0.014 < parameter.std() < 0.022, name


def test_sinusoidal_embeddings_tell_positions_apart_along_each_axis():
    table = sinusoidal_position_embedding((3, 4), 16).view(3, 4, 16)
    assert table.abs().max() <= 1
    for row in range(3):  # the first half is frequency's, the second time's
        assert torch.equal(table[row, 0, :8], table[row, 3, :8])
    for column in range(4):
        assert torch.equal(table[0, column, 8:], table[2, column, 8:])
    distances = torch.cdist(table.view(12, 16), table.view(12, 16)) + torch.eye(12)
    assert distances.min() > 0.5


def test_sinusoidal_embeddings_are_not_trained_and_not_saved():
    model, _ = build(replace(SMALL, position_embedding="sinusoidal"))
    assert not any("position" in name for name in model.state_dict())


def test_wrong_features_are_refused():
    model, features = build(SMALL)
    with pytest.raises(ValueError, match=r"\(batch, 64 frames, 32 mel bins\), got \(3, 32, 64\)"):
        model(features.transpose(1, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 130}, r"embed_dim must be divisible by model.num_heads \(3\), got 130"),
        (
            {"embed_dim": 6, "num_heads": 2, "position_embedding": "sinusoidal"},
            "divisible by 4 for model.position_embedding sinusoidal, got 6",
        ),
        (
            {"stem_widths": (8, 8), "patch_size": (16, 18), "patch_stride": (16, 18)},
            r"be divisible by 2\*\*2, as model.stem_widths has 2 stages, got 16 18",
        ),
        (
            {"stem_widths": (8,), "patch_stride": (10, 10)},
            r"must equal model.patch_stride \(10 10\) .* got 16 16; model.stem_widths none has no",
        ),
        ({"stem_widths": (8,) * 15000}, r"divisible by 2\*\*15000"),
        ({"stem_widths": (8, 1)}, "model.stem_widths must each be at least 2, got 8 1"),
        ({"embed_dim": 0}, "model.embed_dim must be at least 1, got 0"),
        ({"num_heads": 0}, "model.num_heads must be at least 1, got 0"),
        ({"depth": 0}, "model.depth must be at least 1, got 0"),
        ({"token_positions": True}, "token_positions must be off where model.pool is mean"),
        (
            {"token_positions": True, "pool": "strongest"},
            "token_positions must be off where model.pool is strongest",
        ),
        ({"norm_eps": 0.0}, "model.norm_eps must be above 0 and at most 1, got 0"),
        ({"head_norm_eps": 2.0}, "model.head_norm_eps must be above 0 and at most 1, got 2"),
        ({"stochastic_depth": -0.1}, "model.stochastic_depth must be from 0 to below 1, got -0.1"),
        ({"dropout": 1.0}, "model.dropout must be from 0 to below 1, got 1.0"),
        ({"mlp_ratio": 0.0}, "model.mlp_ratio must give an MLP at least 1 wide, got 0.0"),
        ({"mlp_ratio": float("nan")}, "model.mlp_ratio .* got nan"),
        ({"mlp_ratio": float("inf")}, "model.mlp_ratio .* got inf"),
        ({"mlp_ratio": 1e308}, "model.mlp_ratio .* got 1e\\+308"),
        ({"conv_depth": -1}, "model.conv_depth must be at least 0, got -1"),
        ({"conv_mlp_ratio": 0.0}, "model.conv_mlp_ratio must give an MLP at least 1 wide, got 0.0"),
        ({"conv_mlp_ratio": float("nan")}, "model.conv_mlp_ratio .* got nan"),
        (
            {"patch_size": (129, 16)},
            r"patch_size must fit into .*128 mel bins by 512 frames\), got 129 16",
        ),
        ({"patch_size": (16, 513)}, "patch_size must fit .* got 16 513"),
        ({"patch_size": (0, 16)}, "patch_size must be at least 1 along both axes, got 0 16"),
        ({"patch_stride": (16, 0)}, "patch_stride must be at least 1 along both axes, got 16 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_impossible_sizes_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        check_model(replace(ModelConfig(), **changes), num_mel_bins=128, num_frames=512)
