"""A run as a search leaves it, written without one: a study, its folder, and manifests without models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autocompress.engine.folder import RunFolder
from autocompress.engine.results import build_result
from autocompress.measure import Constraint, Objective
from autocompress.result import SearchResult
from autocompress.study import SearchStudy, sqlite_url
from autocompress.trial import Stage, TrialConfig

EVIL = "</script><script>alert('x')</script><b>"
OBJECTIVES = (Objective("accuracy", "maximize"), Objective("bytes", "minimize"))
BOUNDS = ("accuracy>=0.9", "bytes<=0.8*ref")
BASE = {"accuracy": 0.98, "bytes": 1000.0, "weight_bytes": 900.0, "params": 250, "macs": 4000}
INPUT = {"shape": [None, 4], "dtype": "float32", "scale": 0.5, "mean": [1.0, 0.0, 2.0, 3.0], "std": [2.0] * 4}


def metrics(accuracy: float, share: float) -> dict[str, float]:
    return {name: value * share for name, value in BASE.items()} | {"accuracy": accuracy}


def layers(share: float) -> list[dict[str, Any]]:
    return [
        {
            "name": f"block.{position}",
            "kind": "Linear",
            "channels": int(16 * share),
            "rank": int(8 * share),
            "bits": 32.0 * share,
            "params": 200,
            "macs": int(2000 * share),
            "bytes": int(400 * share),
        }
        for position in range(2)
    ]


def manifest(config: TrialConfig, share: float, history: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "schema": 2,
        "task": EVIL,
        "model": "net",
        "check": {"max_relative_difference": 1e-7},
        "config": config.to_json(),
        "input": INPUT,
        "artifact": "pt2",
        "history": history,
        "layers": layers(share),
        "class_names": [EVIL, "dog"],
        "class_counts": [[int(40 * share), 40], [30, 40]],
        "sha256": {},
    }


class WrittenRun:
    """A run of three trials on the front's way, one out of bounds, one that failed and one that runs.

    Attributes:
        study: of the run.
        folder: of it.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any] | None = None,
        storage: str | None = None,
        bounds: Sequence[str] = BOUNDS,
    ) -> None:
        path.mkdir(parents=True)
        (path / "trials").mkdir()
        (path / "artifacts").mkdir()
        self.folder = RunFolder(path)
        constraints = [Constraint.parse(text, dict.fromkeys(BASE, "")) for text in bounds]
        url = sqlite_url(path) if storage is None else storage
        self.study = SearchStudy(url, "run", OBJECTIVES, constraints, path / "artifacts")
        self.study.add_reference(BASE, self._details(TrialConfig(epochs=3)))
        self._checkpoint(self.folder.reference, TrialConfig(epochs=3), 1.0, [])
        alcn = Stage("alcn", {"initial_ratio": 0.25})
        history = [
            {"epoch": e, "loss": 1.0 / e, "ratio/block.0": 0.5, "survival/block.0": 0.6} for e in (1.0, 2.0)
        ]
        self.complete(TrialConfig((alcn,), 0, 3, lr_scale=8.0), 0.97, 0.5, history)
        self.complete(TrialConfig((alcn,), 1, 3, distill_weight=0.5, teacher=1), 0.95, 0.25, history)
        self.complete(TrialConfig((Stage("lc", {"steps": 7}),), 2, 0), 0.94, 0.1, [])
        self.complete(TrialConfig((alcn,), 0, 3), 0.5, 0.01, None)
        self.fail(TrialConfig((Stage("depth", {}),), 1, 3), f"the loss became nan {EVIL}")
        self.begin(TrialConfig((alcn,), 2, 3))
        data = {
            "schema": 1,
            "id": "12345678",
            "study": "run",
            "settings": {
                "task": EVIL,
                "model": None,
                "artifact": "pt2",
                "storage": storage,
                **(settings or {}),
            },
            "versions": {"autocompress": "0.1.0", "torch": "2.14.1"},
            "objectives": [{"metric": o.metric, "direction": o.direction} for o in OBJECTIVES],
            "constraints": list(bounds),
            "reference": {"metrics": BASE},
        }
        self.folder.json.write_text(json.dumps(data))

    @property
    def result(self) -> SearchResult:
        """The run as it stands."""
        return build_result(self.folder, self.study, OBJECTIVES)

    def begin(self, config: TrialConfig) -> int:
        number = self.study.ask({"method": "alcn"}).number
        self.study.live[number].suggest_categorical("method", ["alcn", "lc"])
        self.study.record_config(number, config)
        return number

    def complete(
        self, config: TrialConfig, accuracy: float, share: float, history: list[dict[str, float]] | None
    ) -> int:
        number = self.begin(config)
        self.study.complete(number, metrics(accuracy, share), BASE, self._details(config))
        if history is not None:
            self._checkpoint(self.folder.trials / f"{number:04d}", config, share, history)
        return number

    def fail(self, config: TrialConfig, reason: str) -> int:
        number = self.begin(config)
        self.study.fail(number, reason)
        return number

    @staticmethod
    def _details(config: TrialConfig) -> dict[str, Any]:
        return {"config": config.to_json(), "errors": {"accuracy": 0.01}, "validation_rows": 80}

    @staticmethod
    def _checkpoint(path: Path, config: TrialConfig, share: float, history: list[dict[str, float]]) -> None:
        path.mkdir()
        (path / "manifest.json").write_text(json.dumps(manifest(config, share, history)))
        (path / "edits.json").write_text(
            json.dumps([{"edit": "factorize"}, {"edit": "encode"}, {"edit": "encode"}])
        )
        (path / "model.pt2").write_bytes(b"0" * int(1000 * share))
