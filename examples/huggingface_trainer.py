"""Hugging Face's Trainer with a functional optimizer, for any module that returns its loss.

The Trainer makes the optimizer from its class, with two groups of parameters, of which only one decays; it clips, warms
up and anneals as its arguments say. An optimizer made beforehand goes in with ``optimizers=(optimizer, scheduler)``.

Run it with ``python examples/huggingface_trainer.py`` (``pip install transformers accelerate``).
"""

from __future__ import annotations

import tempfile
from typing import Any

import digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments, set_seed

import functopt as fo


class Classifier(nn.Module):
    """The network of the other examples, with its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = digits.conv_net()

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = self.net(images)
        return {"loss": cross_entropy(scores, labels), "scores": scores}


def accuracy(found: Any) -> dict[str, float]:
    """Return what the Trainer shall report of an evaluation."""
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}


def main(epochs: int = 12, peak_lr: float = 1e-2) -> float:
    """Train and return the accuracy on the test images."""
    set_seed(0)
    data = digits.load()
    train, test = (
        [{"images": image, "labels": label} for image, label in zip(*split, strict=True)]
        for split in (data.train, data.test)
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=64,
            learning_rate=peak_lr,
            weight_decay=0.05,
            lr_scheduler_type="cosine",
            warmup_steps=0.2,
            save_strategy="no",
            logging_strategy="epoch",
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
        )
        trainer = Trainer(
            Classifier(),
            arguments,
            train_dataset=train,
            eval_dataset=test,
            compute_metrics=accuracy,
            optimizer_cls_and_kwargs=(fo.StatefulOptimizer, {"tx": fo.adamw(peak_lr)}),
        )
        trainer.train()
        result = trainer.evaluate()["eval_accuracy"]
    print(f"test accuracy {result:.2%}")
    return result


if __name__ == "__main__":
    main()
