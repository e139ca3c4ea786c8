import math
from dataclasses import replace

import pytest
import torch

from ast_fast.augment import (
    Cuts,
    draw_cuts,
    draw_feature_changes,
    draw_mixtures,
    kept_patches,
    spliced,
)
from ast_fast.settings.config import AugmentConfig
from ast_fast.settings.rules import check_augment
from ast_fast_kernels import mix
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.fbank.config import FbankConfig

OFF = AugmentConfig(
    roll=False,
    gain_db=0.0,
    polarity=False,
    mix_probability=0.0,
    freq_mask=0,
    time_mask=0,
    num_masks=0,
    patch_drop=0.0,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(batch: int, num_samples: int = 1000) -> torch.Tensor:
    return 0.1 * torch.randn(batch, num_samples, generator=seeded(99))


def one_hot(batch: int, num_classes: int = 4) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.arange(batch) % num_classes, num_classes).float()


def augmented(waveforms, targets, config, generator):
    """Return clips as augmentation makes them, and their targets."""
    levels = waveforms.norm(dim=1) / waveforms.shape[1] ** 0.5
    drawn = draw_mixtures(waveforms.shape[1], levels, targets, config, generator)
    return mix(waveforms, drawn.clips, drawn.starts, drawn.factors), drawn.targets


def mixed(waveforms, targets, probability, generator):
    return augmented(waveforms, targets, replace(OFF, mix_probability=probability), generator)


def changes(batch, num_frames, num_mel_bins, config, **fbank):
    fbank = FbankConfig(num_mel_bins=num_mel_bins, **fbank)
    return draw_feature_changes(batch, num_frames, config, fbank, seeded())


def test_everything_off_changes_nothing():
    waveforms, targets = noise(5), one_hot(5)
    out, out_targets = augmented(waveforms, targets, OFF, seeded())
    assert torch.equal(out, waveforms)
    assert torch.equal(out_targets, targets)
    assert changes(2, 20, 8, OFF) == (None, None, None)
    assert kept_patches(2, 8, OFF, seeded()) is None


def test_clips_and_targets_are_never_changed():
    waveforms, targets = noise(8), one_hot(8)
    before = waveforms.clone(), targets.clone()
    augmented(waveforms, targets, AugmentConfig(mix_probability=1.0), seeded())
    assert torch.equal(waveforms, before[0])
    assert torch.equal(targets, before[1])


def test_a_seed_gives_one_augmentation_and_another_seed_another():
    waveforms, targets = noise(8), one_hot(8)
    first = augmented(waveforms, targets, AugmentConfig(), seeded(1))
    again = augmented(waveforms, targets, AugmentConfig(), seeded(1))
    other = augmented(waveforms, targets, AugmentConfig(), seeded(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8, 19, 20, 100])
def test_a_clip_is_mixed_with_any_other_of_its_own_batch(batch_size):
    config, times = replace(OFF, mix_probability=1.0), 2000
    counts = torch.zeros(19, 19)
    for seed in range(times):
        drawn = draw_mixtures(
            9, torch.ones(19), torch.eye(19), config, seeded(seed), batch_size=batch_size
        )
        own, partner = drawn.clips.T
        assert own.tolist() == list(range(19))
        counts[own, partner] += 1
        alone = drawn.factors[own == partner]
        assert torch.equal(alone, torch.tensor([1.0, 0.0]).expand(len(alone), 2))
    rows = torch.arange(19)
    together = rows // batch_size == (rows // batch_size).unsqueeze(1)
    others = together & ~torch.eye(19, dtype=torch.bool)
    expected = torch.where(others, times / others.sum(dim=1, keepdim=True).clamp(min=1), 0.0)
    expected += times * torch.diag((others.sum(dim=1) == 0).float())
    assert (counts - expected).abs().max() <= 5 * expected.max().sqrt()
    assert not counts[expected == 0].any()


def test_batches_have_partners_of_their_own():
    config = replace(OFF, mix_probability=1.0)
    drawn = draw_mixtures(9, torch.ones(80), torch.eye(80), config, seeded(), batch_size=8)
    steps = (drawn.clips[:, 1] - drawn.clips[:, 0]) % 8
    assert len(set(steps.tolist())) > 3


def test_roll_rotates_each_clip_by_its_own_shift():
    waveforms = torch.arange(7.0).expand(50, 7) + 10 * torch.arange(50.0).unsqueeze(1)
    rolled, _ = augmented(waveforms, one_hot(50), replace(OFF, roll=True), seeded())
    shifts = set()
    for clip, original in zip(rolled, waveforms, strict=True):
        shift = int(clip[0] - original[0])
        assert torch.equal(clip, original.roll(-shift))
        shifts.add(shift)
    assert shifts == set(range(7))


def test_gain_stays_within_its_decibels_and_reaches_both_sides():
    waveforms = torch.ones(2000, 1)
    config = replace(OFF, gain_db=6.0)
    out, _ = augmented(waveforms, one_hot(2000), config, seeded())
    decibels = 20 * out.log10()
    assert decibels.abs().max() <= 6.0
    assert decibels.min() < -5.8
    assert decibels.max() > 5.8
    assert abs(decibels.mean()) < 0.3


def test_polarity_flips_about_half():
    out, _ = augmented(torch.ones(1000, 1), one_hot(1000), replace(OFF, polarity=True), seeded())
    assert set(out.flatten().tolist()) == {-1.0, 1.0}
    assert 0.44 < (out < 0).float().mean() < 0.56


def test_mixed_labels_still_sum_to_one_and_name_both_classes():
    waveforms, targets = mixed(noise(64), one_hot(64, 64), 1.0, seeded())
    assert waveforms.shape == (64, 1000)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(64))
    assert ((targets > 0).sum(dim=1) == 2).all()


def test_mixing_keeps_the_energy_of_equally_loud_clips():
    clips = noise(64, 20000)
    clips = clips / clips.norm(dim=1, keepdim=True)
    out, _ = mixed(clips, one_hot(64), 1.0, seeded())
    torch.testing.assert_close(out.norm(dim=1), torch.ones(64), atol=0.02, rtol=0)


def test_mixing_needs_sound_levels():
    config = replace(OFF, mix_probability=0.25)
    with pytest.raises(
        ValueError, match=r"levels must be given .*mix_probability 0.25\), got None"
    ):
        draw_mixtures(9, None, torch.eye(4), config, seeded())


def test_mixing_follows_sound_levels():
    """A loud and a soft sinusoid of equal share are equally loud in the mixture."""
    time = torch.arange(16000) / 16000
    loud = torch.sin(2 * math.pi * 440 * time)
    soft = 0.01 * torch.sin(2 * math.pi * 1000 * time)
    clips = torch.stack((loud, soft))
    out, targets = mixed(clips, torch.eye(2), 1.0, seeded())
    for clip, target in zip(out, targets, strict=True):
        share_loud = (clip @ loud) / (loud @ loud) * 1.0  # its level in the mixture
        share_soft = (clip @ soft) / (soft @ soft) * 0.01
        torch.testing.assert_close(
            share_loud / share_soft, target[0] / target[1], rtol=1e-3, atol=0
        )


def test_gain_counts_as_sound_level_when_mixing():
    """Both parts bring their gain along: their ratio stays what the labels say."""
    time = torch.arange(16000) / 16000
    clips = torch.stack([torch.sin(2 * math.pi * pitch * time) for pitch in (440, 1000)])
    config = replace(OFF, gain_db=20.0, mix_probability=1.0)
    out, targets = augmented(clips, torch.eye(2), config, seeded())
    shares = (out @ clips.T).abs()
    torch.testing.assert_close(
        shares[:, 0] / shares[:, 1], targets[:, 0] / targets[:, 1], rtol=1e-3, atol=0
    )


def test_the_share_of_mixed_clips_is_the_probability():
    clips, targets = noise(2000, 10), one_hot(2000)
    out, _ = mixed(clips, targets, 0.3, seeded())
    share = (out != clips).any(dim=1).float().mean()
    assert 0.26 < share < 0.34


def test_silence_is_mixed_with_nothing():
    clips = noise(4)
    clips[2] = 0
    out, targets = mixed(clips, torch.eye(4), 1.0, seeded())
    assert out.isfinite().all()
    assert torch.equal(out[2], clips[2])
    assert torch.equal(targets[2], torch.eye(4)[2])
    assert not targets[:, 2][[0, 1, 3]].any()  # nor does any clip claim a share of it
    assert (targets.max(dim=1).values < 1).any()


def test_silent_batches_and_single_clips_stay_as_they_are():
    for clips in (torch.zeros(3, 100), noise(1)):
        out, targets = mixed(clips, one_hot(len(clips)), 1.0, seeded())
        assert torch.equal(out, clips)
        assert torch.equal(targets, one_hot(len(clips)))


def test_masks_are_bands_of_bounded_width():
    config = replace(OFF, freq_mask=5, time_mask=9, num_masks=1)
    _, frames, bins = changes(500, 60, 40, config)
    assert frames.shape == (500, 60)
    assert bins.shape == (500, 40)
    for masks, widest in ((frames, 9), (bins, 5)):
        widths = masks.sum(dim=1)
        assert set(widths.tolist()) == set(range(widest + 1))
        assert ((masks.int().diff(dim=1) == 1).sum(dim=1) <= 1).all()  # one band, in one piece
        assert masks.any(dim=0).all()  # which can lie anywhere


def test_masks_differ_between_clips_and_can_be_many():
    config = replace(OFF, time_mask=9, num_masks=3)
    _, bands_of, no_bins = changes(200, 90, 4, config)
    assert no_bins is None
    bands = (bands_of.int().diff(dim=1) == 1).sum(dim=1)
    assert bands.max() == 3
    assert len({tuple(row) for row in bands_of.tolist()}) > 190


def test_a_filter_is_straight_lines_through_random_gains():
    config = replace(OFF, filter_db=3.0, filter_points=5)
    decibels = changes(4000, 60, 41, config).offsets * 10 / math.log(10)
    assert decibels.shape == (4000, 41)
    assert decibels[:, ::10].std().item() == pytest.approx(3.0, rel=0.03)
    assert decibels.mean().abs() < 0.1
    bends = decibels.diff(n=2, dim=1).abs() > 1e-4
    assert set(bends.any(dim=0).nonzero().flatten().tolist()) == {9, 19, 29}


@pytest.mark.parametrize(
    ("fbank", "per_decibel"),
    [
        ({}, math.log(10) / 10),
        ({"use_power": False}, math.log(10) / 20),
        ({"log_type": "db"}, 1.0),
        ({"log_type": "log10"}, 0.1),
    ],
)
def test_a_filter_is_in_the_units_of_the_features(fbank, per_decibel):
    config = replace(OFF, filter_db=3.0)
    in_decibels = changes(50, 60, 40, config, log_type="db").offsets
    torch.testing.assert_close(
        changes(50, 60, 40, config, **fbank).offsets, in_decibels * per_decibel
    )


def test_a_mask_may_cover_everything():
    config = replace(OFF, freq_mask=4, num_masks=1)
    _, _, bins = changes(100, 6, 4, config)
    assert bins.all(dim=1).any()


@pytest.mark.parametrize(("drop", "num_kept"), [(0.5, 128), (0.25, 192), (0.999, 1)])
def test_kept_patches_are_distinct_sorted_and_as_many_as_asked(drop, num_kept):
    keep = kept_patches(16, 256, replace(OFF, patch_drop=drop), seeded())
    assert keep is not None
    assert keep.shape == (16, num_kept)
    assert (keep.diff(dim=1) > 0).all()
    assert keep.min() >= 0
    assert keep.max() < 256
    assert len({tuple(row) for row in keep.tolist()}) > 10


def test_every_patch_is_kept_equally_often():
    keep = kept_patches(4000, 8, replace(OFF, patch_drop=0.5), seeded())
    assert keep is not None
    shares = keep.flatten().bincount(minlength=8) / 4000
    torch.testing.assert_close(shares, torch.full((8,), 0.5), atol=0.04, rtol=0)


def cut(count, levels=None, batch_size=None, probability=1.0):
    config = replace(OFF, cutmix_probability=probability)
    targets = torch.eye(count)
    return draw_cuts(targets, levels, 100, 40, config, seeded(), batch_size=batch_size)


def test_a_cut_takes_as_much_of_the_label_as_of_the_features():
    cuts, targets = cut(4000, batch_size=32)
    assert cuts is not None
    rows = torch.arange(4000)
    assert (cuts.partners // 32 == rows // 32).all()
    assert (cuts.partners != rows).all()
    in_frames, in_bins = cuts.frames.float().mean(dim=1), cuts.bins.float().mean(dim=1)
    assert not (in_frames * in_bins).any()  # along one axis at a time
    share = in_frames + in_bins
    torch.testing.assert_close(targets[rows, cuts.partners], share)
    torch.testing.assert_close(targets[rows, rows], 1 - share)
    for part, size in ((in_frames, 100), (in_bins, 40)):
        taken = part[part > 0]
        assert abs(len(taken) / 4000 - 0.5) < 0.05
        assert abs(taken.mean() - 0.5) < 0.03
        assert taken.max() < 1
        assert len(taken.unique()) == size - 1
    stretches = cuts.frames.int().diff(dim=1, prepend=torch.zeros(4000, 1, dtype=torch.int))
    assert ((stretches == 1).sum(dim=1) == (in_frames > 0)).all()  # one stretch each
    assert cuts.frames[:, [0, 99]].float().mean(dim=0).min() > 0.01
    edges = cuts.bins[in_bins > 0][:, [0, 39]]
    assert (edges.sum(dim=1) == 1).all()  # below or above, and so at one edge
    assert abs(edges[:, 0].float().mean() - 0.5) < 0.05


def test_some_clips_are_cut_and_none_that_cannot_be_heard():
    cuts, targets = cut(4000, probability=0.3)
    assert cuts is not None
    changed = cuts.frames.any(dim=1) | cuts.bins.any(dim=1)
    assert abs(changed.float().mean() - 0.3) < 0.03
    assert torch.equal(targets[~changed], torch.eye(4000)[~changed])

    levels = torch.tensor([1.0, 0.0]).repeat(100)
    cuts, targets = cut(200, levels, batch_size=8)
    assert cuts is not None
    heard = (levels > 0) & (levels[cuts.partners] > 0)
    assert torch.equal(cuts.frames.any(dim=1) | cuts.bins.any(dim=1), heard & (targets.diag() < 1))
    assert torch.equal(targets[~heard], torch.eye(200)[~heard])
    assert heard.any()

    cuts, targets = cut(1)
    assert cuts is not None
    assert not cuts.frames.any()
    assert targets == 1


def test_no_cuts_change_neither_labels_nor_what_is_drawn_next():
    generator, targets = seeded(), one_hot(5)
    cuts, same = draw_cuts(targets, None, 10, 8, OFF, generator)
    assert cuts is None
    assert same is targets
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=seeded()))


def test_an_unmixed_epoch_has_the_shapes_and_the_other_numbers_of_a_mixed_one():
    config = replace(OFF, roll=True, gain_db=6.0, mix_probability=1.0, cutmix_probability=1.0)
    drawn = []
    for unmixed in (False, True):
        generator = seeded()
        mixtures = draw_mixtures(
            1000, torch.ones(8), torch.eye(8), config, generator, unmixed=unmixed
        )
        cuts, targets = draw_cuts(mixtures.targets, None, 10, 8, config, generator, unmixed=unmixed)
        assert cuts is not None
        drawn.append((mixtures, cuts, targets, torch.rand(3, generator=generator)))
    mixed, plain = drawn
    assert torch.equal(plain[0].clips, mixed[0].clips)
    assert torch.equal(plain[0].starts, mixed[0].starts)
    assert torch.equal(plain[3], mixed[3])
    assert (mixed[0].factors != 0).all()
    assert (plain[0].factors[:, 0] != 0).all()
    assert (plain[0].factors[:, 1] == 0).all()
    assert (mixed[1].frames.any(dim=1) | mixed[1].bins.any(dim=1)).any()
    assert not plain[1].frames.any()
    assert not plain[1].bins.any()
    assert not torch.equal(mixed[2], torch.eye(8))
    assert torch.equal(plain[2], torch.eye(8))


@pytest.mark.parametrize("target_frames", [8, 6, 11])
def test_parts_of_features_come_from_the_partner(target_frames):
    """Features may be longer than their frames, by padding, or shorter, cut off."""
    features = torch.arange(3.0).view(3, 1, 1).expand(3, target_frames, 4)
    frames = torch.zeros(3, 8, dtype=torch.bool)
    bins = torch.zeros(3, 4, dtype=torch.bool)
    frames[0, 3:5] = True
    bins[2, 1:] = True
    made = spliced(features, Cuts(torch.tensor([2, 0, 1]), frames, bins))
    expected = features.clone()
    expected[0, 3:5] = 2.0
    expected[2, :, 1:] = 1.0
    assert torch.equal(made, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mix_probability": 1.5}, "augment.mix_probability must be from 0 to 1, got 1.5"),
        ({"cutmix_probability": -0.1}, "augment.cutmix_probability must be from 0 to 1, got -0.1"),
        ({"unmixed_share": 1.1}, "augment.unmixed_share must be from 0 to 1, got 1.1"),
        ({"patch_drop": 1.0}, "augment.patch_drop must be from 0 to below 1, got 1.0"),
        ({"gain_db": -1.0}, "augment.gain_db must be from 0 to 100, got -1.0"),
        ({"gain_db": 1e12}, "augment.gain_db must be from 0 to 100, got 1000000000000.0"),
        ({"filter_db": -1.0}, "augment.filter_db must be from 0 to 100, got -1.0"),
        ({"filter_points": 1}, "augment.filter_points must be from 2 to 100, got 1"),
        ({"num_masks": -1}, "augment.num_masks must be from 0 to 100, got -1"),
        ({"num_masks": 2**31 - 1}, "augment.num_masks must be from 0 to 100, got 2147483647"),
        ({"freq_mask": 129}, "freq_mask must be from 0 to the 128 mel bins of the features, got"),
        ({"time_mask": 499}, "time_mask must be from 0 to the 498 frames of a clip, got 499"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        check_augment(replace(AugmentConfig(), **changes), FbankConfig(), num_frames=498)


def test_a_filter_needs_a_logarithm():
    with pytest.raises(InputError, match=r"filter_db must be 0 where fbank.use_log_fbank is off"):
        check_augment(replace(OFF, filter_db=3.0), FbankConfig(use_log_fbank=False), 498)
