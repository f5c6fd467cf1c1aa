"""Models whose convolutions are computed by shifted slices: the same parameters, the same numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from said import words
from torch import nn
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.nn import functional as F

from functopt.nn import batched


def same(got: Any, want: Any) -> None:
    """In float64; sums over a window may go in another order."""
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


class Subclassed(nn.Conv2d):
    def forward(self, input):
        return torch.tanh(super().forward(input)) * 2


class Nested(nn.Module):
    """A convolution used twice, one inside another module, one called as a function, a buffer and a parameter."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.body = nn.Sequential(self.twice, nn.ReLU(), nn.ModuleDict({"conv": nn.Conv2d(4, 6, 2)})["conv"])
        self.kernel = nn.Parameter(torch.randn(2, 6, 3, 3))
        self.register_buffer("shift", torch.randn(4, 1, 1))

    def forward(self, x):
        return F.conv2d(input=self.body(self.twice(x) + self.shift), weight=self.kernel, padding=(1, 0))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized() -> nn.Module:
    conv = nn.Conv2d(4, 6, 3)
    nn.utils.parametrize.register_parametrization(conv, "weight", Doubled())
    return conv


conv1, conv2, conv3 = nn.Conv1d, nn.Conv2d, nn.Conv3d
MODELS: dict[str, Any] = {
    "plain": lambda: conv2(4, 6, 3),
    "no bias": lambda: conv2(4, 6, 3, bias=False),
    "1x1": lambda: conv2(4, 6, 1),
    "1x1 strided": lambda: conv2(4, 6, 1, stride=2),
    "oblong": lambda: conv2(4, 6, (2, 3), stride=(1, 2), padding=(2, 1), dilation=(2, 1)),
    "stride 3": lambda: conv2(4, 6, 2, stride=3),
    "same": lambda: conv2(4, 6, 3, padding="same"),
    "same, even kernel": lambda: conv2(4, 6, (4, 2), padding="same", dilation=(2, 4)),
    "valid": lambda: conv2(4, 6, 3, padding="valid"),
    "reflect": lambda: conv2(4, 6, 3, padding=2, padding_mode="reflect"),
    "replicate": lambda: conv2(4, 6, 3, padding=(1, 2), padding_mode="replicate", stride=2),
    "circular": lambda: conv2(4, 6, 3, padding="same", padding_mode="circular"),
    "groups": lambda: conv2(4, 6, 3, padding=1, groups=2),
    "depthwise": lambda: conv2(4, 8, 3, padding=1, groups=4),
    "as large as the image": lambda: conv2(4, 6, (7, 8)),
    "1d": lambda: nn.Sequential(conv1(4, 6, 3, stride=2, padding=2, dilation=2), nn.MaxPool1d(2)),
    "3d": lambda: nn.Sequential(conv3(4, 6, (2, 3, 2), padding=1, stride=(1, 2, 1)), nn.MaxPool3d(2)),
    "pooling": lambda: nn.Sequential(conv2(4, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), conv2(6, 3, 2)),
    "overlapping pooling": lambda: nn.Sequential(nn.MaxPool2d((3, 2), (2, 1), dilation=(1, 2)), conv2(4, 6, 2)),
    "pooling as torch does it": lambda: nn.Sequential(
        conv2(4, 6, 3), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, padding=1)
    ),
    "mean": lambda: nn.Sequential(conv2(4, 6, 3), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(-3), nn.Linear(6, 2)),
    "two means": lambda: nn.Sequential(conv2(4, 6, 3), nn.AdaptiveAvgPool2d((1, 2))),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 2), conv2(4, 6, 3)),
    "nested": Nested,
    "subclassed": lambda: nn.Sequential(Subclassed(4, 6, 3), nn.ReLU()),
    "parametrized": parametrized,
}


def sliced(fn: Any) -> Any:
    """By slices at any size."""
    return batched(fn, limit=2**30)


def problem(name: str, batch: int | None = 5) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    dims = {"1d": 1, "3d": 3}.get(name, 2)
    shape = (4, *(7, 8, 5)[:dims]) if batch is None else (batch, 4, *(7, 8, 5)[:dims])
    return model, torch.randn(shape, dtype=torch.float64)


def members(model: nn.Module, count: int = 3) -> dict[str, torch.Tensor]:
    return {
        name: torch.stack([p.detach() * (1 + 0.1 * i) for i in range(count)]) for name, p in model.named_parameters()
    }


def run(model: nn.Module, params: Any, x: torch.Tensor) -> Any:
    """The output, and the gradients of a function of it with regard to parameters and input."""
    # tie_weights: torch does not put a parameter back that a module used twice has under two names
    call = lambda p, x: functional_call(model, p, x, tie_weights=False)
    loss = lambda p, x: (call(p, x) ** 3).sum()
    return call(params, x), grad(loss, argnums=(0, 1))(params, x)


@pytest.mark.parametrize("batch", [5, None], ids=["batch", "one image"])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_torchs(name, batch):
    model, x = problem(name, batch)
    params = {name: p.detach() for name, p in model.named_parameters()}
    same(run(sliced(model), params, x), run(model, params, x))


@pytest.mark.parametrize("name", MODELS)
def test_members_are_torchs(name):
    model, x = problem(name)
    over = lambda m: vmap(lambda p, x: run(m, p, x), in_dims=(0, None))(members(model), x)
    same(over(sliced(model)), over(model))


@pytest.mark.parametrize("name", ["oblong", "groups", "pooling", "nested", "mean"])
def test_members_compiled_are_torchs(name):
    model, x = problem(name)
    over = lambda m: vmap(lambda p, x: run(m, p, x), in_dims=(0, None))
    compiled = torch.compile(over(sliced(model)), fullgraph=True, backend="aot_eager")
    same(compiled(members(model), x), over(model)(members(model), x))


@pytest.mark.exhaustive
def test_members_compiled_by_inductor_are_torchs():
    model, x = problem("pooling")
    over = lambda m: vmap(lambda p, x: run(m, p, x), in_dims=(0, None))
    compiled = torch.compile(over(sliced(model)), fullgraph=True)
    same(compiled(members(model), x), over(model)(members(model), x))


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu_is_torchs_and_compiled_without_a_tanh(approximate):
    # its gradient is right far out, where a tanh is one to rounding, and around zero
    x = torch.cat([torch.linspace(-30, 30, 601, dtype=torch.float64), torch.tensor([1e-300, -1e-9, 1e15, -1e15])])
    seen: list[str] = []

    def looking(graph: Any, inputs: Any) -> Any:
        seen.append(str(graph.code))
        return graph

    model = nn.GELU(approximate)
    over = lambda m: vmap(grad_and_value(lambda x: m(x) ** 2))
    same(torch.compile(over(batched(model)), fullgraph=True, backend=looking)(x), over(model)(x))
    assert ("sigmoid" in seen[0], "gelu" in seen[0]) == ((True, False) if approximate == "tanh" else (False, True))
    assert torch.equal(batched(model)(x), model(x))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.softmax(x, -1),
        lambda x: nn.Softmax(0)(x),
        lambda x: torch.softmax(x * 0.3, dim=1),
        lambda x: (x / 3).softmax(-2),
    ],
)
def test_softmax_is_torchs_and_written_out_where_compiled(call):
    x = 30 * torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0], x[1, 2], x[2, 1, 3] = -torch.inf, -700.0, 1e300
    seen: list[str] = []

    def looking(graph: Any, inputs: Any) -> Any:
        seen.append(str(graph.code))
        return graph

    slope = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(3, 4, 5)
    over = lambda f: grad(lambda x: (f(x) * slope).sum())
    for make in (lambda f: f, over, lambda f: over(over(f))):
        torch.compiler.reset()
        same(torch.compile(make(batched(call)), fullgraph=True, backend=looking)(x), make(call)(x))
    assert "softmax" not in seen[0]
    assert "amax" in seen[0]
    assert torch.equal(batched(call)(x), call(x))


def test_softmax_is_left_alone_in_another_precision_or_without_entries():
    for call, x in (
        (lambda x: F.softmax(x, -1, dtype=torch.float64), torch.randn(3, 4)),
        (lambda x: torch.softmax(x, -1, torch.float64), torch.randn(3, 4)),
        (lambda x: torch.softmax(x, -1), torch.randn(3, 4, dtype=torch.bfloat16)),
        (lambda x: torch.softmax(x, -1), torch.randn(3, 0)),
        (lambda x: torch.softmax(x, -1), torch.tensor(2.0)),
    ):
        torch.compiler.reset()
        found = torch.compile(batched(call), fullgraph=True, backend="eager")(x)
        assert found.dtype == call(x).dtype
        assert torch.equal(found, call(x))


def test_a_function_is_batched_too():
    model, x = problem("pooling")
    loss = lambda p, x: functional_call(model, p, x).square().mean()
    over = lambda f: vmap(grad(f), in_dims=(0, None))(members(model), x)
    same(over(sliced(loss)), over(loss))


def called(fn: Any) -> set[str]:
    """The names of the operations a function calls."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fn()
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize(
    "name", [name for name in MODELS if "torch" not in name and name not in ("transposed", "two means")]
)
def test_it_is_not_torchs_own_that_runs(name):
    model, x = problem(name)
    slow = {"aten::convolution", "aten::max_pool2d", "aten::max_pool3d", "aten::adaptive_avg_pool2d"}
    assert called(lambda: model(x)) & slow
    assert not called(lambda: sliced(model)(x)) & slow


def test_the_first_of_equals_has_the_gradient_and_nan_wins():
    pool = nn.MaxPool2d(2, stride=1)
    x = torch.tensor([[[[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, torch.nan, 0.0]]]], dtype=torch.float64)
    same_with_nan = lambda got, want: torch.testing.assert_close(got, want, equal_nan=True, rtol=0, atol=0)
    same_with_nan(sliced(pool)(x), pool(x))
    x = x.nan_to_num(2.0)
    weights = torch.arange(1.0, 5.0, dtype=torch.float64).reshape(1, 1, 2, 2)
    gradient = lambda m: grad(lambda x: (m(x) * weights).sum())(x)
    same_with_nan(gradient(sliced(pool)), gradient(pool))


def test_columns_over_the_limit_are_left_to_torch():
    model, x = problem("plain")
    columns = 4 * 9 * (5 * 6 * 5) * 8  # channels, kernel, places of 5 images, bytes
    assert "aten::convolution" not in called(lambda: batched(model, limit=columns)(x))
    assert "aten::convolution" in called(lambda: batched(model, limit=columns - 1)(x))


def test_parameters_are_the_same_objects_and_the_model_is_not_changed():
    model, x = problem("nested")
    before, out = copy.deepcopy(model.state_dict()), model(x)
    twin = sliced(model)
    assert isinstance(twin, Nested)
    assert type(model) is Nested
    assert list(twin.state_dict()) == list(before)
    for (name, got), (wanted, parameter) in zip(twin.named_parameters(), model.named_parameters(), strict=True):
        assert name == wanted
        assert got is parameter
    twin(x).sum().backward()
    assert model.twice.weight.grad is not None
    assert torch.equal(model(x), out)
    assert "aten::convolution" in called(lambda: model(x))


def test_nothing_outside_the_call_is_changed():
    model, x = problem("plain")

    def fails(x):
        raise RuntimeError

    sliced(model)(x)
    with pytest.raises(RuntimeError):
        batched(fails)(x)
    assert "aten::convolution" in called(lambda: model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_dtype_is_kept(dtype):
    x, weight = torch.randn(2, 4, 5, 5).to(dtype), torch.randn(6, 4, 3, 3).to(dtype)
    got, want = batched(F.conv2d)(x, weight), F.conv2d(x, weight)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=0.05 if dtype == torch.bfloat16 else 1e-4, atol=0.05)


def test_an_empty_batch_and_a_small_image_are_torchs_affair():
    model = nn.Conv2d(4, 6, 3)
    assert sliced(model)(torch.zeros(0, 4, 5, 5)).shape == (0, 6, 3, 3)
    for x in (torch.zeros(2, 4, 2, 2), torch.zeros(2, 3, 5, 5), torch.zeros(4)):
        with pytest.raises(RuntimeError) as theirs:
            model(x)
        with pytest.raises(RuntimeError) as ours:
            sliced(model)(x)
        assert str(ours.value) == str(theirs.value)


def test_a_lazy_module_is_refused_by_name():
    with pytest.raises(ValueError, match="call the model on an input first") as error:
        batched(nn.Sequential(nn.ReLU(), nn.LazyConv2d(3, 3)))
    words(error, "'1'", "LazyConv2d")


@pytest.mark.parametrize("name", ["1d", "3d", "pooling", "mean"])
def test_it_is_not_torchs_own_that_is_compiled(name):
    model, x = problem(name)
    graphs: list[str] = []

    def record(graph: Any, _: Any) -> Any:
        graphs.append(graph.code)
        return graph.forward

    for fn in (model, sliced(model)):
        torch.compile(fn, fullgraph=True, backend=record)(x)
    slow = ("conv", "pool")
    assert any(word in graphs[0] for word in slow)
    assert not any(word in graphs[1].replace("modules", "") for word in slow), graphs[1]
