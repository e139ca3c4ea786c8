"""The rules of a training step: learning rate, decay of the weights' average, seeds, loss."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ast_fast.settings.config import Config, TrainingConfig

LEAST_PRESENT = 0.1
"""Smallest share with which a sound of a mixture counts as present: 19 dB below the other."""


def learning_rate(step: int, num_steps: int, steps_per_epoch: int, config: TrainingConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine.

    The warm-up's last step has the peak, and the run's last step has `final_learning_rate`. A
    warm-up longer than half of the run is cut to that half.

    Args:
        step: From 0.
        num_steps: Steps of the whole run.
        steps_per_epoch: Steps of an epoch.
        config: Peak, end and length of the warm-up.
    """
    warmup_steps = min(round(config.warmup_epochs * steps_per_epoch), num_steps // 2)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps + 1) / (num_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * cosine


def ema_decay(step: int, decay: float) -> float:
    """Return the decay of the weights' average at a step (from 0): it is lower at first.

    Source: TensorFlow's ExponentialMovingAverage with num_updates: min(decay, (1 + n) / (10 + n)).
    """
    return min(decay, (1 + step) / (10 + step))


def is_unmixed(epoch: int, config: Config) -> bool:
    """Return whether an epoch, from 1, is one of the last in which clips are not mixed."""
    epochs = config.training.epochs
    return epoch > epochs - round(config.augment.unmixed_share * epochs)


def epoch_seeds(seed: int, fold: int, epoch: int, rank: int = 0) -> tuple[int, int]:
    """Return two independent seeds of an epoch: for its data, and for torch's global generator.

    Processes that train together share the first seed; each has its own second seed. Epoch 0 seeds
    the initial weights.
    """
    data_seed, torch_seed = np.random.SeedSequence((seed, fold, epoch)).generate_state(2, np.uint64)
    return int(data_seed), int(torch_seed) + rank


def clip_losses(logits: Tensor, targets: Tensor, config: TrainingConfig) -> Tensor:
    """Return each clip's training loss, shape (batch,), float32 or wider.

    Args:
        logits: Shape (batch, num_classes).
        targets: Label shares, shape (batch, num_classes), each row summing to 1.
        config: Which loss, and the label smoothing.
    """
    if config.loss == "presence":
        return presence_loss(logits, targets)
    return soft_cross_entropy(logits, targets, config.label_smoothing)


def presence_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return each clip's binary cross-entropy, summed over classes: which sounds are present.

    Each logit becomes the log of the odds that its sound is present. If exactly one sound is, and
    they occur independently, the odds divided by their sum are the probabilities: the softmax.

    Args:
        logits: Shape (batch, num_classes).
        targets: Label shares, shape (batch, num_classes); a class with `LEAST_PRESENT` is present.
    Returns:
        Losses, shape (batch,), float32 or wider.
    """
    present = (targets >= LEAST_PRESENT).to(torch.float32)
    each = functional.binary_cross_entropy_with_logits(logits.float(), present, reduction="none")
    return each.sum(dim=1)


def presence_bias(num_classes: int) -> float:
    """Return the bias of the head with which each of the classes is as likely at first."""
    return -math.log(max(1, num_classes - 1))


def soft_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return each clip's cross-entropy against label shares, smoothed towards all classes.

    Args:
        logits: Shape (batch, num_classes).
        targets: Label shares, shape (batch, num_classes), each row summing to 1.
        label_smoothing: Share of each label spread evenly over all classes.
    Returns:
        Losses, shape (batch,), float32 or wider.
    """
    targets = targets * (1 - label_smoothing) + label_smoothing / targets.shape[1]
    return -(targets * logits.float().log_softmax(dim=1)).sum(dim=1)
