"""The demo: it learns, it draws, and it reads other data sets from their files."""

from __future__ import annotations

import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import sweep_digits


def test_the_demo_learns_and_draws(tmp_path, capsys):
    accuracy = sweep_digits.main(["--members", "8", "--epochs", "12", "--alone", "1", "--out", str(tmp_path)])
    assert accuracy > 0.93  # the demo itself, with 64 members and 40 epochs, exceeds 0.96
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "lr.png", "heat_map.png", "sweep.csv"}
    shown = capsys.readouterr().out
    for words in ("member", "weight_decay", "test accuracy", "one after the other with torch.optim.AdamW(fused=True)"):
        assert words in shown


def test_the_space_covers_four_decades():
    lr = sweep_digits.SPACE["lr"]
    assert lr.log
    assert lr.high / lr.low == pytest.approx(1e4)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_files_are_named_with_the_way_to_get_them(name, tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)no .* files in .*download=True"):
        sweep_digits.main(["--dataset", name, "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="needs --data DIR"):
        sweep_digits.main(["--dataset", name])


def write_mnist(folder: Path) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 10)):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + pixels.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())


def write_cifar10(folder: Path) -> None:
    raw = folder / "cifar-10-batches-py"
    raw.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)
        (raw / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10))}))
    (raw / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


@pytest.mark.parametrize(("name", "channels", "size"), [("mnist", 1, 28), ("cifar10", 3, 32)])
def test_other_data_sets_are_read_from_their_files(name, channels, size, tmp_path, monkeypatch):
    if name == "mnist":
        write_mnist(tmp_path)
    else:
        from torchvision import datasets

        write_cifar10(tmp_path)
        # the files have the format of the real ones, not their checksums
        monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
        monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())
    data = sweep_digits.load(name, tmp_path, seed=0)
    assert data.train.images.shape[1:] == (channels, size, size)
    assert data.train.images.dtype == torch.float32
    assert [len(split.labels) for split in data] == ([36, 4, 10] if name == "mnist" else [45, 5, 10])
    # standardised with the train images
    torch.testing.assert_close(data.train.images.mean(), torch.tensor(0.0), rtol=0, atol=1e-4)
    torch.testing.assert_close(data.train.images.std(), torch.tensor(1.0), rtol=0, atol=1e-4)
