"""Malformed inputs of every kind: each must be refused in one line, or do no harm.

    python examples/benchmarks/fuzz.py [--rounds 20] [--seed 0]

Settings, configuration files, data, images, weights, checkpoints, search spaces, run folders and studies are
made, then cut short, flipped in single bits, emptied, or given values of the wrong kind. What is refused must
be an error that this package raises on purpose, which the command line tells in one line with exit code 2;
what is accepted must be usable. Anything else is a fault, and exit code 1. No input may be written over.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sqlite3
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import autocompress as ac
from autocompress import plugins
from autocompress.checkpoint.store import MANIFEST, Writer, open_checkpoint
from autocompress.cli.config import _stored
from autocompress.data import load_task
from autocompress.engine.folder import RunFolder
from autocompress.engine.settings import Settings, parse_duration, parse_shares
from autocompress.errors import one_line
from autocompress.measure import Constraint, Objective, parse_objectives
from autocompress.study import STUDY_NAME, SearchStudy, sqlite_url
from autocompress.task.checks import check_splits
from autocompress.task.pretrained import load_weights

# What is no value of most settings.
ODD: list[Any] = [None, "", "x", -1, 0, 1e308, float("nan"), float("inf"), True, [], ["", "x"], {}]
ODD += [{"a": 1}, object(), 10**30, "\0", "é" * 300, ("a", 1), {"a": float("nan")}, {"*": 2.0}, [None], b"x"]


@dataclass
class Outcome:
    """How many inputs of a kind there were, and what became of them."""

    refused: int = 0
    accepted: int = 0
    faults: list[str] = field(default_factory=list)


def mutations(content: bytes, chance: random.Random) -> Iterator[bytes]:
    """Versions of a file, without end: cut short, emptied, flipped, with rubbish or without parts."""
    yield b""
    yield content[: len(content) // 2]
    while True:
        changed = bytearray(content)
        place = chance.randrange(max(1, len(changed)))
        kind = chance.randrange(5)
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            for _ in range(chance.randrange(1, 20)):
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        elif kind == 2:
            changed[place:place] = chance.randbytes(chance.randrange(1, 50))
        elif kind == 3:
            del changed[place : place + chance.randrange(1, 200)]
        else:
            changed[place : place + 8] = b"\xff" * 8
        yield bytes(changed)


@dataclass
class Fuzzer:
    """Makes malformed inputs in a folder and gives them to what reads them.

    Args:
        folder: for all files.
        chance: what decides.
        rounds: of each kind.
    """

    folder: Path
    chance: random.Random
    rounds: int
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def attempt(self, kind: str, read: Callable[[], object], *inputs: Path) -> None:
        """Read an input that may be malformed; its files are to stay as they are."""
        outcome = self.outcomes.setdefault(kind, Outcome())
        before = [digest(path) for path in inputs]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
        except (ac.UsageError, ac.CheckpointError) as error:
            outcome.refused += 1
            if len(one_line(error)) > 1000:
                outcome.faults.append(f"a line of {len(one_line(error))} characters")
        except (Exception, SystemExit):
            outcome.faults.append(traceback.format_exc().strip())
        else:
            outcome.accepted += 1
        if [digest(path) for path in inputs] != before:
            outcome.faults.append("the input was written over")

    def mutated(self, kind: str, file: Path, read: Callable[[], object]) -> None:
        """Give versions of a file to what reads it, by its name."""
        content = file.read_bytes()
        versions = mutations(content, self.chance)
        for _ in range(self.rounds):
            file.write_bytes(next(versions))
            self.attempt(kind, read, file)
        file.write_bytes(content)

    def settings(self) -> None:
        names = list(Settings.__dataclass_fields__)
        for _ in range(4 * self.rounds):
            options = {name: self.chance.choice(ODD) for name in self.chance.sample(names, 2)}
            self.attempt("settings", lambda options=options: Settings(**options))

    def texts(self) -> None:
        known = {"accuracy": "maximize", "bytes": "minimize"}
        parts = [
            "accuracy",
            ">=",
            "<=",
            "ref",
            "0.9",
            "*",
            "-",
            "|",
            "bytes",
            " ",
            ":max",
            ",",
            "=",
            "nan",
            "h",
        ]
        for _ in range(2 * self.rounds):
            text = "".join(self.chance.choices(parts, k=self.chance.randrange(6)))
            self.attempt("texts", lambda text=text: Constraint.parse(text, known))
            self.attempt("texts", lambda text=text: parse_objectives(tuple(text.split(",")), known))
            self.attempt("texts", lambda text=text: parse_duration("timeout", text))
            self.attempt("texts", lambda text=text: parse_shares([text]))

    def configuration(self) -> None:
        file = self.folder / "run.toml"
        file.write_text('trials = 3\nobjectives = ["accuracy", "bytes"]\n[at_least]\n"fc" = 0.5\n')
        known = dict.fromkeys(("trials", "objectives", "at_least", "timeout"))
        self.mutated("configuration files", file, lambda: _stored(str(file), known))

    def data(self) -> None:
        file = self.folder / "data.npz"
        rows, labels = np.zeros((40, 3, 8, 8), np.uint8), np.arange(40) % 4
        np.savez(file, x_train=rows, y_train=labels, x_test=rows, y_test=labels)
        self.mutated("npz data", file, lambda: check_splits(load_task(f"npz:{file}", model="mlp")))
        odd: list[Any] = [np.zeros(0), np.zeros((40, 3), object), rows[:3], np.full((40, 3, 8, 8), np.nan)]
        for array in odd:
            np.savez(file, x_train=array, y_train=labels, x_test=rows, y_test=labels)
            self.attempt("npz data", lambda: check_splits(load_task(f"npz:{file}", model="mlp")), file)
        for array in (labels - 7, labels.astype(float) + 0.5, labels[:, None], np.array(["a"] * 40)):
            np.savez(file, x_train=rows, y_train=array, x_test=rows, y_test=labels)
            self.attempt("npz data", lambda: check_splits(load_task(f"npz:{file}", model="mlp")), file)

    def images(self) -> None:
        root = self.folder / "images"
        for split in ("train", "test"):
            for label in ("a", "b"):
                for number in range(12):
                    file = root / split / label / f"{number}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.full((16, 16, 3), 20 * number, np.uint8)).save(file)
        name, file = f"imagefolder:{root}", root / "train" / "a" / "0.png"

        def read() -> None:
            task = load_task(name, model="resnet18", image_size=16)
            for _ in task.train:
                pass

        self.mutated("images", file, read)

    def weights(self) -> None:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        state = model.state_dict()
        torch.save(state, self.folder / "w.pt")
        np.savez(self.folder / "w.npz", **{name: value.numpy() for name, value in state.items()})
        from safetensors.torch import save_file

        save_file(state, self.folder / "w.safetensors")
        for name in ("w.pt", "w.npz", "w.safetensors"):
            file = self.folder / name
            self.mutated("weights", file, lambda file=file: load_weights(model, str(file)))
        odd: list[Any] = [[], 3, {"a": 1}, {"0.weight": torch.zeros(3)}, {1: torch.zeros(2)}, model, {}]
        odd += [{**state, "0.weight": torch.zeros(8, 4, dtype=torch.cfloat)}, {"state_dict": {"x": None}}]
        for content in odd:
            torch.save(content, self.folder / "w.pt")
            self.attempt("weights", lambda: load_weights(model, str(self.folder / "w.pt")))

    def checkpoints(self) -> None:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        example = torch.randn(2, 4)
        writer = Writer(self.folder / "checkpoint")
        writer.write(model, example, "pt2")
        described = {"input": {"shape": [2, 4], "dtype": "float32"}, "metrics": {}}
        made = writer.commit(described)

        def read() -> None:
            opened = open_checkpoint(made.path)
            opened.load()(example)

        for file in sorted(made.path.iterdir()):
            self.mutated("checkpoints", file, read)
        # As somebody would who knows of the digests.
        manifest = json.loads((made.path / MANIFEST).read_text())
        for file in sorted(made.path.iterdir()):
            if file.name == MANIFEST:
                continue
            content, versions = file.read_bytes(), mutations(file.read_bytes(), self.chance)
            for _ in range(self.rounds // 2):
                file.write_bytes(next(versions))
                digests = {**manifest["sha256"], file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
                (made.path / MANIFEST).write_text(json.dumps({**manifest, "sha256": digests}))
                self.attempt(
                    "checkpoints with right digests", lambda: open_checkpoint(made.path).load(), file
                )
                self.attempt(
                    "checkpoints with right digests",
                    lambda: ac.rebuild(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), made.path),
                    file,
                )
            file.write_bytes(content)
            (made.path / MANIFEST).write_text(json.dumps(manifest))

    def spaces(self) -> None:
        file = self.folder / "space.py"
        plain = (
            "import autocompress as ac\n"
            "def suggest(trial, profile):\n"
            "    return ac.Alcn.Config(initial_ratio=trial.suggest_float('ratio', 0.2, 0.5))\n"
        )
        texts = ["", "suggest = 3", "def suggest(): pass", "def suggest(trial): pass", "raise KeyError('x')"]
        texts += ["import nothing_like_it", "def suggest(trial, profile:\n", "1/0", "class suggest: pass"]
        texts += ["raise SystemExit(3)", "def move(a): pass\ndef suggest(trial, profile): pass", plain]
        for text in texts:
            file.write_text(text)
            self.attempt("search spaces", lambda: plugins.search_space(str(file)), file)
        file.write_text(plain)
        self.mutated("search spaces", file, lambda: plugins.search_space(str(file)))
        for name in ("nothing", "no.such", "json", "", ".", "a:b", str(self.folder), "\0"):
            self.attempt("search spaces", lambda name=name: plugins.search_space(name))

    def runs(self) -> None:
        run = RunFolder(self.folder / "run")
        settings = Settings()
        objectives = parse_objectives(("accuracy", "bytes"), {"accuracy": "maximize", "bytes": "minimize"})
        described = [{"metric": o.metric, "direction": o.direction} for o in objectives]
        metrics = {"accuracy": 0.9, "bytes": 100.0}
        run.write(settings, settings.identity(), {"objectives": described, "reference": {"metrics": metrics}})
        made = SearchStudy(sqlite_url(run.path), STUDY_NAME, objectives)
        made.add_reference(metrics, {"config": {}, "errors": {}})
        made._database.engine.dispose()
        for file in (run.json, run.study):
            self.mutated("runs and studies", file, lambda: ac.load_run(run.path))
        stored = json.loads(run.json.read_text())
        for name in list(stored):
            for value in self.chance.sample(ODD[:13], 3):
                run.json.write_text(json.dumps({**stored, name: value}))
                self.attempt("runs and studies", lambda: ac.load_run(run.path), run.json)
            run.json.write_text(json.dumps({k: v for k, v in stored.items() if k != name}))
            self.attempt("runs and studies", lambda: ac.load_run(run.path), run.json)
        run.json.write_text(json.dumps(stored))
        self.studies(run, objectives)

    def studies(self, run: RunFolder, objectives: tuple[Objective, ...]) -> None:
        """Studies of other versions, and of another program."""
        plain = run.study.read_bytes()
        changes = [
            "UPDATE version_info SET schema_version = 99",
            "UPDATE alembic_version SET version_num = 'x'",
        ]
        changes += ["DROP TABLE trials", "DELETE FROM studies", "DELETE FROM trial_user_attributes"]
        changes += ["UPDATE trial_user_attributes SET value_json = '3'", "DELETE FROM trials"]
        changes += ["UPDATE trial_user_attributes SET value_json = 'no JSON'", "DELETE FROM study_directions"]
        for change in changes:
            with sqlite3.connect(run.study) as database:
                database.execute(change)
            self.attempt("runs and studies", lambda: ac.load_run(run.path))
            database.close()
            run.study.write_bytes(plain)

    def run(self) -> dict[str, Outcome]:
        kinds = [self.settings, self.texts, self.configuration, self.data, self.images, self.weights]
        for kind in (*kinds, self.checkpoints, self.spaces, self.runs):
            kind()
        return self.outcomes


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def fuzzed(rounds: int, seed: int) -> dict[str, Outcome]:
    """What became of malformed inputs, by kind.

    Args:
        rounds: of each kind, or of each file of a kind.
        seed: of the changes.
    """
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        return Fuzzer(folder, random.Random(seed), rounds).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes = fuzzed(arguments.rounds, arguments.seed)
    print("| inputs | tried | refused in a line | did no harm | faults |\n| --- | --- | --- | --- | --- |")
    for kind, outcome in outcomes.items():
        counts = outcome.refused, outcome.accepted, len(outcome.faults)
        print(f"| {kind} | {sum(counts)} | {' | '.join(map(str, counts))} |")
    faults = Counter(fault for outcome in outcomes.values() for fault in outcome.faults)
    for fault, count in faults.most_common():
        print(f"\n{count} ×\n{fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
