"""optuna-dashboard on a run's study, on the loopback interface only."""

from __future__ import annotations

from typing import Any

import optuna_dashboard


def serve_dashboard(study: Any, artifacts: Any, port: int) -> None:
    """Serve until interrupted.

    Args:
        study: the `optuna.Study` to show.
        artifacts: the artifact store that holds the trials' pictures.
        port: on 127.0.0.1.
    """
    optuna_dashboard.run_server(study._storage, host="127.0.0.1", port=port, artifact_store=artifacts)
