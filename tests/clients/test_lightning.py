"""PyTorch Lightning: its Trainer trains, clips, accumulates, checkpoints and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from client import OURS, THEIRS, Make, close, data, load, net, weights
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # Lightning calls it
]


@pytest.fixture(scope="module")
def lightning() -> Any:
    return load("lightning", "lightning.pytorch")[0]


def train(
    lightning: Any, make: Make, folder: Path, *, seed: int = 0, resume: Path | None = None, **options: Any
) -> Any:
    """Train for four epochs, with a checkpoint after each, and return the module with its losses."""

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.losses = net(seed), []

        def training_step(self, batch: Any, _: int) -> Any:
            loss = cross_entropy(self.net(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            groups = [{"params": self.net[0].parameters(), "name": "body"}, {"params": self.net[1:].parameters()}]
            optimizer = make(groups)
            scheduler = OneCycleLR(optimizer, [0.02, 0.05], total_steps=12)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    defaults = {
        "max_epochs": 4,
        "accelerator": "cpu",
        "gradient_clip_val": 0.5,
        "accumulate_grad_batches": 2,
        "callbacks": [lightning.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1)],
        "default_root_dir": folder,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(**defaults | options)
    module = Module()
    trainer.fit(module, DataLoader(data(), 16), ckpt_path=resume, weights_only=resume and True)
    assert trainer.global_step == 12
    return module


def test_losses_are_those_of_adamw(lightning, tmp_path):
    ours, theirs = (train(lightning, make, tmp_path / name) for make, name in ((OURS, "ours"), (THEIRS, "theirs")))
    assert len(ours.losses) == 24
    close(ours.losses, theirs.losses)
    close(weights(ours.net), weights(theirs.net), "weights")


def test_training_resumes_from_a_checkpoint(lightning, tmp_path):
    unbroken = train(lightning, OURS, tmp_path)
    resumed = train(lightning, OURS, tmp_path, seed=1, resume=tmp_path / "epoch=1.ckpt")
    assert resumed.losses == unbroken.losses[12:]
    assert torch.equal(weights(resumed.net), weights(unbroken.net))


def test_the_monitor_reads_lr_and_momentum(lightning, tmp_path):
    tables = []
    for make, name in ((OURS, "ours"), (THEIRS, "theirs")):
        logger = lightning.loggers.CSVLogger(tmp_path, name, version="")
        monitor = lightning.callbacks.LearningRateMonitor("step", log_momentum=True)
        train(lightning, make, tmp_path, logger=logger, callbacks=[monitor], log_every_n_steps=1)
        tables.append((tmp_path / name / "metrics.csv").read_text().splitlines())
    names = "{0}/body,{0}/body-momentum,{0}/pg2,{0}/pg2-momentum,step"
    assert tables[0].pop(0) == names.format("lr-StatefulOptimizer")
    assert tables[1].pop(0) == names.format("lr-AdamW")
    assert len(tables[0]) == 24
    assert tables[0] == tables[1]
