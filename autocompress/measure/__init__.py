"""What a checkpoint is judged by, each measured on the artefact as loaded from its file."""

from autocompress.measure.constraints import Constraint
from autocompress.measure.evaluation import SplitScores, measure_split
from autocompress.measure.objectives import Objective, parse_objectives
from autocompress.measure.resampling import REPLICATES
from autocompress.measure.subject import STATIC, Measured, Subject, known_metrics, measure
from autocompress.measure.trying import check_metrics

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
