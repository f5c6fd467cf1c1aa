"""PyTorch Lightning with a functional optimizer: ``configure_optimizers`` returns one, and that is all.

The Trainer clips gradients, drives torch's ``OneCycleLR``, and can save and resume as with any optimizer.

Run it with ``python examples/lightning_client.py`` (``pip install lightning``).
"""

from __future__ import annotations

from typing import Any

import digits
import lightning.pytorch as pl
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import functopt as fo


class Classifier(pl.LightningModule):
    """The network of the other examples."""

    def __init__(self) -> None:
        super().__init__()
        self.net = digits.conv_net()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def test_step(self, batch: list[Tensor], index: int) -> None:
        images, labels = batch
        self.log("accuracy", digits.accuracy(self.net(images), labels))

    def configure_optimizers(self) -> Any:
        no_bias = {name: not name.endswith("bias") for name, _ in self.named_parameters()}
        optimizer = fo.StatefulOptimizer(self.named_parameters(), fo.adamw(weight_decay=0.05, mask=no_bias), lr=1e-2)
        schedule = OneCycleLR(optimizer, 1e-2, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(epochs: int = 12) -> float:
    """Train and return the accuracy on the test images."""
    pl.seed_everything(0)
    data = digits.load()
    trainer = pl.Trainer(
        max_epochs=epochs,
        gradient_clip_val=1.0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    model = Classifier()
    trainer.fit(model, DataLoader(TensorDataset(*data.train), 64, shuffle=True))
    (result,) = trainer.test(model, DataLoader(TensorDataset(*data.test), 360))
    print(f"test accuracy {result['accuracy']:.2%}")
    return result["accuracy"]


if __name__ == "__main__":
    main()
