"""Data sets: built-in ones, arrays in memory, image folders, and the split that validation needs."""

from autocompress.data.arrays import TensorBatches
from autocompress.data.splits import with_validation
from autocompress.data.tasks import BUILT_IN, check_name, load_task

__all__ = ["BUILT_IN", "TensorBatches", "check_name", "load_task", "with_validation"]
