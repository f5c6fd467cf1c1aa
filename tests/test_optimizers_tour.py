"""The tour of optimizers: its rules are the notebook's, its networks fastai's, and it learns, draws and compares."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_seeds import SPEC, array, at, close, data_of, steps_of
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

imagenette: Any = import_module("imagenette")
tour: Any = import_module("optimizers_tour")

CLASSES = ("n01440764", "n02102040", "n02979186")


# Images in Imagenette's layout


def write_images(folder: Path, train: int = 4, valid: int = 2, side: int = 20) -> None:
    """Each class has a colour of its own, and the images are not square."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for split, count in (("train", train), ("val", valid)):
        for label, name in enumerate(CLASSES):
            (folder / "imagenette2-160" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 80, (side, side + 10, 3), dtype=np.uint8)
                pixels[..., label] += 150
                image = Image.fromarray(pixels)
                # a few of the real ones are grey
                image = image.convert("L") if split == "train" and label == 0 and i == 0 else image
                image.save(folder / "imagenette2-160" / split / name / f"{name}_{i}.JPEG", quality=95)


def test_images_are_read_resized_and_labelled(tmp_path):
    write_images(tmp_path)
    train, valid = imagenette.load(tmp_path, size=16)
    assert [len(part) for part in (train, valid)] == [12, 6]
    images, labels = train.tensors
    assert (images.dtype, images.shape, labels.dtype) == (torch.uint8, (12, 3, 16, 16), torch.int64)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    strongest = images.double().mean((2, 3)).argmax(1)
    assert strongest[1:].tolist() == labels[1:].tolist()
    assert (images[0][0] == images[0][1]).all()  # the grey one has three equal channels
    assert valid.tensors[1].tolist() == [0, 0, 1, 1, 2, 2]


def test_bytes_are_normalised_with_the_notebooks_statistics():
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 2, 2)
    got = imagenette.Normalize()(images)
    mean, std = np.array([0.47, 0.48, 0.45]), np.array([0.29, 0.28, 0.30])
    for image, byte in zip(got, (0.0, 1.0), strict=True):
        np.testing.assert_allclose(image[:, 0, 0], (byte - mean) / std, rtol=1e-6)
    assert got.dtype == torch.float32


@pytest.mark.parametrize("broken", ["nothing", "no val"])
def test_missing_images_are_named_with_the_way_to_get_them(broken, tmp_path):
    if broken == "no val":
        (tmp_path / "imagenette2-160" / "train" / CLASSES[0]).mkdir(parents=True)
        (tmp_path / "imagenette2-160" / "train" / CLASSES[0] / "a.JPEG").touch()
    with pytest.raises(SystemExit, match=r"(?s)unpack https://.*imagenette2-160\.tgz.*download=True") as error:
        tour.main(["--dataset", "imagenette", "--data", str(tmp_path)])
    assert str(tmp_path) in str(error.value)
    with pytest.raises(SystemExit, match="needs --data DIR"):
        tour.main(["--dataset", "imagenette"])


# The networks


def weights(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


def test_the_convolutional_network_is_the_notebooks():
    torch.manual_seed(1)
    model = imagenette.conv_net()
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    # 27 numbers are seen by an output of the first layer: 16 outputs, then 32 and 64
    assert [conv.out_channels for conv in convs] == [16, 32, 64, 32, 64, 128, 256]
    assert [conv.stride[0] for conv in convs] == [1] + [2] * 6
    assert all(conv.bias is None and conv.kernel_size == (3, 3) and conv.padding == (1, 1) for conv in convs)
    pairs = zip([3, 16, 32, 64, 32, 64, 128], [16, 32, 64, 32, 64, 128, 256], strict=True)
    assert weights(model) == sum(9 * a * b + 2 * b for a, b in pairs) + 256 * 10 + 10
    assert [type(layer) for layer in model[0]] == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d]
    # init.kaiming_normal_(weight, a=0.1): a variance of 2/((1 + a²)·inputs)
    assert convs[6].weight.var().item() == pytest.approx(2 / (1.01 * 128 * 9), rel=0.005)
    assert model(torch.zeros(2, 3, 128, 128)).shape == (2, 10)


def test_xresnet34_is_fastais():
    xresnet = pytest.importorskip("fastai.vision.models.xresnet", reason="fastai is not installed")
    torch.manual_seed(0)
    theirs, ours = xresnet.xresnet34(n_out=10).double(), imagenette.xresnet34().double()
    assert weights(theirs) == weights(ours) == 21_309_034
    saved, own = theirs.state_dict(), ours.state_dict()
    fresh = dict(zip(own, saved.values(), strict=True))
    for name, tensor in own.items():  # both start from the same scales, shifts and spreads
        got, want = tensor.double(), fresh[name].double()
        if want.ndim > 1:
            assert got.std().item() == pytest.approx(want.std().item(), rel=0.06), name
        else:
            assert torch.equal(got, want), name
    for tensor in fresh.values():  # blocks that start as their shortcut would hide their convolutions
        if tensor.is_floating_point():
            tensor.copy_(0.1 * torch.randn_like(tensor).abs() if tensor.ndim == 1 else 0.05 * torch.randn_like(tensor))
    theirs.load_state_dict(dict(zip(saved, fresh.values(), strict=True)))
    ours.load_state_dict(fresh)
    images = torch.randn(2, 3, 24, 24, dtype=torch.float64)  # odd sizes come up, which average pooling must round up
    for mode in (True, False):
        got, want = ours.train(mode)(images), theirs.train(mode)(images)
        assert want.abs().max() > 0.1
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


# The rules

RULES = {
    "sgd": "A/sgd/", "sgd-wd": "A/sgd_wd/", "sgd-momentum": "A/momentum/", "adam": "A/adam/", "lamb": "A/lamb/",
    "nadam": "C/nadam_formula/",
}  # fmt: skip


def hypers_of(case: dict, tx: Any) -> dict[str, Any]:
    """What the case was given; what it was not given must be the same by default here."""
    momentum = "momentum" if "momentum" in tx.hypers else "beta1"
    ours = {"lr": "lr", "wd": "weight_decay", "mom": momentum, "sqr_mom": "beta2", "eps": "eps"}
    # the lesson's run has a decay of 0.01, its weight_decay stepper none by default
    given = case["resolved"] if case["name"].startswith("A/sgd_wd/") else case["given"]
    return {ours[name]: array(value["npz"]) if isinstance(value, dict) else value for name, value in given.items()}


@pytest.mark.parametrize("name", RULES)
def test_the_rules_are_those_of_the_lesson_and_the_article(name):
    tx = tour.TOUR[name].tx
    cases = [case for case in SPEC["cases"] if case["name"].startswith(RULES[name])]
    assert len(cases) >= 2
    for case in cases:
        leaves, grads, params = data_of(case)
        hypers, state = hypers_of(case, tx), tx.init(params)
        for step in range(steps_of(case)):
            params, state = tx.update({leaf: grads[leaf][step] for leaf in leaves}, state, params, at(hypers, step))
            for leaf in leaves:
                close(params[leaf], array(f"{case['name']}/params/{leaf}")[step + 1], f"{case['name']}, step {step}")


def test_the_settings_are_those_of_the_lessons_runs():
    lrs = {name: stop.tx.hypers["lr"] for name, stop in tour.TOUR.items()}
    assert lrs == {"sgd": 0.4, "sgd-wd": 0.3, "sgd-momentum": 0.3, "adam": 1e-3, "lamb": 3e-3, "nadam": 1e-3}
    assert [tour.TOUR[name].tx.hypers["weight_decay"] for name in ("sgd-wd", "sgd-momentum")] == [0.01, 0.01]
    assert tour.TOUR["adam"].tx.hypers["weight_decay"] == 0


# The tour on digits


@pytest.fixture(scope="module")
def on_digits(tmp_path_factory) -> tuple[list[Any], list[str], Path]:
    """The results of a short tour, what it printed, and where its picture is."""
    out, said = tmp_path_factory.mktemp("tour") / "pictures" / "tour.png", io.StringIO()
    with contextlib.redirect_stdout(said):
        results = tour.main(["--epochs", "3", "--batch-size", "48", "--out", str(out)])
    return results, said.getvalue().splitlines(), out


NAMES = [
    "SGD", "SGD, cosine", "SGD, weight decay", "SGD, weight decay, cosine", "SGD, momentum", "SGD, momentum, cosine",
    "Adam", "Adam, cosine", "LAMB", "LAMB, cosine", "NAdam", "NAdam, cosine",
]  # fmt: skip


def test_every_optimizer_learns_the_digits(on_digits):
    results, _, _ = on_digits
    assert [result.name for result in results] == NAMES
    for result in results:
        last, losses = result.rows[-1], result.recorder.losses
        assert last["valid accuracy"] > 0.82, result.name
        assert last["train loss"] < 0.5 * losses[0], result.name
        assert np.isfinite(losses).all()
        assert len(losses) == 3 * (1077 // 48)
    # all from the same weights, with the same first batch, and yet no two alike
    assert len({result.recorder.losses[0] for result in results}) == 1
    assert len({result.recorder.losses[-1] for result in results}) == len(results)


def test_learning_rates_are_constant_or_follow_the_lessons_schedule(on_digits):
    at = np.arange(66) / 66
    rise = 0.6 + (0.3 - 0.6) * (1 + np.cos(np.pi * at / 0.3)) / 2
    fall = 0.2 + (0.6 - 0.2) * (1 + np.cos(np.pi * (at - 0.3) / 0.7)) / 2
    course = np.where(at < 0.3, rise, fall) / 0.4
    for result in on_digits[0]:
        lr = result.stop.tx.hypers["lr"]
        want = np.full(66, lr) if result.lr == "constant" else lr * course
        np.testing.assert_allclose(result.recorder.lrs, want, rtol=1e-6, err_msg=result.name)


def test_the_table_has_a_row_for_every_epoch(on_digits):
    results, lines, _ = on_digits
    assert lines[0] == "digits: 1077 images to train on, 360 to validate with"
    split = [re.split(r"\s{2,}", line.strip()) for line in lines[1:]]
    assert split[0] == ["optimizer", "epoch", "train loss", "train accuracy", "valid loss", "valid accuracy"]
    want = [
        [result.name, str(i), *(f"{value:.4f}" for value in row.values())]
        for result in results
        for i, row in enumerate(result.rows, 1)
    ]
    assert split[1:37] == want
    assert split[38] == ["optimizer", "learning rate", "epochs", "seconds", "valid accuracy"]
    summary = split[39:51]
    assert sorted(row[0] for row in summary) == sorted(NAMES)
    accuracies = [float(row[-1]) for row in summary]
    assert accuracies == sorted(accuracies, reverse=True)
    assert {row[0]: row[1] for row in summary}["SGD, cosine"] == "0.3 to 0.6 to 0.2"
    assert not any("published" in line for line in lines)


def test_the_picture_has_a_line_for_every_run(on_digits):
    results, _, png = on_digits
    assert png.read_bytes().startswith(b"\x89PNG")
    figure = tour.plot(results)
    losses, accuracies = figure.axes
    assert (losses.get_xlabel(), losses.get_ylabel(), losses.get_yscale()) == ("step", "training loss, smoothed", "log")
    assert (accuracies.get_xlabel(), accuracies.get_ylabel()) == ("step", "validation accuracy")
    for ax in (losses, accuracies):
        assert [line.get_label() for line in ax.lines] == NAMES
        assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == len(NAMES)
        assert [line.get_linestyle() for line in ax.lines] == ["-", "--"] * 6
    for loss, accuracy, result in zip(losses.lines, accuracies.lines, results, strict=True):
        recorded = result.recorder.losses
        weights = 0.9 ** np.arange(65, -1, -1)
        assert loss.get_xdata().tolist() == list(range(66))
        assert loss.get_ydata()[0] == pytest.approx(recorded[0])
        assert loss.get_ydata()[-1] == pytest.approx(np.average(recorded, weights=weights))
        assert accuracy.get_xdata().tolist() == [22, 44, 66]
        assert accuracy.get_ydata().tolist() == [row["valid accuracy"] for row in result.rows]
        assert loss.get_color() == accuracy.get_color()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == NAMES


def test_measures_are_those_of_the_trained_network():
    digits: Any = import_module("digits")
    data = [torch.utils.data.TensorDataset(*part) for part in digits.load()[:2]]
    model = tour.make_network("digits", shrink=4, seed=0)
    result = tour.train(tour.TOUR["lamb"], "constant", model, data, epochs=1, batch_size=64, seed=0)
    model.eval()
    for part, kind in zip(data, ("train", "valid"), strict=True):
        images, labels = part.tensors
        with torch.no_grad():
            scores = model(images)
        loss = nn.functional.cross_entropy(scores, labels).item()
        assert result.rows[0][f"{kind} loss"] == pytest.approx(loss, rel=1e-5)
        assert result.rows[0][f"{kind} accuracy"] == pytest.approx(digits.accuracy(scores, labels), abs=1e-12)


def test_the_same_seed_gives_the_same_run_and_another_one_another(tmp_path):
    options = [
        "--only",
        "adam",
        "--lr",
        "constant",
        "--epochs",
        "1",
        "--shrink",
        "8",
        "--out",
        str(tmp_path / "tour.png"),
    ]
    first, again, other = (tour.main([*options, "--seed", seed])[0].recorder.losses for seed in "112")
    assert first.tolist() == again.tolist() != other.tolist()


def test_interrupted_it_shows_what_there_is(tmp_path, monkeypatch, capsys):
    measure = tour.OnTrainingData.after_epoch
    begun = []

    def interrupt(self, run):
        measure(self, run)
        begun.append(run)
        if len(begun) == 3:  # the first epoch of the second run
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(tour.OnTrainingData, "after_epoch", interrupt)
    out = tmp_path / "tour.png"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        results = tour.main(["--epochs", "2", "--shrink", "8", "--out", str(out)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert [(result.name, len(result.rows)) for result in results] == [("SGD", 2), ("SGD, cosine", 1)]
    assert "SGD, cosine" in capsys.readouterr().out
    assert out.exists()


def test_on_a_terminal_the_table_is_drawn(monkeypatch, capsys):
    pytest.importorskip("rich", reason="rich is not installed")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    tour.show(["optimizer", "valid loss"], [[["SGD", 0.25]], [["Adam", 1]]])
    drawn = capsys.readouterr().out
    assert re.search(r"^ +SGD +0\.2500 +$", drawn, re.MULTILINE)
    assert len(re.findall(r"^ ─+ *$", drawn, re.MULTILINE)) == 4  # around the head and the two blocks


# The tour on images in Imagenette's layout


def test_the_tour_on_imagenette(tmp_path, monkeypatch, capsys):
    write_images(tmp_path)
    networks = []
    make = tour.make_network
    monkeypatch.setattr(tour, "make_network", lambda name, *rest: networks.append(name) or make(name, *rest))
    sizes = ["--size", "32", "--shrink", "16", "--batch-size", "6"]
    results = tour.main(
        [
            "--dataset",
            "imagenette",
            "--data",
            str(tmp_path),
            "--lr",
            "constant",
            *sizes,
            "--out",
            str(tmp_path / "tour.png"),
        ]
    )
    said = capsys.readouterr().out
    assert "imagenette: 12 images to train on, 6 to validate with" in said
    assert [len(result.rows) for result in results] == [1, 1, 1, 3, 3, 10]
    assert [len(result.recorder) for result in results] == [2, 2, 2, 6, 6, 20]
    assert networks == ["cnn"] * 5 + ["xresnet34"]
    for words in (
        "0.4180 (cnn, epoch 1)", "0.3100 (cnn, epoch 1)", "0.3960 (cnn, epoch 1)", "0.6720 (cnn, epoch 3)",
        "0.6460 (cnn, epoch 3)", "0.8096 (xresnet34, epoch 10)", '"published" is what the authors printed',
        "nothing of it was measured here",
    ):  # fmt: skip
        assert words in said
    assert "0.4820" not in said  # that one had the schedule
    assert (tmp_path / "tour.png").exists()


@pytest.mark.parametrize("network", ["cnn", "xresnet34"])
def test_colours_are_learnt(network, tmp_path, capsys):
    write_images(tmp_path, train=16, valid=4)
    options = ["--only", "lamb", "--network", network, "--epochs", "8", "--size", "32", "--shrink", "8"]
    results = tour.main(
        [
            "--dataset",
            "imagenette",
            "--data",
            str(tmp_path),
            *options,
            "--batch-size",
            "8",
            "--out",
            str(tmp_path / "tour.png"),
        ]
    )
    assert [result.name for result in results] == ["LAMB", "LAMB, cosine"]
    for result in results:
        assert result.rows[-1]["train accuracy"] > 0.9
        assert result.rows[-1]["valid accuracy"] > 0.9
        assert result.rows[-1]["valid loss"] < 0.8  # 1.1 for a guess among the three; about 0.5, by processor
    assert "0.6460 (cnn, epoch 3)" in capsys.readouterr().out
