"""What a checkpoint is judged by, each measured on the artefact as loaded from its file."""

from autocompress.measure.constraints import Constraint
from autocompress.measure.evaluation import SplitScores, measure_split
from autocompress.measure.objectives import Objective, parse_objectives
from autocompress.measure.resampling import REPLICATES
from autocompress.measure.subject import OF_FILES, STATIC, Measured, Subject, known_metrics, measure
from autocompress.measure.trying import check_metrics

__all__ = [
    "OF_FILES",
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
