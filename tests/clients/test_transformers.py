"""Hugging Face transformers: its Trainer trains, accumulates, clips, checkpoints and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from client import OURS, THEIRS, Make, close, load, weights

import functopt as fo
from functopt import StatefulOptimizer


@pytest.fixture(scope="module")
def transformers() -> Any:
    return load("transformers", "transformers")[0]


def sentences(count: int = 48) -> list[dict[str, Any]]:
    """Return sequences of words, and which of two words is the more frequent in it."""
    words = torch.randint(0, 6, (count, 12), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": w, "labels": ((w == 1).sum() > (w == 2).sum()).long()} for w in words]


def train(
    transformers: Any,
    folder: Path,
    *,
    make: Make | None = None,
    seed: int = 0,
    resume: Path | None = None,
    **options: Any,
) -> tuple[Any, list[float]]:
    """Train a tiny BERT for three epochs, with a checkpoint every two steps; return it and its losses."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=6,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        num_labels=2,
    )
    model = transformers.BertForSequenceClassification(config).double()
    losses = []
    model.register_forward_hook(lambda module, args, output: losses.append(output.loss.item()))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=3,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        weight_decay=0.1,
        warmup_steps=2,
        save_steps=2,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
    )
    if make is not None:
        optimizer = make(model.named_parameters())
        options["optimizers"] = optimizer, transformers.get_cosine_schedule_with_warmup(optimizer, 2, 9)
    trainer = transformers.Trainer(model, arguments, train_dataset=sentences(), **options)
    trainer.train(resume_from_checkpoint=resume and str(resume))
    assert trainer.state.global_step == 9
    return model, losses


def test_losses_are_those_of_adamw(transformers, tmp_path):
    ours, theirs = (train(transformers, tmp_path, make=make)[1] for make in (OURS, THEIRS))
    assert len(ours) == 18
    close(ours, theirs)


def test_the_trainer_makes_it_from_its_class(transformers, tmp_path):
    """With groups of its own: biases and normalisation do not decay."""
    ours, theirs = (
        train(transformers, tmp_path, optimizer_cls_and_kwargs=(kind, options))[1]
        for kind, options in (
            (StatefulOptimizer, {"tx": fo.adamw(0.01, beta2=0.99)}),
            (torch.optim.AdamW, {"lr": 0.01, "betas": (0.9, 0.99)}),
        )
    )
    assert len(ours) == 18
    close(ours, theirs)


def test_training_resumes_from_a_checkpoint(transformers, tmp_path):
    unbroken, losses = train(transformers, tmp_path, make=OURS)
    resumed, after = train(transformers, tmp_path / "again", make=OURS, seed=1, resume=tmp_path / "checkpoint-4")
    assert after == losses[8:]
    assert torch.equal(weights(resumed), weights(unbroken))
