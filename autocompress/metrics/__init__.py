"""What a checkpoint is judged by, each measured on the artefact as loaded from its file."""

from autocompress.metrics.constraints import Constraint
from autocompress.metrics.evaluation import SplitScores, measure_split
from autocompress.metrics.objectives import Objective, parse_objectives
from autocompress.metrics.resampling import REPLICATES
from autocompress.metrics.subject import STATIC, Measured, Subject, known_metrics, measure
from autocompress.metrics.trying import check_metrics

__all__ = [
    "REPLICATES",
    "STATIC",
    "Constraint",
    "Measured",
    "Objective",
    "SplitScores",
    "Subject",
    "check_metrics",
    "known_metrics",
    "measure",
    "measure_split",
    "parse_objectives",
]
