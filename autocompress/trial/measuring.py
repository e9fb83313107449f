"""What to measure in a trial, and how a model is measured that has no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.checkpoint import Checkpoint
from autocompress.checkpoint.archive import least_tensor_bytes
from autocompress.checkpoint.rebuilding import read_edits, rebuild_on
from autocompress.checkpoint.store import LOSS
from autocompress.checkpoint.weights import load_loss
from autocompress.graph.costs import count_params
from autocompress.measure import OF_FILES, Measured, Subject, measure
from autocompress.measure.latency import LatencySettings
from autocompress.score import TAU
from autocompress.surgery import Edit
from autocompress.task import Task
from autocompress.task.inputs import call, moved
from autocompress.training.loop import Clock, device_of


@dataclass(frozen=True)
class Reference:
    """The trained reference model.

    Args:
        state: its weights as arrays.
        program: its program file.
        metrics: of it.
        loss: what training changed of the loss beside it.
        edits: that lead to it from the user's model, where it was prepared.
    """

    state: Mapping[str, NDArray[Any]]
    program: Path
    metrics: Mapping[str, float]
    loss: Mapping[str, Tensor] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()

    @classmethod
    def of(cls, checkpoint: Checkpoint, model: nn.Module, artifact: str = "pt2") -> Reference:
        """The reference as it is stored.

        Args:
            checkpoint: of the reference.
            model: a new one of the task, prepared by the user's own function.
            artifact: the file that counts.
        """
        rebuilt = rebuild_on(model, checkpoint)
        state = {name: tensor.detach().numpy() for name, tensor in rebuilt.state_dict().items()}
        return cls(
            state,
            checkpoint.artifact_file(artifact).resolve(),
            checkpoint.manifest["metrics"],
            load_loss(checkpoint.path / LOSS),
            tuple(read_edits(checkpoint.path)),
        )


@dataclass(frozen=True)
class Measuring:
    """What to measure: the wanted metrics, the artefact that counts, latency's settings, `acc_comp`'s τ, and
    the epochs after which a trial reports what its model would be worth if it ended there."""

    metrics: tuple[str, ...] = ("accuracy", "bytes")
    artifact: str = "pt2"
    latency: LatencySettings = field(default_factory=LatencySettings)
    tau: float = TAU
    rungs: tuple[int, ...] = ()

    @property
    def without_file(self) -> bool:
        """Whether all that is wanted can be measured, or told within bounds, of a model without a file."""
        return self.artifact == "pt2" and not {*OF_FILES} & {*self.metrics}


def measure_unexported(
    model: nn.Module,
    task: Task,
    reference: Reference,
    measuring: Measuring,
    clock: Clock,
    macs: Mapping[str, int],
    resampled: bool = True,
) -> Measured:
    """Measure a model that is not exported; its bytes are its tensors', the least that they can be.

    Args:
        model: in evaluation mode, on any device.
        task: whose validation split and metrics count.
        reference: what costs are relative to.
        measuring: what is wanted; what is measured by running a file cannot be.
        clock: counts the seconds.
        macs: of its layers.
        resampled: whether standard errors and replicates are wanted too.
    """
    tensors, device = least_tensor_bytes(model), device_of(model)
    subject = Subject(
        program=lambda inputs: call(model, moved(inputs, device)),
        program_file=None,
        params=count_params(model),
        macs=macs.get("", 0),
        bytes=tensors,
        weight_bytes=tensors,
        example=task.example(),
        reference=reference.program,
        reference_metrics=reference.metrics,
        tau=measuring.tau,
    )
    wanted = [name for name in measuring.metrics if name not in OF_FILES]
    return measure(subject, task, wanted, measuring.latency, clock, resampled)


def with_estimated_bytes(measured: Measured, reference: Reference) -> Measured:
    """With bytes as if the graph took as many in the file as the reference's does."""
    graph = reference.metrics["bytes"] - reference.metrics["weight_bytes"]
    return replace(measured, metrics={**measured.metrics, "bytes": measured.metrics["bytes"] + graph})
