"""The checkpoint format: `manifest.json`, `weights.safetensors` and an exported program."""

from autocompress.checkpoint.calling import Program
from autocompress.checkpoint.onnx_file import export_onnx
from autocompress.checkpoint.openvino_ir import export_openvino
from autocompress.checkpoint.program import export_program, load_program
from autocompress.checkpoint.rebuilding import rebuild
from autocompress.checkpoint.store import (
    ARTIFACTS,
    Checkpoint,
    open_checkpoint,
)
from autocompress.checkpoint.weights import load_weights_into, save_weights

__all__ = [
    "ARTIFACTS",
    "Checkpoint",
    "Program",
    "export_onnx",
    "export_openvino",
    "export_program",
    "load_program",
    "load_weights_into",
    "open_checkpoint",
    "rebuild",
    "save_weights",
]
