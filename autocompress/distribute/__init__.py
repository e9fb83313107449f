"""The only code that knows Ray: it executes the reference and trials and keeps no record of them."""

from autocompress.distribute.driver import Driver, Failure, Job, ReferenceJob, WaitJob
from autocompress.distribute.execute import Cluster, check_sendable, connection, execute, start_here
from autocompress.distribute.folders import serving
from autocompress.distribute.surroundings import memory_share
from autocompress.distribute.title import hide_in_title

__all__ = [
    "Cluster",
    "Driver",
    "Failure",
    "Job",
    "ReferenceJob",
    "WaitJob",
    "check_sendable",
    "connection",
    "execute",
    "hide_in_title",
    "memory_share",
    "serving",
    "start_here",
]
