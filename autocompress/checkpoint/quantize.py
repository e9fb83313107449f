"""Post-training static quantisation of an ONNX file to int8, as far as that is faster and exact.

A node is stored and computed in one of three ways: in int8; in floats with its weights as int8, which the
runtime decodes once when it loads the file; or in floats. Where there is a `Control`, what is quantised is
what is fastest of a few sets of operators. Where its answers differ from the float ones by more than the
bound, biases are corrected if that brings them nearer; then nodes go back from the first way to the second,
and from there to the third, until the bound holds. Where weights are to have 4 bits, as many of those that
have 8 get them as the bound allows.

What computes in int8 has weights of −64 to 64. x86 CPUs without VNNI add two products of unsigned and signed
numbers in 16 bits, which 2 · 255 · 64 just fits: with weights of up to 127 a file would compute something
else there than where it was measured.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.checkpoint.bias_correction import with_corrected_biases
from autocompress.checkpoint.four_bits import FourBits
from autocompress.checkpoint.program import load_program
from autocompress.checkpoint.timing import seconds_of
from autocompress.errors import TrialError, one_line
from autocompress.task.inputs import Inputs, arguments, tensors

# Answers that a float file gives and those of another one → the share by which they differ, in [0, 1].
Difference = Callable[[Any, Any], float]

# How ranges of activations are read off, in the order in which they are tried; the first cuts nothing.
CALIBRATIONS = ("MinMax", "Percentile", "Entropy")
_PERCENTILE = 99.99
# Operators whose weights are constants, and which integers make faster.
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operators that take integers as they are, or nearly so, between two layers.
_PASSING = (
    *("Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Pad"),
    *("Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
)
# How much faster one form must be than another to be preferred: by more than short runs differ.
_FASTER = 0.9
# Weights of fewer numbers stay floats.
_LEAST_WEIGHTS = 1024
# Single nodes are probed up to so many; of more, the one order is that of the graph, from its ends.
_MOST_PROBED = 60


@dataclass(frozen=True)
class Control:
    """What int8 may cost.

    Args:
        rows: batches that the file's answers are compared on, none of which it was calibrated on.
        difference: how much two answers differ.
        bound: the most that they may.
        timed: whether what is fastest here is to be chosen; else all is quantised that can be.
    """

    rows: Sequence[Inputs]
    difference: Difference
    bound: float = 0.01
    timed: bool = True


@dataclass(frozen=True)
class Quantized:
    """How a file was quantised.

    Args:
        calibration: how ranges of activations were read off.
        int8: nodes that compute in int8.
        weights: nodes that have int8 weights alone.
        floats: nodes that were to be int8 and stay floats, as they would cost too much.
        four_bits: nodes, of `int8` or `weights`, whose weights are stored in 4 bits.
        corrected_biases: whether biases were corrected, see `bias_correction`.
        difference: of the answers; None where there was no control.
        speed: seconds of a call over those of the float file; None where that was not timed.
    """

    calibration: str
    int8: Sequence[str]
    weights: Sequence[str]
    floats: Sequence[str] = ()
    four_bits: Sequence[str] = ()
    corrected_biases: bool = False
    difference: float | None = None
    speed: float | None = None

    def to_json(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "calibration": self.calibration,
            "int8": list(self.int8),
            "weights": list(self.weights),
            "floats": list(self.floats),
            "four_bits": list(self.four_bits),
            "corrected_biases": self.corrected_biases,
            "difference": self.difference,
            "speed": self.speed,
        }


def quantize_onnx(
    path: Path,
    calibration: Sequence[Inputs],
    in_floats: Collection[str] = (),
    control: Control | None = None,
    four_bits: bool = False,
) -> Quantized:
    """Replace a float ONNX file by its int8 form: QDQ, unsigned activations, signed weights per channel.

    Args:
        path: the file, as `export_onnx` writes it.
        calibration: batches that the ranges of activations are read off, `(B, ...)` each.
        in_floats: names of nodes that stay as they are.
        control: what it may cost; None quantises all that ONNX Runtime can.
        four_bits: store weights that are int8 in 4 bits, as far as that is within what it may cost.

    Raises:
        TrialError: ONNX Runtime cannot quantise the model.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as scratch, quiet():
        try:
            prepared = Path(scratch) / "prepared.onnx"
            quant_pre_process(path, prepared, skip_symbolic_shape=True)
            floats = _Floats(prepared, path.read_bytes(), calibration, frozenset(in_floats))
            if control is None:
                chosen = floats.quantized(floats.candidates[0], CALIBRATIONS[0])
                if four_bits:
                    int8 = floats.in_four_bits(chosen)
                    chosen = chosen.with_four_bits(int8, int8.nodes)
            else:
                chosen = _Controlled(floats, control, four_bits).chosen()
        except TrialError:
            raise
        except Exception as error:
            raise TrialError(f"the model could not be quantised to int8: {one_line(error)}") from error
        path.write_bytes(chosen.content)
    return chosen.how


@dataclass(frozen=True)
class _File:
    content: bytes
    how: Quantized

    def with_four_bits(self, int8: FourBits, nodes: Sequence[str]) -> _File:
        """This file with the weights of some nodes in 4 bits."""
        return _File(int8.stored(nodes), replace(self.how, four_bits=tuple(nodes)))


@dataclass
class _Floats:
    """A float file, prepared to be quantised.

    Args:
        path: of the prepared file.
        original: the file as it was.
        calibration: batches.
        in_floats: nodes that stay floats.
    """

    path: Path
    original: bytes
    calibration: Sequence[Inputs]
    in_floats: frozenset[str]
    ranges: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def model(self) -> Any:
        """The prepared file."""
        import onnx

        return onnx.load(str(self.path), load_external_data=False)

    @cached_property
    def weighted(self) -> dict[str, tuple[str, int]]:
        """By node whose weights may be int8: their name, and the dimension of its outputs."""
        large = {t.name: tuple(t.dims) for t in self.model.graph.initializer if _is_weight(t)}
        weighted = {}
        for node in self.model.graph.node:
            place = 0 if node.op_type == "Gather" else 1
            if node.name in self.in_floats or node.op_type not in (*_LAYERS, "Gather"):
                continue
            if len(node.input) > place and node.input[place] in large:
                name = node.input[place]
                weighted[node.name] = name, _output_dimension(node, len(large[name]))
        return weighted

    @cached_property
    def candidates(self) -> list[tuple[str, ...]]:
        """Names of nodes that may compute in int8: all that ONNX Runtime can quantise; layers and what
        integers pass; layers alone; none."""
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

        every = {*QDQRegistry, *QLinearOpsRegistry}
        nodes = [
            node
            for node in self.model.graph.node
            if node.name not in self.in_floats and not _has_grouped_scales(node)
        ]
        sets = [
            tuple(node.name for node in nodes if node.op_type in every),
            tuple(node.name for node in nodes if self._gains(node)),
            tuple(node.name for node in nodes if node.name in self.weighted and node.op_type in _LAYERS),
            (),
        ]
        return list(dict.fromkeys(sets))

    def _gains(self, node: Any) -> bool:
        layer = node.op_type in _LAYERS and any(tensor in self._constants for tensor in node.input[1:2])
        return layer or node.op_type in _PASSING

    @cached_property
    def _constants(self) -> set[str]:
        return {tensor.name for tensor in self.model.graph.initializer}

    def quantized(self, nodes: Sequence[str], method: str, floats: Collection[str] = ()) -> _File:
        """The file with some nodes in int8, and other weights as int8.

        Args:
            nodes: that compute in int8.
            method: how ranges are read off.
            floats: nodes whose weights stay floats.
        """
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        model = load_model_with_shape_infer(self.path)
        if nodes:
            types = sorted({node.op_type for node in model.graph.node if node.name in {*nodes}})
            quantizer = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=True,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=self._ranges(method),
                nodes_to_quantize=list(nodes),
                nodes_to_exclude=[],
                op_types_to_quantize=types,
                extra_options={},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
            model = quantizer.model.model
        alone = {
            name: weight for name, weight in self.weighted.items() if name not in nodes and name not in floats
        }
        _store_weights(model, {*alone.values()}, {self.weighted[n][0] for n in floats if n in self.weighted})
        how = Quantized(method, tuple(n for n in nodes if n in self.weighted), (*alone,), tuple(floats))
        return _File(model.SerializeToString(), how)

    def corrected(self, file: _File) -> _File:
        """A quantised file with corrected biases."""
        import onnx

        model = with_corrected_biases(
            onnx.load_model_from_string(file.content),
            self.model,
            lambda: iter(_Reader(self.model, self.calibration)),
        )
        return _File(model.SerializeToString(), replace(file.how, corrected_biases=True))

    def in_four_bits(self, file: _File) -> FourBits:
        """The int8 weights of a quantised file, which may have 4 bits."""
        suffixes = dict.fromkeys(file.how.int8, "quantized") | dict.fromkeys(file.how.weights, "int8")
        weights = {
            node: (f"{self.weighted[node][0]}_{suffix}", self.weighted[node][1])
            for node, suffix in suffixes.items()
        }
        return FourBits(file.content, weights)

    def _ranges(self, method: str) -> Any:
        """The range of each activation over the calibration batches."""
        from onnxruntime.quantization import CalibrationMethod, create_calibrator

        if method not in self.ranges:
            options = {"percentile": _PERCENTILE, "symmetric": False} if method == "Percentile" else {}
            calibrator = create_calibrator(
                self.path,
                None,
                augmented_model_path=str(self.path.with_name(f"augmented-{method}.onnx")),
                calibrate_method=getattr(CalibrationMethod, method),
                extra_options=options,
            )
            calibrator.collect_data(_Reader(self.model, self.calibration))
            self.ranges[method] = calibrator.compute_data()
        return self.ranges[method]


def _has_grouped_scales(node: Any) -> bool:
    """Whether a node's weight has a scale for each output of a group, as ONNX Runtime quantises it, and its
    bias one number for each output of all groups, which that cannot round then."""
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return node.op_type == "ConvTranspose" and groups > 1 and len(node.input) > 2


def _is_weight(tensor: Any) -> bool:
    import onnx

    floats = tensor.data_type == onnx.TensorProto.FLOAT
    return floats and len(tensor.dims) > 1 and int(np.prod(tensor.dims)) >= _LEAST_WEIGHTS


def _output_dimension(node: Any, dimensions: int) -> int:
    """The dimension of a node's weights along which each has a scale of its own."""
    if node.op_type == "Gemm":
        transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
        return 0 if transposed else 1
    return {"MatMul": dimensions - 1, "ConvTranspose": 1}.get(node.op_type, 0)


def _store_weights(model: Any, weights: Collection[tuple[str, int]], floats: Collection[str]) -> None:
    """Store float weights as int8 and their scales, which are multiplied when the file is loaded; in place.

    A cast and a product, as ONNX Runtime computes constants before it runs, but not `DequantizeLinear`.

    Args:
        model: of a file.
        weights: names of tensors, and the dimension that has a scale for each entry.
        floats: names of those that stay as they are, though another node may have them as int8.
    """
    import onnx

    tensors_by_name = {tensor.name: tensor for tensor in model.graph.initializer}
    made = []
    for name, dimension in sorted(weights):
        if name not in tensors_by_name or name in floats:
            continue
        values = onnx.numpy_helper.to_array(tensors_by_name[name])
        others = tuple(place for place in range(values.ndim) if place != dimension)
        scale = (np.abs(values).max(axis=others, keepdims=True) / 127).astype(np.float32)
        scale[scale == 0] = 1.0
        codes = np.rint(values / scale).astype(np.int8)
        model.graph.initializer.remove(tensors_by_name[name])
        for suffix, array in (("int8", codes), ("scale", scale)):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}_{suffix}"))
        cast = onnx.helper.make_node("Cast", [f"{name}_int8"], [f"{name}_cast"], to=onnx.TensorProto.FLOAT)
        made += [cast, onnx.helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name])]
    nodes = [*made, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


class _Controlled:
    """The fastest file whose answers are near enough to those of the float file.

    Args:
        floats: the float file.
        control: what int8 may cost.
        four_bits: whether weights are to have 4 bits.
    """

    def __init__(self, floats: _Floats, control: Control, four_bits: bool = False) -> None:
        self.floats, self.control, self.four_bits = floats, control, four_bits
        self.folder = floats.path.parent
        self.corrects_biases = False
        self.expected = self._answers(floats.original)
        first = arguments(control.rows[0])
        self.feed = [tensor[:1].numpy() if tensor.dim() else tensor.numpy() for tensor in tensors(first)]

    def chosen(self) -> _File:
        """What is fastest, by the nearest calibration, with nodes taken back until the bound holds."""
        nodes = self._fastest() if self.control.timed else self.floats.candidates[0]
        tried = []
        for method in CALIBRATIONS if nodes else CALIBRATIONS[:1]:
            file = self.floats.quantized(nodes, method)
            tried.append((self._difference(file), file))
            if tried[-1][0] <= self.control.bound:
                break
        difference, file = min(tried, key=lambda entry: entry[0])
        if difference > self.control.bound and file.how.int8:
            corrected = self.floats.corrected(file)
            # Not by answers, of which few change.
            self.corrects_biases = self._distance(corrected) < self._distance(file)
            if self.corrects_biases:
                difference, file = self._difference(corrected), corrected
        if difference > self.control.bound:
            difference, file = self._taken_back(nodes, file.how.calibration, (difference, file))
        if self.four_bits:
            difference, file = self._with_four_bits((difference, file))
        speed = None
        if self.control.timed:
            base, own = self._seconds([self.floats.original, file.content])
            speed = own / base
        return _File(file.content, replace(file.how, difference=difference, speed=speed))

    def _fastest(self) -> tuple[str, ...]:
        """The nodes whose file is fastest."""
        files = [self.floats.quantized(nodes, CALIBRATIONS[0]) for nodes in self.floats.candidates]
        base, *seconds = self._seconds([self.floats.original, *(file.content for file in files)])
        best = 0
        for place in range(1, len(seconds)):
            if seconds[place] < _FASTER * seconds[best]:
                best = place
        if seconds[best] > _FASTER * base:
            best = len(seconds) - 1  # weights alone, which take the time of floats and cost least
        return self.floats.candidates[best]

    def _taken_back(
        self, nodes: Sequence[str], method: str, best: tuple[float, _File]
    ) -> tuple[float, _File]:
        """Fewer nodes in int8, those that cost most first, by halves; then fewer int8 weights."""
        layers = [name for name in nodes if name in self.floats.weighted]
        order = self._costliest_first(layers, lambda name: self.floats.quantized([name], method))

        def without(back: Sequence[str]) -> _File:
            left = {*layers} - {*back}
            file = self.floats.quantized([name for name in nodes if name in left], method)
            return self.floats.corrected(file) if self.corrects_biases and file.how.int8 else file

        best = self._within(order, without, best)
        if best[0] <= self.control.bound:
            return best
        floats: tuple[str, ...] = ()
        for name in order:
            floats = (*floats, name)
            file = self.floats.quantized((), method, floats)
            best = min(best, (self._difference(file), file), key=lambda entry: entry[0])
            if best[0] <= self.control.bound:
                break
        return best

    def _with_four_bits(self, best: tuple[float, _File]) -> tuple[float, _File]:
        """The weights in 4 bits but for those that cost most, by eighths, which stay at 8."""
        file = best[1]
        int8 = self.floats.in_four_bits(file)
        every = file.with_four_bits(int8, int8.nodes)
        difference = self._difference(every)
        if difference <= self.control.bound:
            return difference, every
        order = self._costliest_first(int8.nodes, lambda name: file.with_four_bits(int8, [name]))
        return self._within(order, lambda back: file.with_four_bits(int8, order[len(back) :]), best)

    def _within(
        self, order: Sequence[str], without: Callable[[Sequence[str]], _File], best: tuple[float, _File]
    ) -> tuple[float, _File]:
        """The first file within the bound, or that with the least difference, as more and more nodes go back.

        Args:
            order: of nodes, those that cost most first, which go back by eighths.
            without: the file without some of them.
            best: what there is already, and by how much its answers differ.
        """
        step = max(1, len(order) // 8)
        for count in range(step, len(order) + step, step):
            file = without(order[:count])
            difference = self._difference(file)
            if difference <= self.control.bound:
                return difference, file
            best = min(best, (difference, file), key=lambda entry: entry[0])
        return best

    def _costliest_first(self, layers: Sequence[str], alone: Callable[[str], _File]) -> list[str]:
        """Layers by how far outputs move by each alone, farthest first; of many, those at both ends of the
        network first, where quantisation is known to cost most.

        Args:
            layers: names of nodes.
            alone: the file in which one of them is quantised.
        """
        if len(layers) > _MOST_PROBED:
            place = {name: min(i, len(layers) - 1 - i) for i, name in enumerate(layers)}
            return sorted(layers, key=lambda name: place[name])
        distance = {name: self._distance(alone(name)) for name in layers}
        return sorted(layers, key=lambda name: -distance[name])

    def _difference(self, file: _File) -> float:
        """How much answers differ over all rows."""
        return self.control.difference(self.expected, self._answers(file.content))

    def _distance(self, file: _File) -> float:
        """How far outputs are from those of the float file, which tells nodes apart that change no answer."""
        answers = self._answers(file.content)
        return sum(
            float((a.double() - b.double()).square().mean())
            for a, b in zip(tensors(self.expected), tensors(answers), strict=True)
            if a.is_floating_point()
        )

    def _answers(self, content: bytes) -> Any:
        path = self.folder / "answers.onnx"
        path.write_bytes(content)
        program = load_program(path)
        return [program(rows) for rows in self.control.rows]

    def _seconds(self, contents: Sequence[bytes]) -> list[float]:
        return seconds_of(contents, self.feed)


class _Reader:
    """Hands ONNX Runtime one batch after the other."""

    def __init__(self, model: Any, batches: Sequence[Inputs]) -> None:
        self.names = [given.name for given in model.graph.input]
        self.left: Iterator[Inputs] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.left, None)
        if batch is None:
            return None
        arrays = [tensor.numpy() for tensor in tensors(arguments(batch))]
        return dict(zip(self.names, arrays, strict=True))

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> dict[str, Any]:
        feed = self.get_next()
        if feed is None:
            raise StopIteration
        return feed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide a quantiser's hints, which speak of steps that were just taken."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
