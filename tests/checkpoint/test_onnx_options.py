"""An ONNX file is made for the runtime at hand, and computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from autocompress.checkpoint import export_onnx, load_program
from autocompress.checkpoint.onnx_options import (
    OnnxOptions,
    adapt_onnx,
    describe_onnx,
    free_size,
    metadata_of,
)
from autocompress.checkpoint.quantize import quantize_onnx
from autocompress.errors import SettingsError
from autocompress.task.inputs import to_json

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
IMAGES: dict[str, Any] = {
    "shape": [None, 3, 8, 8],
    "dtype": "float32",
    "scale": 1 / 255,
    "mean": list(MEAN),
    "std": list(STD),
}


class Halves(nn.Module):
    """Returns two tensors, one with twice the rows."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x.reshape(-1, 2)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Hardswish(), *head).eval()


@pytest.fixture(scope="module")
def stored(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(network, torch.rand(2, 3, 8, 8), path)
    return path.read_bytes()


@pytest.fixture
def file(stored: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(stored)
    return path


def normalised(raw: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (raw / 255 - mean) / std


def test_outputs_and_the_batch_have_names_that_say_what_they_are(file: Path, tmp_path: Path) -> None:
    def named(path: Path) -> list[tuple[str, Any]]:
        graph = onnx.load(path).graph
        return [
            (value.name, value.type.tensor_type.shape.dim[0].dim_param)
            for value in (*graph.input, *graph.output)
        ]

    assert named(file) == [("input", "batch"), ("output", "batch")]
    export_onnx(Halves().eval(), torch.rand(2, 4), tmp_path / "halves.onnx")
    names = [("x", "batch"), ("output_0", "batch"), ("output_1", "2*batch")]
    assert named(tmp_path / "halves.onnx") == names


def test_an_older_opset_is_of_an_older_format_and_computes_the_same(network: nn.Module, file: Path) -> None:
    adapt_onnx(file, OnnxOptions(opset=17), IMAGES)
    made = onnx.load(file)
    assert [(entry.domain, entry.version) for entry in made.opset_import] == [("", 17)]
    assert made.ir_version == 8
    onnx.checker.check_model(made, full_check=True)
    x = torch.randn(3, 3, 8, 8)
    assert torch.allclose(load_program(file)(x), network(x), atol=1e-5)


@pytest.mark.parametrize("opset", [7, 99])
def test_an_opset_that_cannot_be_is_refused(opset: int, file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(SettingsError, match=f"^opset must be one .* to from 20 but got {opset}: "):
        adapt_onnx(file, OnnxOptions(opset=opset), IMAGES)
    assert file.read_bytes() == before


def test_inputs_and_outputs_go_by_the_names_that_are_given(network: nn.Module, file: Path) -> None:
    # "output" is what the output is called already, "conv2d" a tensor inside.
    adapt_onnx(file, OnnxOptions(input_names=("output",), output_names=("conv2d",)), IMAGES)
    made = onnx.load(file)
    onnx.checker.check_model(made, full_check=True)
    assert [given.name for given in made.graph.input] == ["output"]
    assert [returned.name for returned in made.graph.output] == ["conv2d"]
    x = torch.randn(3, 3, 8, 8)
    assert torch.allclose(load_program(file)(x), network(x), atol=1e-5)


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a")])
def test_names_that_do_not_suit_the_model_are_refused(names: tuple[str, ...], file: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"^input_names must be 1 different names \(now input\) but got a,"
    ):
        adapt_onnx(file, OnnxOptions(input_names=names), IMAGES)


def test_metadata_tell_classes_and_normalisation(file: Path) -> None:
    animals = ("cat", "dog", "cow", "owl", "ant")
    adapt_onnx(file, OnnxOptions(class_names=animals), IMAGES)
    told = {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}
    assert told["class_names"] == list(animals)
    assert told["normalization"] == {
        "scale": 1 / 255,
        "mean": list(MEAN),
        "std": list(STD),
        "embedded": False,
    }


def test_what_a_file_tells_already_is_told_once(file: Path) -> None:
    describe_onnx(file, metadata_of(IMAGES, ["1", "2", "3", "4", "5"]))
    adapt_onnx(file, OnnxOptions(embed_preprocessing=True), IMAGES, ["a", "b", "c", "d", "e"])
    told = [(entry.key, json.loads(entry.value)) for entry in onnx.load(file).metadata_props]
    assert sorted(key for key, _ in told) == ["class_names", "normalization"]
    assert dict(told)["class_names"] == ["a", "b", "c", "d", "e"]
    assert dict(told)["normalization"]["embedded"] is True


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c", "d", "e", "f")])
def test_class_names_are_as_many_as_classes(names: tuple[str, ...], file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(
        SettingsError, match=r"^class_names must be 5 names, one for each output, but got a, b"
    ):
        adapt_onnx(file, OnnxOptions(class_names=names), IMAGES)
    assert file.read_bytes() == before


def test_one_logit_is_of_two_classes(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(nn.Sequential(nn.Flatten(), nn.Linear(192, 1)).eval(), torch.rand(2, 3, 8, 8), path)
    adapt_onnx(path, OnnxOptions(class_names=("no", "yes")), IMAGES)
    with pytest.raises(SettingsError, match="class_names must be 1 names"):
        adapt_onnx(path, OnnxOptions(class_names=("no", "yes", "perhaps")), IMAGES)


@pytest.mark.parametrize("int8", [False, True])
def test_normalisation_in_the_file_takes_pixels_as_they_are(int8: bool, file: Path) -> None:
    if int8:
        quantize_onnx(file, [torch.randn(16, 3, 8, 8)])
    pixels = torch.randint(0, 256, (4, 3, 8, 8)).float()
    expected = load_program(file)(normalised(pixels))
    adapt_onnx(file, OnnxOptions(embed_preprocessing=True), IMAGES)
    assert torch.allclose(load_program(file)(pixels), expected, atol=1e-4)
    told = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(told["normalization"])["embedded"] is True


def test_normalisation_that_is_not_known_is_not_embedded(file: Path) -> None:
    unknown = {**IMAGES, "scale": 1.0, "mean": [0.0], "std": [1.0]}
    with pytest.raises(SettingsError, match=r"embed_preprocessing must be .* whose task says how"):
        adapt_onnx(file, OnnxOptions(embed_preprocessing=True), unknown)


def test_height_and_width_may_be_left_free(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    free_size(path, network, IMAGES)
    (given,) = onnx.load(path).graph.input
    assert [size.dim_param or size.dim_value for size in given.type.tensor_type.shape.dim] == [
        "batch",
        3,
        "height",
        "width",
    ]
    for shape in ((1, 3, 8, 8), (2, 3, 30, 17)):
        x = torch.randn(shape)
        assert torch.allclose(load_program(path)(x), network(x), atol=1e-5)


def test_a_model_that_fixes_its_size_says_so(tmp_path: Path) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    with pytest.raises(
        SettingsError, match=r"^dynamic_size must be of a model that takes images of any size, but"
    ):
        free_size(tmp_path / "model.onnx", flat, IMAGES)


def test_sizes_are_left_free_of_images_alone(network: nn.Module, tmp_path: Path) -> None:
    pair = to_json((torch.zeros(2, 3), torch.zeros(2, 3)))
    with pytest.raises(SettingsError, match=r"dynamic_size must be of a model that takes images, \(N, C"):
        free_size(tmp_path / "model.onnx", network, pair)


def test_options_of_onnx_are_refused_for_other_formats() -> None:
    assert OnnxOptions.of({"opset": None, "input_names": ()}, "pt2") == OnnxOptions()
    with pytest.raises(SettingsError, match=r"^opset must be given with the format onnx but that is pt2"):
        OnnxOptions.of({"opset": 17}, "pt2")
    for value in (0, -1, "17", True, 17.0):
        with pytest.raises(SettingsError, match=r"^opset must be a whole number of at least 1 but got"):
            OnnxOptions.of({"opset": value}, "onnx")
    with pytest.raises(SettingsError, match=r"^opset must be given with the format onnx"):
        OnnxOptions.of({"opset": 0}, "pt2")
    with pytest.raises(SettingsError, match=r"^class_names must be a list of names but got 'cat'"):
        OnnxOptions.of({"class_names": "cat"}, "onnx")
    with pytest.raises(SettingsError, match=r"^class_names must be different names but got a, a"):
        OnnxOptions.of({"class_names": ["a", "a"]}, "onnx")
    with pytest.raises(SettingsError, match="did you mean 'opset'"):
        OnnxOptions.of({"opsett": 17}, "onnx")
