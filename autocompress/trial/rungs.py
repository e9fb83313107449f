"""What a trial's model would be worth if the trial ended now, at the epochs at which trials are compared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from autocompress.graph.costs import layer_macs
from autocompress.methods.base import Session
from autocompress.surgery import absorb_biases
from autocompress.task import Task, on_device
from autocompress.task.inputs import moved
from autocompress.task.random_state import generators_of, random_state_kept
from autocompress.training.loop import BATCH_NORM_BATCHES, Clock, Plain, device_of, reestimate_batch_norm
from autocompress.trial.measuring import Measuring, Reference, measure_unexported, with_estimated_bytes

_PREFIX = "rung/"


def rung_metrics(entry: Mapping[str, float]) -> dict[str, float]:
    """The metrics of the rung that an epoch's entry tells of; empty where it is none."""
    return {name.removeprefix(_PREFIX): value for name, value in entry.items() if name.startswith(_PREFIX)}


def epoch_values(entry: Mapping[str, float]) -> dict[str, float]:
    """What an entry tells beside the epoch's number and time: loss, what methods logged, a rung's metrics."""
    told = {name: value for name, value in entry.items() if name not in ("epoch", "seconds")}
    return {name.removeprefix(_PREFIX): value for name, value in told.items()}


@dataclass(frozen=True)
class RungMeter:
    """Measures a copy of what trains, made small, and leaves no trace in the training.

    Metrics are those of the validation split and the static costs of the model, without those of a file.
    Bytes are estimated, as of every model that is not exported; of weights as they train, also where the
    artefact is int8.

    Args:
        task: with a validation split.
        reference: what costs are relative to.
        measuring: what is wanted, and at which epochs.
    """

    task: Task
    reference: Reference
    measuring: Measuring

    def __call__(self, epoch: int, session: Session) -> dict[str, float]:
        """What to report of an epoch beside the training's own: "rung/<metric>" at a rung, else nothing.

        Args:
            epoch: of the trial, from 1.
            session: whose model would be materialised; plain training's is as it is.
        """
        if epoch not in self.measuring.rungs:
            return {}
        # A pass over the training's own data may be under way.
        with self.task.opened() as task:
            generators = [*generators_of(task.train), *generators_of(task.val)]
            with random_state_kept(*generators, device=device_of(session.model)):
                metrics = self._measured(session, task)
        return {f"{_PREFIX}{name}": float(value) for name, value in metrics.items()}

    def _measured(self, session: Session, task: Task) -> Mapping[str, float]:
        twin = copy.deepcopy(session)
        # As a training leaves it, whose last epoch this is not.
        twin.model.to(memory_format=torch.contiguous_format)
        model = twin.finish().model
        device = device_of(model)
        if not isinstance(session, Plain):
            reestimate_batch_norm(model, task, BATCH_NORM_BATCHES)
        absorb_biases(model.eval(), moved(task.example(), device), task.limits)
        assert task.val is not None
        judged = replace(task, val=on_device(task.val, device))
        # The training's clock runs already.
        macs = layer_macs(model, task.example())
        measured = measure_unexported(
            model, judged, self.reference, self.measuring, Clock(), macs, resampled=False
        )
        return with_estimated_bytes(measured, self.reference).metrics
