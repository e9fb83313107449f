"""A storage that nobody else writes to, of which is read again what was written alone."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState


class SoleWriter(BaseStorage):
    """A storage of one study, to which nothing else writes while it is used.

    Optuna reads all trials that run from the database whenever it looks at its trials, some twenty times for
    each that is asked for; with 64 of them that takes longer than a short trial. Here each is read once after
    it was written.

    Args:
        stored: where everything is written and read.
    """

    def __init__(self, stored: BaseStorage) -> None:
        self.stored = stored
        # By id; without those that were written since.
        self._trials: dict[int, FrozenTrial] = {}
        self._written: set[int] = set()
        self._all_read = False
        self._attributes: dict[str, dict[str, Any]] = {}

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial as it was written last, which Optuna may change."""
        if not self._all_read:
            return self.stored.get_trial(trial_id)
        self._read_written()
        return copy.deepcopy(self._trials[trial_id])

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials in some states, or all, by number."""
        if not self._all_read:
            self._trials = {t._trial_id: t for t in self.stored.get_all_trials(study_id, deepcopy=False)}
            self._written.clear()
            self._all_read = True
        self._read_written()
        trials = [trial for trial in self._trials.values() if states is None or trial.state in states]
        trials.sort(key=lambda trial: trial.number)
        return copy.deepcopy(trials) if deepcopy else trials

    def _read_written(self) -> None:
        for trial_id in self._written:
            self._trials[trial_id] = self.stored.get_trial(trial_id)
        self._written.clear()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial; its id."""
        trial_id = self.stored.create_new_trial(study_id, template_trial)
        self._written.add(trial_id)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Write a parameter of a trial."""
        self._written.add(trial_id)
        self.stored.set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Write the state of a trial; whether it was not that of another process already."""
        self._written.add(trial_id)
        return self.stored.set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Write a value that a trial had on its way."""
        self._written.add(trial_id)
        self.stored.set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write an attribute of a trial."""
        self._written.add(trial_id)
        self.stored.set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write an attribute of a trial that is Optuna's own."""
        self._written.add(trial_id)
        self.stored.set_trial_system_attr(trial_id, key, value)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the attributes of the study."""
        if "user" not in self._attributes:
            self._attributes["user"] = self.stored.get_study_user_attrs(study_id)
        return self._attributes["user"]

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write an attribute of the study."""
        self._attributes.pop("user", None)
        self.stored.set_study_user_attr(study_id, key, value)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the attributes of the study that are Optuna's own."""
        if "system" not in self._attributes:
            self._attributes["system"] = self.stored.get_study_system_attrs(study_id)
        return self._attributes["system"]

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write an attribute of the study that is Optuna's own."""
        self._attributes.pop("system", None)
        self.stored.set_study_system_attr(study_id, key, value)

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study; its id."""
        return self.stored.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        """Delete a study."""
        self._trials, self._all_read, self._attributes = {}, False, {}
        self.stored.delete_study(study_id)

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of a study."""
        return self.stored.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study."""
        return self.stored.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return what is minimised and what is maximised."""
        return self.stored.get_study_directions(study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return all studies."""
        return self.stored.get_all_studies()

    def remove_session(self) -> None:
        """End a connection to a database."""
        self.stored.remove_session()
