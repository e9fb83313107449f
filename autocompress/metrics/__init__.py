"""What a checkpoint is judged by, each measured on the artefact as loaded from its file."""

from autocompress.metrics.constraints import Constraint
from autocompress.metrics.objectives import Objective, parse_objectives
from autocompress.metrics.subject import STATIC, Subject, known_metrics, measure, measure_split

__all__ = [
    "STATIC",
    "Constraint",
    "Objective",
    "Subject",
    "known_metrics",
    "measure",
    "measure_split",
    "parse_objectives",
]
