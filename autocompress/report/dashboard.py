"""optuna-dashboard on a run's study, told what the study alone does not say."""

from __future__ import annotations

import errno
import ipaddress
import json
import mimetypes
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs, quote
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna_dashboard

from autocompress.errors import SettingsError, one_line
from autocompress.report.charts import family_chart, front_chart, growth_chart
from autocompress.report.notes import study_note, trial_note
from autocompress.report.records import TrialRecord, trial_records
from autocompress.report.summary import growth
from autocompress.result import SearchResult
from autocompress.study import SearchStudy

# Parameters that say what a trial starts from and how it is trained; all others say how it compresses.
_START = ("parent", "method", "only_train")
_TRAINING = (
    *("compress_share", "lr_scale", "teacher", "distill_weight", "distill_temperature"),
)  # fmt: skip
_FILES = "/run/"
# On a narrow screen optuna-dashboard leaves no room beside its lists and settings: what is beside goes below.
_NARROW = b"""<style>@media (max-width: 700px) {
  main { min-width: 0; }
  main div:has(> .MuiDivider-vertical) { flex-direction: column; height: auto; }
  main div:has(> .MuiDivider-vertical) > div { width: 100%; min-width: 0; }
  main div:has(> .MuiDivider-vertical) > div:first-child { height: 14rem; overflow: auto; }
  main .MuiGrid-root { flex-basis: 100%; width: 100%; max-width: 100%; }
  main .MuiGrid-container { flex-direction: column; flex-wrap: nowrap; }
}</style>"""
Environ = dict[str, Any]


def serve_dashboard(study: SearchStudy, load: Callable[[], SearchResult], host: str, port: int) -> None:
    """Serve until interrupted.

    Args:
        study: to show.
        load: gives the run's result as it stands.
        host: name or address of this machine to listen on.
        port: to listen on; 0 is one that is free.

    Raises:
        SettingsError: host or port cannot be listened on.
    """
    app = optuna_dashboard.wsgi(study.study._storage, artifact_store=study.artifacts)
    with _server(host, port, ToldApp(app, study, load)) as server:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{server.server_port}/dashboard/studies/{study.study._study_id}"
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        if not _is_local(server):
            print(
                f"autocompress: warning: there is no login: whoever reaches {host} may read, change and "
                "delete the study, and download its models",
                file=sys.stderr,
                flush=True,
            )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    """Does not log each request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Do nothing."""


def _server(host: str, port: int, app: Any) -> WSGIServer:
    if not 0 <= port < 2**16:
        raise SettingsError(f"port must be in [0, 65535] but got {port}.")
    kind = _ServerV6 if ":" in host else _Server
    try:
        return make_server(host, port, app, kind, _Quiet)
    except socket.gaierror as error:
        raise SettingsError(f"host must be a name or an address of this machine but got {host!r}.") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"port must be free on {host} but {port} is in use (give another by --port)."
            ) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise SettingsError(f"host must be of this machine but got {host!r}.") from error
        raise SettingsError(
            f"port must be one that may be listened on but {port} on {host} is not: {one_line(error)}"
        ) from error


def _is_local(server: WSGIServer) -> bool:
    """Whether other machines cannot reach it."""
    return ipaddress.ip_address(str(server.server_address[0])).is_loopback


@dataclass(frozen=True)
class _Seen:
    """A run as it was when its study had a version.

    Args:
        version: what tells one state of the study from another.
        result: of the run.
        records: all trials.
        violations: of the constraints, by trial.
        charts: as optuna-dashboard takes them.
    """

    version: tuple[Any, ...]
    result: SearchResult
    records: dict[int, TrialRecord]
    violations: dict[int, list[float]]
    charts: list[dict[str, str]]


class ToldApp:
    """optuna-dashboard's application, whose answers about a run's study are completed on their way.

    optuna-dashboard (0.21) does not know the constraints of Optuna 5, so that its best trials are those that
    break them; what a trial is, where it came from and its ratios to the reference stand in no attribute that
    a person can read. Nothing of this is written into the study.

    Args:
        app: optuna-dashboard's.
        study: of the run.
        load: gives the run's result as it stands.
    """

    def __init__(self, app: Any, study: SearchStudy, load: Callable[[], SearchResult]) -> None:
        self.app, self.study, self.load = app, study, load
        self.lock = threading.Lock()
        self.seen: _Seen | None = None
        self.detail = f"/api/studies/{study.study._study_id}"

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Answer a request."""
        path = environ.get("PATH_INFO", "")
        if environ["REQUEST_METHOD"] == "GET":
            if path == self.detail:
                after = parse_qs(environ.get("QUERY_STRING", "")).get("after", ["0"])[0]
                told = partial(self.told, after=int(after) if after.isdecimal() else 0)
                self.current()  # which may draw pictures that are to be shown
                # All trials: one that is on the front now may have been sent before.
                return self._completed(environ | {"QUERY_STRING": ""}, start_response, told)
            if path == f"{self.detail}/param_importances":
                return self._completed(environ, start_response, _with_stages)
            if path == "/dashboard" or path.startswith("/dashboard/"):
                return self._completed(environ, start_response, _for_narrow_screens)
            if path.startswith(_FILES):
                return self._file(path.removeprefix(_FILES), start_response)
        answer: Iterable[bytes] = self.app(environ, start_response)
        return answer

    def _completed(
        self, environ: Environ, start_response: Any, complete: Callable[[bytes], bytes]
    ) -> Iterable[bytes]:
        """What the application answers, completed where it is no error."""
        begun: list[Any] = []
        body = b"".join(self.app(environ, lambda *answer: begun.append(answer)))
        status, headers, *rest = begun[-1]
        if status.startswith("200"):
            body = complete(body)
            kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
            headers = [*kept, ("Content-Length", str(len(body)))]
        start_response(status, headers, *rest)
        return [body]

    def current(self) -> _Seen:
        """The run as it stands, read anew where the study has changed."""
        with self.lock:
            trials = self.study.study.get_trials(deepcopy=False)
            version = (
                tuple(trial.state for trial in trials),
                json.dumps(self.study.study.user_attrs, sort_keys=True),
            )
            if self.seen is None or version != self.seen.version:
                result = self.load()
                records = trial_records(self.study, result)
                violations = {trial.number: list(trial.constraints.values()) for trial in trials}
                self.seen = _Seen(version, result, records, violations, self._charts(result, records))
            return self.seen

    def told(self, body: bytes, after: int) -> bytes:
        """What is answered of the study, completed, without trials that were sent before.

        Args:
            body: as optuna-dashboard answers, of all trials.
            after: number of the first trial that is wanted.
        """
        detail, seen = json.loads(body), self.current()
        result, records = seen.result, seen.records
        front = {point.trial for point in result.front}
        for trial in detail["trials"]:
            record = records.get(trial["number"])
            if record is not None:
                self._tell_trial(trial, record, seen)
        # Runs of versions that named all studies alike have the folder's name here too.
        detail["name"] = result.out.resolve().name
        detail["best_trials"] = [trial for trial in detail["trials"] if trial["number"] in front]
        detail["trials"] = [trial for trial in detail["trials"] if trial["number"] >= after]
        for space in ("intersection_search_space", "union_search_space"):
            for parameter in detail[space]:
                parameter["name"] = stage_name(parameter["name"])
        known = dict.fromkeys(key for record in records.values() for key in _attributes(record))
        detail["union_user_attrs"] = [{"key": key, "sortable": key.startswith("×")} for key in known]
        if not detail["note"]["body"]:
            report = _FILES + "report.html" if (result.out / "report.html").is_file() else ""
            bounds = [constraint.text for constraint in self.study.constraints]
            detail["note"]["body"] = study_note(result, records, bounds, report)
        detail["plotly_graph_objects"] = [*seen.charts, *detail["plotly_graph_objects"]]
        return json.dumps(detail).encode()

    def _tell_trial(self, trial: dict[str, Any], record: TrialRecord, seen: _Seen) -> None:
        trial["constraints"] = seen.violations.get(record.number, [])
        for parameter in [*trial["params"], *trial["fixed_params"]]:
            parameter["name"] = stage_name(parameter["name"])
        trial["user_attrs"] = [{"key": key, "value": value} for key, value in _attributes(record).items()]
        # What somebody wrote there stays.
        if not trial["note"]["body"]:
            trial["note"]["body"] = trial_note(record, _addresses(record, seen.result.out))

    def _charts(self, result: SearchResult, records: dict[int, TrialRecord]) -> list[dict[str, str]]:
        rest = [objective.metric for objective in result.objectives[1:]] or ["bytes"]
        charts = {
            f"front-{name}": front_chart(result, records, self.study.constraints, name) for name in rest
        }
        if any(point.trial for point in result.front):
            charts["family-tree"] = family_chart(result, records)
        charts["hypervolume"] = growth_chart(growth(records, result.objectives), records)
        return [{"id": name, "graph_object": json.dumps(chart)} for name, chart in charts.items()]

    def _file(self, name: str, start_response: Any) -> Iterable[bytes]:
        """The report, or a file of a checkpoint; nothing else of the folder."""
        file = (self.current().result.out / name).resolve()
        if file not in self._files():
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"not a file of this run\n"]
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        headers = [("Content-Type", kind), ("Content-Length", str(file.stat().st_size))]
        start_response("200 OK", headers)
        return _pieces(file)

    def _files(self) -> set[Path]:
        out = self.current().result.out.resolve()
        patterns = ("report.html", "reference/*", "trials/[0-9]*/*")
        return {file for pattern in patterns for file in out.glob(pattern) if file.is_file()}


def _addresses(record: TrialRecord, out: Path) -> dict[str, str]:
    """Where the files of a trial's checkpoint can be fetched, by name."""
    folder = out / record.folder
    if not record.folder or not folder.is_dir():
        return {}
    return {
        file.name: f"{_FILES}{quote(f'{record.folder}/{file.name}')}" for file in sorted(folder.iterdir())
    }


def _pieces(file: Path, size: int = 2**20) -> Iterable[bytes]:
    with file.open("rb") as content:
        while piece := content.read(size):
            yield piece


def stage_name(parameter: str) -> str:
    """A parameter with the part of a trial that it is of, in the order of these."""
    if parameter in _START:
        return f"1 start: {parameter}"
    if parameter in _TRAINING:
        return f"3 train: {parameter}"
    return f"2 compress: {parameter}"


def _attributes(record: TrialRecord) -> dict[str, str]:
    """What of a trial is worth a column."""
    standing = "out of bounds" if record.feasible is False else record.standing
    attributes = {"what": record.label, "standing": standing}
    if record.number:
        attributes["from"] = "reference" if record.parent == 0 else f"trial {record.parent}"
        ratios = {
            f"× {name}": f"{ratio:.4g}" for name, ratio in record.ratios.items() if "spread" not in name
        }
        attributes |= ratios
    if record.reason:
        attributes["reason"] = record.reason
    return attributes


def _with_stages(body: bytes) -> bytes:
    """Importances of parameters by the names that the others have."""
    data = json.loads(body)
    for of_objective in data.get("param_importances", ()):
        for parameter in of_objective:
            parameter["name"] = stage_name(parameter["name"])
    return json.dumps(data).encode()


def _for_narrow_screens(body: bytes) -> bytes:
    return body.replace(b"</head>", _NARROW + b"</head>", 1)
