from dataclasses import replace

import pytest
import torch
from torch import nn

from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.settings.config import ModelConfig, TrainingConfig
from ast_fast.training.optimiser import Optimiser, orthogonalise, parameter_groups

SMALL = ModelConfig(
    embed_dim=16,
    num_heads=2,
    depth=2,
    pool="cls",
    stem_widths=(4, 8),
    conditional_position=True,
    conv_depth=1,
)
ADAMW = TrainingConfig(optimizer="adamw", clip_grad_norm=0.0)
MUON = replace(ADAMW, optimizer="muon")
MUON_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NO_SCALING = torch.amp.GradScaler("cpu", enabled=False)


def small_model() -> AudioSpectrogramTransformer:
    torch.manual_seed(0)
    return AudioSpectrogramTransformer(SMALL, num_mel_bins=32, num_frames=32, num_classes=5)


def loss_of(model: nn.Module, seed: int = 0) -> torch.Tensor:
    features = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.cross_entropy(model(features), torch.arange(4))


def test_every_parameter_is_in_one_group_and_only_matrices_decay():
    model = small_model()
    matrices, head, plain = parameter_groups(model)
    names = [*matrices, *head, *plain]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    stem = {f"patch_embedding.stem.{stage}.projection.weight" for stage in (0, 1)}
    mlp = {f"patch_embedding.blocks.0.mlp.{layer}.weight" for layer in (0, 2)}
    assert {*stem, *mlp, "patch_embedding.projection.weight"} < matrices.keys()
    assert len(matrices) == 5 + 4 * SMALL.depth
    assert set(head) == {"head.weight"}
    assert {"class_token", "patch_embedding.position", "norm.weight", "head.bias"} <= set(plain)
    for convolution in ("patch_embedding.neighbours", "patch_embedding.blocks.0.neighbours"):
        assert {f"{convolution}.weight", f"{convolution}.bias"} <= set(plain)


def test_adamw_by_name_is_torchs_on_all_parameters():
    ours, theirs = small_model(), small_model()
    matrices, head, plain = parameter_groups(theirs)
    groups = [
        {"params": [*matrices.values(), *head.values()], "weight_decay": ADAMW.weight_decay},
        {"params": list(plain.values()), "weight_decay": 0.0},
    ]
    optimiser, expected = Optimiser(ours, ADAMW), torch.optim.AdamW(groups, lr=0.01, fused=True)
    for step in range(3):
        optimiser.step(loss_of(ours, step), 0.01, NO_SCALING)
        expected.zero_grad()
        loss_of(theirs, step).backward()
        expected.step()
    for (name, here), there in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(here, there), name


@pytest.mark.parametrize("in_hardware", [True, False])
def test_muon_moves_the_matrices_and_adamw_the_rest(in_hardware, monkeypatch):
    monkeypatch.setattr("ast_fast.training.optimiser.multiplies_bfloat16", lambda _: in_hardware)
    if not in_hardware:  # torch's own in float32 is what ours must then agree with
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    model, with_adamw = small_model(), small_model()
    matrices = parameter_groups(model)[0]
    expected = {name: value.detach().clone() for name, value in matrices.items()}
    before = {name: value.clone() for name, value in expected.items()}
    theirs = torch.optim.Muon(
        list(expected.values()),
        lr=0.01,
        weight_decay=MUON.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    ours, adamw = Optimiser(model, MUON), Optimiser(with_adamw, ADAMW)
    for seed in range(2):
        ours.step(loss_of(model, seed), 0.01, NO_SCALING)
        for name, value in expected.items():
            value.grad = matrices[name].grad
        theirs.step()
        if seed == 0:
            adamw.step(loss_of(with_adamw), 0.01, NO_SCALING)
            for name, value in with_adamw.named_parameters():
                if name not in matrices:
                    assert torch.equal(model.get_parameter(name), value), name
    for name, value in expected.items():
        if in_hardware:
            assert torch.equal(matrices[name], value), name
        else:
            assert (matrices[name] - value).norm() < 2e-3 * (value - before[name]).norm(), name


@pytest.mark.parametrize("shape", [(48, 192), (192, 48), (64, 64), (1, 5)])
def test_orthogonalising_is_newton_schulz_of_the_whole_matrix(shape):
    generator = torch.Generator().manual_seed(0)
    rank = max(1, min(shape) // 2)  # the other half of the singular values is far smaller
    matrix = torch.randn(shape[0], rank, generator=generator) @ torch.randn(
        rank, shape[1], generator=generator
    ) + 1e-3 * torch.randn(shape, generator=generator)
    a, b, c = MUON_COEFFICIENTS
    expected = matrix.double() / matrix.double().norm()
    for _ in range(5):
        square = expected @ expected.T
        expected = (a * torch.eye(len(square)) + b * square + c * square @ square) @ expected
    found = orthogonalise(matrix, MUON_COEFFICIENTS, 5, 1e-7)
    assert (found - expected).norm() < 2e-3 * expected.norm()


def test_orthogonalising_nothing_gives_nothing():
    assert not orthogonalise(torch.zeros(4, 8), MUON_COEFFICIENTS, 5, 1e-7).any()


@pytest.mark.parametrize("shape", [(48, 192), (192, 48), (64, 64)])
def test_matrices_are_orthogonalised_together_as_alone(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    matrices[1] *= 1e4
    together = orthogonalise(matrices, MUON_COEFFICIENTS, 5, 1e-7)
    for matrix, found in zip(matrices, together, strict=True):
        alone = orthogonalise(matrix, MUON_COEFFICIENTS, 5, 1e-7)
        assert (found - alone).norm() < 1e-5 * alone.norm()


@pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])
def test_a_step_for_a_graph_is_the_step_but_for_rounding(config, monkeypatch):
    monkeypatch.setattr("ast_fast.training.optimiser.multiplies_bfloat16", lambda _: False)
    model, other = small_model(), small_model()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimiser, expected = Optimiser(model, config, capturable=True), Optimiser(other, config)
    for seed, rate in enumerate((0.01, 0.02, 0.005)):
        optimiser.step(loss_of(model, seed), torch.tensor(rate), NO_SCALING)
        expected.step(loss_of(other, seed), rate, NO_SCALING)
    assert optimiser.state().keys() == expected.state().keys()
    for (name, here), there in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (here - there).norm() < 1e-3 * (there - before[name]).norm(), name


def test_gradients_are_clipped_together():
    model = small_model()
    optimiser = Optimiser(model, replace(MUON, clip_grad_norm=1e-3))
    optimiser.step(loss_of(model), 0.01, NO_SCALING)
    norms = torch.stack([parameter.grad.norm() for parameter in model.parameters()])
    torch.testing.assert_close(norms.norm(), torch.tensor(1e-3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("where", ["head.weight", "norm.weight", "blocks.0.mlp.0.weight"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("capturable", [False, True])
def test_an_overflow_in_half_precision_leaves_out_the_whole_step(where, value, clip, capturable):
    """Muon's matrices and AdamW's parameters are looked at together, as they are clipped."""
    model = small_model()
    optimiser = Optimiser(model, replace(MUON, clip_grad_norm=clip), capturable=capturable)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    rate = torch.tensor(0.01) if capturable else 0.01
    optimiser.step(loss_of(model), rate, scaler)
    state = {name: entry.clone() for name, entry in optimiser.state().items()}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    handle = model.get_parameter(where).register_hook(lambda grad: grad * value)
    optimiser.step(loss_of(model, 1), rate, scaler)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    for name, entry in optimiser.state().items():
        assert torch.equal(entry, state[name]), name
    assert scaler.get_scale() == 4.0
    handle.remove()
    optimiser.step(loss_of(model, 2), rate, scaler)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])
def test_a_state_taken_up_goes_on_to_the_same_bits(config, capturable):
    model = small_model()
    optimiser = Optimiser(model, config, capturable=capturable)
    rate = torch.tensor(0.01) if capturable else 0.01
    for step in range(2):
        optimiser.step(loss_of(model, step), rate, NO_SCALING)
    again = small_model()
    again.load_state_dict(model.state_dict())
    resumed = Optimiser(again, config, capturable=capturable)
    resumed.load_state({name: value.clone() for name, value in optimiser.state().items()})
    for one, its_optimiser in ((model, optimiser), (again, resumed)):
        its_optimiser.step(loss_of(one, 9), rate, NO_SCALING)
    for (name, here), there in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(here, there), name


def test_a_state_names_its_parameters():
    model = small_model()
    optimiser = Optimiser(model, MUON)
    assert optimiser.state() == {}
    optimiser.step(loss_of(model), 0.01, NO_SCALING)
    state = optimiser.state()
    assert {"head.weight.exp_avg", "head.weight.exp_avg_sq", "head.weight.step"} <= state.keys()
    assert "blocks.0.attention.qkv.weight.momentum_buffer" in state
    assert "blocks.0.attention.qkv.weight.exp_avg" not in state
