"""The only code that knows Ray: it executes the reference and trials and keeps no record of them."""

from autocompress.distribute.driver import Driver, Job, ReferenceJob, WaitJob
from autocompress.distribute.execute import Cluster, check_sendable, connection, execute

__all__ = ["Cluster", "Driver", "Job", "ReferenceJob", "WaitJob", "check_sendable", "connection", "execute"]
