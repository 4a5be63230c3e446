"""The perturbed view against the obvious way: copy the model, perturb every weight, run it."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from node.errors import ConfigError
from node.kernels import kernels_for
from node.methods.parts import perturbed
from node.methods.parts.perturbed import Perturbed

KERNELS = kernels_for(torch.device("cpu"))
IDS = torch.arange(12).reshape(2, 6) * 5 % 13


@pytest.fixture(params=["whole", "piece by piece"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "piece by piece":
        monkeypatch.setattr(perturbed, "FLAT_BYTES", 0)
        monkeypatch.setattr(perturbed, "CPU_BLOCK_BYTES", 256)
    return str(request.param)


class Tied(nn.Module):
    """An embedding that is the output layer, too; a bias; a norm; a bare parameter of the root."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(16))
        self.embedding = nn.Embedding(13, 16)
        self.inner = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 13, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.inner(self.embedding(ids) + self.shift)))
        return out


class Attends(nn.Module):
    """`out_proj` is read by the attention's forward, and never called itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


class Encoder(nn.Module):
    """A fused path reads all of the layer's weights at once."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.layer(self.embedding(ids))
        return out


class Shelf(nn.Module):
    """Modules that only hold a parameter, or hand it out, for their parent to use."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 16)
        self.holder = nn.Linear(16, 16)
        self.giver = Giver()
        self.recurrent = nn.GRU(16, 16, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) @ self.holder.weight.t() + self.giver()
        out: Tensor = self.recurrent(x)[0] + self.holder.bias * self.giver.value[0]
        return out


class Giver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(8, 16))

    def forward(self) -> Tensor:
        return self.value[:6]


def weight_normed() -> nn.Module:
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
    return nn.Sequential(nn.Embedding(13, 16), linear, nn.Conv1d(6, 6, 3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tied": Tied,
    "attention": Attends,
    "fused encoder": Encoder,
    "shelf": Shelf,
    "weight norm": weight_normed,
}


def perturbed_by_hand(model: nn.Module, view: Perturbed, key: int, scale: float) -> nn.Module:
    copy = deepcopy(model)
    parameters = dict(copy.named_parameters())
    for weight in view.weights:
        KERNELS.perturb(weight.tensor, weight.offset, key, scale, parameters[weight.name].data)
    return copy


@pytest.mark.parametrize("name", MODELS)
def test_the_view_equals_a_perturbed_copy(name: str, way: str) -> None:
    torch.manual_seed(1)
    model = MODELS[name]().eval()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        plain = model(IDS)
        view = Perturbed(model, KERNELS, lambda: model(IDS))
        expected = perturbed_by_hand(model, view, 77, 0.3)(IDS)
        with view.at(77, 0.3):
            seen = model(IDS)
        torch.testing.assert_close(seen, expected)
        assert not torch.allclose(seen, plain)
        assert torch.equal(model(IDS), plain)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", MODELS)
def test_each_weight_alone_is_perturbed(name: str, way: str) -> None:
    """A weight that stays as it was would hide among the others: so train one at a time."""
    torch.manual_seed(1)
    for wanted, _ in MODELS[name]().named_parameters():
        torch.manual_seed(1)
        model = MODELS[name]().eval()
        for other, parameter in model.named_parameters():
            parameter.requires_grad_(other == wanted)
        view = Perturbed(model, KERNELS, partial(model, IDS))
        with torch.no_grad(), view.at(78, 0.3):
            seen = model(IDS)
        with torch.no_grad():
            expected = perturbed_by_hand(model, view, 78, 0.3)(IDS)
        torch.testing.assert_close(seen, expected)


def test_weights_are_restored_when_the_forward_raises(way: str) -> None:
    class Fails(Tied):
        def forward(self, ids: Tensor) -> Tensor:
            out = super().forward(ids)
            if fail:
                raise RuntimeError("out of memory, say")
            return out

    fail = False
    torch.manual_seed(1)
    model = Fails().eval()
    view = Perturbed(model, KERNELS, lambda: model(IDS))
    with torch.no_grad():
        plain = model(IDS)
        fail = True
        with pytest.raises(RuntimeError, match="out of memory"), view.at(5, 0.5):
            model(IDS)
        fail = False
        assert torch.equal(model(IDS), plain)
        with view.at(5, 0.5):
            again = model(IDS)
        torch.testing.assert_close(again, perturbed_by_hand(model, view, 5, 0.5)(IDS))


def test_the_second_dry_run_finds_what_the_first_could_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that reads a weight elsewhere the second time is refused, not perturbed in part."""
    monkeypatch.setattr(perturbed, "FLAT_BYTES", 0)

    class Moody(Tied):
        calls = 0

        def forward(self, ids: Tensor) -> Tensor:
            self.calls += 1
            out = super().forward(ids)
            return out + self.inner.weight.sum() if self.calls > 1 else out

    model = Moody().eval()
    with pytest.raises(ConfigError, match=r"inner\.weight"):
        Perturbed(model, KERNELS, lambda: model(IDS))


def test_scratch_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturbed, "FLAT_BYTES", 0)
    monkeypatch.setattr(perturbed, "CPU_BLOCK_BYTES", 64 << 10)
    model = nn.Sequential(nn.Embedding(13, 256), *(nn.Linear(256, 256) for _ in range(8))).eval()
    view = Perturbed(model, KERNELS, lambda: model(IDS))
    assert view.scratch_bytes <= (64 << 10) + 1024


def test_sweeping_an_embedding_equals_gathering_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an accelerator does instead; four rows a block."""
    monkeypatch.setattr(perturbed, "FLAT_BYTES", 0)
    model = nn.Embedding(13, 16).eval()
    view = Perturbed(model, KERNELS, lambda: model(IDS))
    monkeypatch.setattr(perturbed, "CPU_BLOCK_BYTES", 256)
    view._key, view._scale = 80, 0.5
    weight = view.weights[0]
    with torch.no_grad():
        assert torch.equal(view._sweep(weight, IDS), view._gather(weight, IDS))
        assert torch.equal(view._gather(weight, IDS), perturbed_by_hand(model, view, 80, 0.5)(IDS))


def test_nothing_trainable_is_an_error_with_a_hint() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError) as error:
        Perturbed(model, KERNELS, lambda: None)
    assert error.value.hint


def test_a_lora_model_is_seen_through_its_adapters(way: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")
    from node.training.model_config import GptConfig, LoraConfig
    from node.training.models import build_model

    assert peft
    model = build_model(
        GptConfig(kind="gpt", layers=1, width=8, heads=1, context=8, lora=LoraConfig(rank=2))
    ).module
    ids = IDS[:, :6]
    view = Perturbed(model, KERNELS, lambda: model(ids))
    assert all("lora_" in w.name for w in view.weights)
    with torch.no_grad():
        expected = perturbed_by_hand(model, view, 79, 0.3)(ids)
        with view.at(79, 0.3):
            torch.testing.assert_close(model(ids), expected)
