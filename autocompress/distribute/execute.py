"""Runs the driver's jobs in worker processes, on one Ray from the first to the last."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from autocompress.distribute.surroundings import give_token, has_token, ray_folder

# Read by Ray when it is imported or started.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_niceness": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
# Joining a cluster by its address authenticates only where this mode is named; starting Ray with the
# mode named fails where there is no token yet, which Ray otherwise makes.
if has_token():
    _ENVIRONMENT["RAY_AUTH_MODE"] = "token"
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# It advises notebooks, when it is imported, to install widgets that nothing here shows.
logging.getLogger("ray.widgets").setLevel(logging.ERROR)

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray._private import services  # noqa: E402
from ray.exceptions import RayError  # noqa: E402
from ray.tune.error import TuneError  # noqa: E402

from autocompress.distribute.driver import Driver  # noqa: E402
from autocompress.distribute.searcher import DriverScheduler, DriverSearcher, Left, Silence, Watch  # noqa: E402
from autocompress.distribute.worker import Shared, train  # noqa: E402
from autocompress.errors import ClusterError, SettingsError, TaskError, one_line  # noqa: E402
from autocompress.sharing import COMPUTED  # noqa: E402
from autocompress.task import Task  # noqa: E402


@dataclass(frozen=True)
class Cluster:
    """Where trials run.

    Args:
        workers: trials at a time.
        cpus: of one trial.
        gpus: of one trial.
    """

    workers: int
    cpus: float = 1.0
    gpus: float = 0.0


def execute(driver: Driver, shared: Shared, cluster: Cluster) -> bool:
    """Run the driver's jobs until it has no more, after `start_here`; whether it came so far.

    Args:
        driver: gives jobs and hears of their ends.
        shared: sent to the workers once.
        cluster: where to run.

    Raises:
        ClusterError: Ray failed as a whole, not one trial.
        SettingsError: no machine of the cluster carries a trial.
    """
    _check_machines(cluster)
    with tempfile.TemporaryDirectory(prefix="autocompress-", ignore_cleanup_errors=True) as scratch:
        searcher = DriverSearcher(driver, shared.root / COMPUTED)
        trainable = tune.with_resources(
            tune.with_parameters(train, handle=[ray.put(shared)], paths=list(sys.path)),
            {"cpu": cluster.cpus, "gpu": cluster.gpus},
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=DriverScheduler(searcher),
                num_samples=-1,
                max_concurrent_trials=cluster.workers,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                verbose=0,
                log_to_file=False,
                callbacks=[Watch(searcher)],
                progress_reporter=Silence(),
            ),
        )
        try:
            tuner.fit()
        except Left as left:
            if left.reason:
                raise ClusterError(
                    f"Ray failed: {left.reason} (the same command continues the run)"
                ) from left
            return False
        except (RayError, TuneError, ConnectionError) as error:
            if searcher.error is not None:
                raise searcher.error from None
            raise ClusterError(
                f"Ray failed: {one_line(error)} (the same command continues the run)"
            ) from error
        return searcher.exhausted and not searcher.numbers


# Splits, and metrics, each of which is sent by itself.
_SENT_OTHERWISE = ("train", "val", "test", "_splits", "metrics")


def check_sendable(task: Task, latency_by: Callable[..., float] | None = None) -> None:
    """Refuse what cannot be sent to worker processes, before anything is trained.

    Args:
        task: of the search.
        latency_by: the user's own function that measures latency.

    Raises:
        TaskError: the task cannot be pickled.
        SettingsError: the function cannot be pickled.
    """
    of_function = _not_picklable(latency_by)
    if of_function is not None:
        raise SettingsError(
            f"latency_by must be picklable, to be sent to worker processes, but: {of_function}."
        )
    reason = _not_picklable(task)
    if reason is None:
        return
    for name, split in task.splits.given.items():
        of_split = _not_picklable(split)
        if of_split is not None:
            raise TaskError(
                f"{name} must be picklable, to be sent to worker processes, but: {of_split} (open files and "
                f"the like when the first row is drawn, or give a function that makes {name})."
            )
    names = [option.name for option in fields(task) if option.init and option.name not in _SENT_OTHERWISE]
    parts = {name: getattr(task, name) for name in names}
    parts |= {f"metrics[{name!r}]": metric for name, metric in (task.metrics or {}).items()}
    for name, part in parts.items():
        of_part = _not_picklable(part)
        if of_part is not None:
            raise TaskError(
                f"{name} must be picklable, to be sent to worker processes, but: {of_part} (make locks, "
                "files, connections and the like where they are used, inside of the function)."
            )
    raise TaskError(f"task must be picklable, to be sent to worker processes, but: {reason}.")


def _not_picklable(value: object) -> str | None:
    """Why something cannot be sent to a worker process, in one line; None where it can."""
    try:
        with open(os.devnull, "wb") as nowhere:
            ray.cloudpickle.dump(value, nowhere)
    except Exception as error:  # code of the user's own may raise anything
        return one_line(error)
    return None


@contextlib.contextmanager
def connection(address: str | None) -> Iterator[None]:
    """Have one Ray for all that is run inside; one that was there before is used and stays.

    Args:
        address: of a running cluster, which is joined at once, so that a wrong one is found before anything
            is done; None starts Ray on this machine when the first thing is run.

    Raises:
        SettingsError: there is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    try:
        if address is not None:
            _join(address)
        yield
    finally:
        with _own_handler():
            ray.shutdown()


# That a machine of a cluster takes to answer.
_ANSWER_SECONDS = 5.0


def _join(address: str) -> None:
    host, colon, port = address.rpartition(":")
    try:
        if colon and port.isdigit() and "/" not in host:
            # Ray itself would try for two minutes, without a word.
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
        _init(address=address)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise SettingsError(
            f"ray_address must be that of a running Ray cluster but got {address!r}: {one_line(error)}"
        ) from error


def start_here(cluster: Cluster) -> None:
    """Start Ray on this machine, unless there is one already."""
    if ray.is_initialized():
        return
    cpus = max(1, math.ceil(cluster.workers * cluster.cpus))
    try:
        # For a minute Ray would wait for a part of itself that died on this machine, and does not come again.
        wait = {"gcs_rpc_server_reconnect_timeout_s": 10}
        give_token()
        _init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            _temp_dir=ray_folder(),
            _system_config=wait,
        )
    except SettingsError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(f"Ray could not be started: {one_line(error)}") from error


def _check_machines(cluster: Cluster) -> None:
    """Refuse trials that no machine of a cluster could ever carry: Tune would wait for one forever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for kind, wanted in (("CPU", cluster.cpus), ("GPU", cluster.gpus)):
        most = max((machine.get(kind, 0.0) for machine in machines), default=0.0)
        if wanted > most:
            raise SettingsError(
                f"{kind.lower()}s_per_trial must be at most the {most:g} that a machine of the cluster has "
                f"but got {wanted:g}."
            )


def _init(**options: Any) -> None:
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        # What goes wrong is told by who started a trial.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _own_handler(), _quiet_stderr(), _apart():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)


@contextlib.contextmanager
def _own_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM: when Ray starts it puts one in its place that ends the process; when it
    ends, none, which does so too. Of a signal that Ray's heard inside, it hears."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, heard = signal.getsignal(signal.SIGTERM), False
    try:
        yield
    except SystemExit:
        heard = True
    finally:
        # None is a handler that was not set from Python.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
    if heard:
        signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Start Ray's processes in sessions of their own, if this version of Ray starts them as known here.

    SLURM, timeout and terminals send signals to a whole group of processes. The search is to answer them,
    with a Ray that is still there.
    """
    popen = getattr(services, "ConsolePopen", None)
    if popen is None:
        yield
        return
    services.ConsolePopen = functools.partial(popen, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = popen


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hide what Ray's C++ processes print while they start."""
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:
        yield
        return
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
