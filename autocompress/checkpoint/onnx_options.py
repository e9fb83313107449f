"""An ONNX file made for the runtime at hand: its opset, names, metadata, and normalisation inside of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.checkpoint.four_bits import OPSET as FOUR_BITS_OPSET
from autocompress.checkpoint.onnx_file import export_onnx
from autocompress.checkpoint.program import load_program
from autocompress.errors import SettingsError, TrialError, one_line, refuse_unknown
from autocompress.graph.proof import relative_difference
from autocompress.task import InputSpec
from autocompress.task.inputs import Varying, call, from_json, tensors

# Keys of the file's metadata, whose values are JSON.
CLASS_NAMES, NORMALIZATION = "class_names", "normalization"
_SIZES = {2: "height", 3: "width"}
# Operators of another opset may compute in another order, and a product of two factors rounds as one.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class OnnxOptions:
    """What an ONNX file is made with.

    Args:
        opset: version of ONNX's operators; None is that of the exporter.
        input_names: of all inputs in order, or none to leave them.
        output_names: of all outputs in order, or none to leave them.
        class_names: what outputs stand for, which the file's metadata tell.
        embed_preprocessing: take inputs as the data have them, and normalise them in the file.
        dynamic_size: leave height and width of images free.
    """

    opset: int | None = None
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    embed_preprocessing: bool = False
    dynamic_size: bool = False

    def __post_init__(self) -> None:
        is_number = isinstance(self.opset, int) and not isinstance(self.opset, bool)
        if self.opset is not None and (not is_number or self.opset < 1):
            raise SettingsError(f"opset must be a whole number of at least 1 but got {self.opset!r}.")
        if len({*self.class_names}) != len(self.class_names):
            raise SettingsError(
                f"class_names must be different names but got {', '.join(map(str, self.class_names))}."
            )

    @classmethod
    def of(cls, options: Mapping[str, Any], format: str) -> OnnxOptions:
        """Options as they were given by name, lists for tuples; None is the default.

        Args:
            options: by name.
            format: of the file that is to be written.

        Raises:
            SettingsError: one is unknown or of another kind, or the file is not ONNX.
        """
        refuse_unknown("export", options, cls.__dataclass_fields__)
        given = {name: options[name] for name in given_options(options)}
        if given and format != "onnx":
            raise SettingsError(
                f"{next(iter(given))} must be given with the format onnx but that is {format}."
            )
        lists = ("input_names", "output_names", "class_names")
        for name in lists:
            if isinstance(given.get(name), str):
                raise SettingsError(f"{name} must be a list of names but got {given[name]!r}.")
        values: dict[str, Any] = {
            name: tuple(value) if name in lists else value for name, value in given.items()
        }
        return cls(**values)


def given_options(options: Mapping[str, Any]) -> list[str]:
    """Names of the options that differ from their defaults; an opset of 0 does, though Python equals it with
    False."""
    return [
        name
        for name, value in options.items()
        if value is not None and value is not False and not (isinstance(value, (tuple, list)) and not value)
    ]


def adapt_onnx(
    path: Path, options: OnnxOptions, described: Mapping[str, Any], class_names: Sequence[str] = ()
) -> None:
    """Change a file as options say, in place, and check that it still computes the same.

    Args:
        path: of the file.
        options: opset, names, class names, normalisation.
        described: what the model takes, as in a manifest.
        class_names: the task's, which the metadata tell where options have none.

    Raises:
        SettingsError: an option does not suit the model.
        TrialError: the file computes something else then.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    spec = _normalising(described)
    example = from_json(described)
    if spec is not None:
        example = torch.rand(example.shape, generator=torch.Generator().manual_seed(0))
    before = tensors(load_program(path)(example))
    if options.opset is not None:
        model = _converted(model, options.opset)
    if options.embed_preprocessing:
        if spec is None:
            raise SettingsError(
                "embed_preprocessing must be of a model whose only input are floats and whose task says how "
                "they are normalised, but this does not: give "
                "Task(input=ac.InputSpec(shape, scale=, mean=, std=))."
            )
        _embed(model.graph, spec)
        example = _raw(example, spec)
    _rename(model.graph, options)
    _check_class_names(model.graph, options.class_names)
    embedded = options.embed_preprocessing
    _tell(model, metadata_of(described, options.class_names or class_names, embedded))
    path.write_bytes(model.SerializeToString())
    try:
        after = tensors(load_program(path)(example))
    except Exception as error:  # of the runtime, whatever it is
        raise TrialError(f"the ONNX file does not run as these options make it: {one_line(error)}") from error
    difference = relative_difference(before, after)
    if difference > _TOLERANCE:
        raise TrialError(f"the ONNX file's outputs differ by {difference:.1e} as these options make it.")


def _normalising(described: Mapping[str, Any]) -> InputSpec | None:
    """How a model's only input is normalised; None where that is not known, or does nothing."""
    if "shape" not in described or described["dtype"] != "float32":
        return None
    mean, std = tuple(described["mean"]), tuple(described["std"])
    spec = InputSpec(tuple(described["shape"][1:]), "float32", described["scale"], mean, std)
    plain = spec.scale == 1 and {*spec.mean} == {0.0} and {*spec.std} == {1.0}
    return None if plain else spec


def _converted(model: Any, opset: int) -> Any:
    """The model in another opset, marked as of the earliest format that has it."""
    import onnx

    four_bits = any(tensor.data_type == onnx.TensorProto.INT4 for tensor in model.graph.initializer)
    if four_bits and opset < FOUR_BITS_OPSET:
        raise SettingsError(
            f"opset must be at least {FOUR_BITS_OPSET} for weights of 4 bits but got {opset}."
        )
    try:
        converted = onnx.version_converter.convert_version(model, opset)
        _drop_unknown_attributes(converted.graph, opset)
        converted.ir_version = onnx.helper.find_min_ir_version_for(
            converted.opset_import, ignore_unknown=True
        )
    except Exception as error:  # RuntimeError of the converter, ConvertError, ValueError
        now = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        raise SettingsError(
            f"opset must be one that the model can be converted to from {now} but got {opset}: "
            f"{one_line(error)}"
        ) from error
    return converted


def _drop_unknown_attributes(graph: Any, opset: int) -> None:
    """Take away what the converter leaves of attributes that operators did not have yet, such as
    `noop_with_empty_axes` of ReduceMean; that outputs are the same is checked."""
    import onnx

    for node in _nodes(graph):
        if node.domain in ("", "ai.onnx"):
            known = onnx.defs.get_schema(node.op_type, opset, "").attributes
            for attribute in [own for own in node.attribute if own.name not in known]:
                node.attribute.remove(attribute)


def _embed(graph: Any, spec: InputSpec) -> None:
    """Put normalisation before the only input: `(raw · scale − mean) / std`."""
    import onnx

    (given,) = graph.input
    factor, shift = _affine(spec)
    normalised = f"{given.name}_normalised"
    for node in _nodes(graph):
        node.input[:] = [normalised if name == given.name else name for name in node.input]
    scaled = f"{given.name}_scaled"
    made = [
        onnx.helper.make_node("Mul", [given.name, f"{scaled}.factor"], [scaled], name=scaled),
        onnx.helper.make_node("Sub", [scaled, f"{scaled}.shift"], [normalised], name=normalised),
    ]
    graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(factor, f"{scaled}.factor"),
            onnx.numpy_helper.from_array(shift, f"{scaled}.shift"),
        ]
    )
    nodes = [*made, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _affine(spec: InputSpec) -> tuple[np.ndarray, np.ndarray]:
    """Factor and shift of the normalisation, for each channel or feature."""
    channels = spec.shape[0] if spec.shape else 1
    mean, std = (np.resize(np.asarray(values, np.float64), channels) for values in (spec.mean, spec.std))
    shape = (1, channels, *[1] * (len(spec.shape) - 1))
    factor, shift = spec.scale / std, mean / std
    return factor.reshape(shape).astype(np.float32), shift.reshape(shape).astype(np.float32)


def _raw(example: Tensor, spec: InputSpec) -> Tensor:
    """What an input was before it was normalised."""
    factor, shift = (torch.from_numpy(part) for part in _affine(spec))
    return (example + shift) / factor


def _new_names(option: str, values: Sequence[Any], names: Sequence[str]) -> dict[str, str]:
    """New names by old ones; none where none are given."""
    if names and (len(names) != len(values) or len({*names}) != len(names)):
        raise SettingsError(
            f"{option} must be {len(values)} different names (now {', '.join(v.name for v in values)}) "
            f"but got {', '.join(names)}."
        )
    return {value.name: name for value, name in zip(values, names, strict=bool(names))}


def _rename(graph: Any, options: OnnxOptions) -> None:
    """Call inputs and outputs as options say; what else goes by such a name steps aside."""
    inputs = _new_names("input_names", graph.input, options.input_names)
    outputs = _new_names("output_names", graph.output, options.output_names)
    if both := {*inputs.values()} & {*outputs.values()}:
        raise SettingsError(f"output_names must not be those of inputs but got {', '.join(sorted(both))}.")
    new = {**inputs, **outputs}
    entries = [*graph.input, *graph.output, *graph.initializer]
    every = {entry.name for entry in entries}.union(*((*n.input, *n.output) for n in _nodes(graph)))
    new |= {name: f"{name}_" for name in {*new.values()} & every - {*new}}
    for entry in entries:
        entry.name = new.get(entry.name, entry.name)
    for node in _nodes(graph):
        for part in (node.input, node.output):
            part[:] = [new.get(name, name) for name in part]


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes of a graph and of those within its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _check_class_names(graph: Any, names: Sequence[str]) -> None:
    """Refuse names that are not as many as the only output has classes; one logit may be of two."""
    shapes = [value.type.tensor_type.shape.dim for value in graph.output]
    if not names or len(shapes) != 1 or len(shapes[0]) < 2:
        return
    classes = shapes[0][1].dim_value  # 0 where that is not fixed
    if classes and len(names) != classes and (classes, len(names)) != (1, 2):
        raise SettingsError(
            f"class_names must be {classes} names, one for each output, but got {', '.join(names)}."
        )


def metadata_of(
    described: Mapping[str, Any], class_names: Sequence[str] | None, embedded: bool = False
) -> dict[str, Any]:
    """What an ONNX file's metadata tell of a task, JSON-able: class names, and how inputs are normalised.

    Args:
        described: what the model takes, as in a manifest.
        class_names: of its outputs, if they have any.
        embedded: whether the file itself normalises.
    """
    told: dict[str, Any] = {}
    if class_names:
        told[CLASS_NAMES] = list(class_names)
    spec = _normalising(described)
    if spec is not None:
        normalization = {"scale": spec.scale, "mean": list(spec.mean), "std": list(spec.std)}
        told[NORMALIZATION] = {**normalization, "embedded": embedded}
    return told


def describe_onnx(path: Path, metadata: Mapping[str, Any]) -> None:
    """Add metadata to a file, in place, values as JSON."""
    import onnx

    if metadata:
        model = onnx.load(str(path), load_external_data=False)
        _tell(model, metadata)
        path.write_bytes(model.SerializeToString())


def _tell(model: Any, metadata: Mapping[str, Any]) -> None:
    """Metadata of a file; they take the place of those of the same keys."""
    others = [(entry.key, entry.value) for entry in model.metadata_props if entry.key not in metadata]
    del model.metadata_props[:]
    for key, value in [*others, *((key, json.dumps(value)) for key, value in metadata.items())]:
        model.metadata_props.add(key=key, value=value)


def free_size(path: Path, model: nn.Module, described: Mapping[str, Any]) -> None:
    """Write an ONNX file that takes images of any height and width, as far as its model does.

    Args:
        path: of the file.
        model: in evaluation mode.
        described: what it takes, as in a manifest.

    Raises:
        SettingsError: it does not take images, or none of another size.
        TrialError: it cannot be exported.
    """
    import onnx

    example = from_json(described)
    if not isinstance(example, Tensor) or example.dim() != 4:
        raise SettingsError(
            "dynamic_size must be of a model that takes images, (N, C, H, W), but this does not, or has "
            "sizes that are free already."
        )
    try:
        export_onnx(model, Varying(example, _SIZES), path)
        _check_another_size(path, model, example)
    except Exception as error:  # of the exporter, the runtime or the user's forward
        raise SettingsError(
            f"dynamic_size must be of a model that takes images of any size, but: {one_line(error)}"
        ) from error
    proto = onnx.load(str(path), load_external_data=False)
    (given,) = proto.graph.input
    names = {0: "batch", **_SIZES}
    dimensions = given.type.tensor_type.shape.dim
    new = {dimensions[place].dim_param: name for place, name in names.items()}
    for value in (*proto.graph.input, *proto.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in new:
                dimension.dim_param = new[dimension.dim_param]
    path.write_bytes(proto.SerializeToString())


def _check_another_size(path: Path, model: nn.Module, example: Tensor) -> None:
    """Compare the file with the model on images that are larger by half, and not square."""
    height, width = example.shape[2:]
    shape = (1, example.shape[1], height + height // 2, 2 * width)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tensors(call(model, images))
    difference = relative_difference(expected, tensors(load_program(path)(images)))
    if difference > _TOLERANCE:
        raise TrialError(f"outputs differ by {difference:.1e} on images of {shape[2]} × {shape[3]}.")
