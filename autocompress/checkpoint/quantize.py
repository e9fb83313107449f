"""Post-training static quantisation of an ONNX file to int8, by ONNX Runtime."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from autocompress.errors import TrialError, one_line
from autocompress.task.inputs import Inputs, arguments, tensors


def quantize_onnx(path: Path, calibration: Sequence[Inputs], in_floats: Collection[str] = ()) -> None:
    """Replace a float ONNX file by its int8 form: QDQ, unsigned activations, signed weights per channel.

    Args:
        path: the file, as `export_onnx` writes it.
        calibration: batches that the ranges of activations are read off, `(B, ...)` each.
        in_floats: names of nodes that stay as they are.

    Raises:
        TrialError: ONNX Runtime cannot quantise the model.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as scratch, _quiet():
        prepared, quantised = Path(scratch) / "prepared.onnx", Path(scratch) / "int8.onnx"
        try:
            quant_pre_process(path, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                quantised,
                _Reader(prepared, calibration),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                nodes_to_exclude=list(in_floats),
            )
        except Exception as error:
            raise TrialError(f"the model could not be quantised to int8: {one_line(error)}") from error
        path.write_bytes(quantised.read_bytes())


class _Reader:
    """Hands ONNX Runtime one batch after the other."""

    def __init__(self, path: Path, batches: Sequence[Inputs]) -> None:
        import onnx

        self.names = [given.name for given in onnx.load(str(path), load_external_data=False).graph.input]
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
def _quiet() -> Iterator[None]:
    """Hide the quantiser's hints, which speak of steps that were just taken."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
