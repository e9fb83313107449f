"""The only code that knows Ray: it executes the reference and trials and keeps no record of them."""

from autocompress.distribute.driver import Driver, Job
from autocompress.distribute.execute import Cluster, check_sendable, connection, execute, run_reference

__all__ = ["Cluster", "Driver", "Job", "check_sendable", "connection", "execute", "run_reference"]
