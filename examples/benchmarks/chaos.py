"""A search whose processes are killed at random: what of it is left.

    python examples/benchmarks/chaos.py                       # 60 trials, 20 kills, SQLite in the run
    python examples/benchmarks/chaos.py --storage postgresql://user@/name
    python examples/benchmarks/chaos.py --trials 12 --kills 6 --seed 1

A search of the digits runs while SIGKILL strikes its driver, its workers, Ray's own processes and other
children. Where the driver ends, the same command goes on. In between the clock of all processes jumps by
hours, a kept checkpoint is damaged on the disk, and a second driver is started on the same run. It prints
what was tried, what the search survived by itself, and what was lost; exit code 1 where anything was.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

import autocompress as ac
from autocompress.checkpoint import open_checkpoint
from autocompress.engine.folder import RunFolder
from autocompress.engine.results import open_study

MARK = "AUTOCOMPRESS_CHAOS"
# Python's clock, an hour off in either direction every few seconds, in every process that is started.
CLOCK = """
import time
_time = time.time
time.time = lambda: _time() + 3600.0 * ((int(_time()) // 7) % 3 - 1)
"""
GROUPS = {"driver": 0.4, "worker": 0.35, "Ray's own": 0.15, "other child": 0.1}


@dataclass
class Chaos:
    """A search that is tormented.

    Args:
        arguments: of the command line of this script.
        folder: for all that is written.
        chance: what decides.
    """

    arguments: argparse.Namespace
    folder: Path
    chance: random.Random
    tried: Counter[str] = field(default_factory=Counter)
    survived: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    finished: dict[int, Any] = field(default_factory=dict)
    starts: int = 0

    @property
    def out(self) -> Path:
        return self.folder / "run"

    def command(self) -> list[str]:
        options = ["--model", "mlp", "--epochs", "1", "--workers", "2", "--constraint", "none"]
        if self.arguments.storage:
            options += ["--storage", self.arguments.storage]
        trials = ["--trials", str(self.arguments.trials), "--out", str(self.out)]
        return [sys.executable, "-m", "autocompress.cli", "search", "digits", *options, *trials]

    def start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        site = self.folder / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(CLOCK)
        path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
        log = (self.folder / "log.txt").open("ab")
        environment = {**os.environ, MARK: str(self.folder), "PYTHONPATH": path}
        return subprocess.Popen(
            self.command(), stdout=log, stderr=log, env=environment, start_new_session=True
        )

    def processes(self) -> dict[int, str]:
        """The command line of each process that was started, wherever it is; by Linux' own files."""
        marked = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                environment = (place / "environ").read_bytes().split(b"\0")
                line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it has ended, or is another user's
            if f"{MARK}={self.folder}".encode() in environment:
                marked[int(place.name)] = line
        return marked

    def strike(self, driver: subprocess.Popen[bytes]) -> None:
        """Kill one process of a group that is there."""
        groups: dict[str, list[int]] = {}
        for process, line in self.processes().items():
            groups.setdefault(self.group(process, line, driver), []).append(process)
        group = self.chance.choices(list(groups), [GROUPS[name] for name in groups])[0]
        victim = self.chance.choice(groups[group])
        done = len(self.ended())
        self.tried[f"SIGKILL of {group}"] += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        self.say(f"{group} {victim}, {done} trials done")
        # A driver without Ray ends ten seconds later.
        deadline = time.monotonic() + (20 if group == "Ray's own" else 5)
        while time.monotonic() < deadline and driver.poll() is None:
            time.sleep(0.1)
        self.survived[f"SIGKILL of {group}"] += driver.poll() is None

    def group(self, process: int, line: str, driver: subprocess.Popen[bytes]) -> str:
        if process == driver.pid:
            return "driver"
        if "ray::" in line and "Agent" not in line:
            return "worker"
        # Without its agents the process that starts workers ends too.
        own = ("gcs_server", "raylet/raylet", "ray::")
        return "Ray's own" if any(name in line for name in own) else "other child"

    def trials(self) -> list[FrozenTrial]:
        try:
            return open_study(RunFolder(self.out))[0].study.get_trials(deepcopy=False)
        except ac.AutocompressError:
            return []  # there is no study yet

    def ended(self) -> dict[int, FrozenTrial]:
        """Trials that ended, and were not cut off."""
        states = (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)
        return {t.number: t for t in self.trials() if t.state in states and "interrupted" not in t.user_attrs}

    def remember(self) -> None:
        """That what had ended is as it was."""
        ended = {n: (t.state, t.values, t.datetime_complete) for n, t in self.ended().items()}
        for number, before in self.finished.items():
            if ended.get(number) != before:
                self.lost.append(f"trial {number} was {before} and is {ended.get(number)}")
        self.finished = ended

    def damage(self) -> None:
        """Change a byte of a checkpoint that is kept."""
        files = sorted(self.out.glob("trials/[0-9]*/model.pt2"))
        if not files:
            return
        file = self.chance.choice(files)
        content = bytearray(file.read_bytes())
        content[self.chance.randrange(len(content))] ^= 0xFF
        file.write_bytes(content)
        self.tried["damaged checkpoint"] += 1
        self.say(f"damaged {file.parent.name}")

    def second_driver(self) -> None:
        """Start the same command beside."""
        self.tried["second driver"] += 1
        beside = subprocess.run(self.command(), capture_output=True, text=True, check=False)
        self.survived["second driver"] += beside.returncode == 2 and "in use" in beside.stderr

    def say(self, text: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)

    def run(self) -> None:
        driver, next_strike = self.start(), 1
        extras: list[Callable[[], None]] = [self.damage, self.second_driver]
        while True:
            time.sleep(self.chance.uniform(0, 3))
            kills = sum(n for name, n in self.tried.items() if name.startswith("SIGKILL"))
            if driver.poll() is not None:
                self.remember()
                if driver.returncode == 0:
                    return
                if self.starts > 10 * self.arguments.kills:
                    self.lost.append("the search does not come to its end")
                    return
                driver = self.start()
            elif kills < self.arguments.kills and len(self.ended()) >= next_strike:
                self.strike(driver)
                self.remember()
                # So that they are spread over the search.
                most = max(1, self.arguments.trials // self.arguments.kills)
                next_strike = len(self.ended()) + self.chance.randrange(most)
                if extras and kills * 3 > self.arguments.kills and driver.poll() is None:
                    extras.pop()()

    def judge(self) -> None:
        """What the end is like."""
        self.tried["clock that jumps"] = self.survived["clock that jumps"] = self.starts
        trials = self.trials()
        zombies = [t.number for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
        if zombies:
            self.lost.append(f"trials {zombies} never end")
        proposed = [t for t in self.ended().values() if t.number and "extra" not in t.user_attrs]
        if len(proposed) > self.arguments.trials:
            self.lost.append(f"{len(proposed)} trials ended instead of {self.arguments.trials}")
        for number, names in self.twice(trials).items():
            self.lost.append(f"trial {number} had ended and ran again as {names}")
        result = ac.load_run(self.out)
        for point in result.front:
            open_checkpoint(point.path)
            point.load()
        gone = len(result.study.user_attrs.get("dropped", {}))
        self.survived["damaged checkpoint"] += bool(result.front) and self.tried["damaged checkpoint"]
        self.say(f"front {[p.trial for p in result.front]}, {gone} dropped, {self.starts} starts")
        time.sleep(5)
        left = [line[:80] for line in self.processes().values()]
        if left:
            self.lost.append(f"processes left: {left}")

    def twice(self, trials: list[FrozenTrial]) -> dict[int, list[int]]:
        """Trials that ended although another with their very proposal had ended before as its repetition."""
        again: dict[int, list[int]] = {}
        for trial in trials:
            if trial.user_attrs.get("runs", 1) > 1 and trial.state is TrialState.COMPLETE:
                same = [
                    other.number
                    for other in trials
                    if other.number < trial.number
                    and other.state is TrialState.COMPLETE
                    and other.user_attrs.get("runs", 1) > 1
                    and other.params == trial.params
                    and other.user_attrs.get("config") == trial.user_attrs.get("config")
                ]
                if same:
                    again[trial.number] = same
        return again

    def table(self) -> str:
        lines = ["| fault | tried | the search went on by itself |", "| --- | --- | --- |"]
        lines += [f"| {name} | {self.tried[name]} | {self.survived[name]} |" for name in self.tried]
        ended = Counter(t.state.name.lower() for t in self.ended().values() if t.number)
        states = ", ".join(f"{n} {name}" for name, n in ended.items())
        lines += ["", f"{self.starts} starts of the same command; trials: {states}; lost: {len(self.lost)}"]
        return "\n".join([*lines, *self.lost])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--storage", help="an Optuna storage URL")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        chaos = Chaos(arguments, Path(folder), random.Random(arguments.seed))
        try:
            chaos.run()
            chaos.judge()
        finally:
            for process in chaos.processes():
                os.kill(process, signal.SIGKILL)
            shutil.copy(Path(folder) / "log.txt", Path(tempfile.gettempdir()) / "chaos-log.txt")
        print(chaos.table())
    sys.exit(1 if chaos.lost else 0)


if __name__ == "__main__":
    main()
