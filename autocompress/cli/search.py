"""`autocompress search` and `autocompress inspect`."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from autocompress.cli import options as opt
from autocompress.cli.app import app
from autocompress.cli.config import given_options, patterns_of, settings_of
from autocompress.cli.short_help import everyday
from autocompress.cli.show import print_error, print_result, print_table
from autocompress.engine.interruption import INTERRUPTED, Interruption
from autocompress.engine.settings import Settings, parse_shares
from autocompress.errors import SettingsError

if TYPE_CHECKING:
    from autocompress.report import Progress

_OBJECTIVES = ",".join(Settings.objectives)


@app.command(
    cls=everyday(
        *("model", "weights", "methods", "objectives", "constraint", "target", "trials", "timeout", "epochs"),
        *("workers", "gpus_per_trial", "artifact", "exclude", "at_least", "out", "config", "help_all"),
    ),
    epilog="""\b
Examples:
  autocompress search digits
  autocompress search fashion_mnist --model small_cnn --methods alcn --trials 24
  autocompress search cifar10 --model resnet20 --weights resnet20.th --epochs 2
  autocompress search my_package.task:make --objectives accuracy,latency --timeout 2h
  autocompress search npz:data.npz --constraint 'accuracy>=ref-0.01' --early-stopping
  autocompress search digits --exclude 'features.0,classifier' --at-least 'features.*=0.5'
  autocompress explain constraints   (or targets, data, latency, ...)
""",
)
def search(
    context: typer.Context,
    task: opt.TaskNameOrNone = None,
    model: opt.Model = None,
    weights: opt.Weights = None,
    data_root: opt.DataRoot = None,
    image_size: opt.ImageSize = Settings.image_size,
    methods: opt.Methods = None,
    space: opt.Space = None,
    objectives: opt.Objectives = _OBJECTIVES,
    constraint: opt.Constraints = None,
    target: opt.Target = None,
    trials: opt.Trials = Settings.trials,
    timeout: opt.Timeout = None,
    trial_timeout: opt.TrialTimeout = None,
    epochs: opt.Epochs = None,
    steps_per_epoch: opt.StepsPerEpoch = None,
    workers: opt.Workers = None,
    cpus_per_trial: opt.CpusPerTrial = Settings.cpus_per_trial,
    gpus_per_trial: opt.GpusPerTrial = Settings.gpus_per_trial,
    sampler: opt.Sampler = Settings.sampler,
    early_stopping: opt.EarlyStopping = Settings.early_stopping,
    distillation: opt.Distillation = Settings.distill,
    seed: opt.Seed = Settings.seed,
    artifact: opt.Artifact = Settings.artifact,
    latency_batch_size: opt.LatencyBatchSize = Settings.latency_batch_size,
    latency_threads: opt.LatencyThreads = Settings.latency_threads,
    latency_by: opt.LatencyBy = None,
    tau: opt.Tau = Settings.tau,
    warm_start: opt.WarmStart = None,
    exclude: opt.Exclude = None,
    at_least: opt.AtLeast = None,
    out: opt.Out = None,
    keep: opt.Keep = Settings.keep,
    storage: opt.Storage = None,
    ray_address: opt.RayAddress = None,
    mlflow: opt.MlflowUri = None,
    wandb: opt.WandbProject = None,
    config: opt.ConfigFile = None,
    quiet: opt.Quiet = False,
    json_lines: opt.JsonLines = False,
    help_all: opt.HelpAll = False,
) -> None:
    """Search for compressed models of TASK, or continue an earlier search."""
    options = given_options(context, config)
    quiet, json_lines = options.pop("quiet"), options.pop("json_lines")
    settings = settings_of(options)
    with (
        Interruption(settings.timeout, _end_at_once) as interruption,
        _display(quiet, json_lines, interruption) as progress,
    ):
        from autocompress.engine.run import search_within

        result = search_within(interruption, settings.task, settings, progress)
        progress.close()
        print_result(result, quiet, json_lines)
        if result.interrupted or interruption.signum is not None:
            print_error("interrupted; the partial front is saved, the same command continues")
            raise typer.Exit(INTERRUPTED + (interruption.signum or signal.SIGINT))


@app.command(
    epilog="""\b
Examples:
  autocompress inspect cifar10 --model resnet56 --json
  autocompress inspect random:3x224x224 --model vit_b_16
  autocompress inspect cifar10 --model resnet56 --exclude 'conv1,linear' --at-least 'layer1.*=0.5'
"""
)
def inspect(
    task: opt.TaskName,
    model: opt.Model = None,
    data_root: opt.DataRoot = None,
    image_size: opt.ImageSize = Settings.image_size,
    exclude: opt.Exclude = None,
    at_least: opt.AtLeast = None,
    as_json: opt.AsJson = False,
) -> None:
    """What can be compressed in the model of TASK, and what cannot, and why."""
    from autocompress.engine.prepare import prepare
    from autocompress.graph.reach import reach
    from autocompress.report.inspection import inspection_json, inspection_tables

    settings = Settings(
        task=task,
        model=model,
        data_root=data_root,
        image_size=image_size,
        exclude=patterns_of(exclude),
        at_least=parse_shares(patterns_of(at_least)),
    )
    prepared = prepare(task, settings)
    shares = reach(prepared.model, prepared.analysis, prepared.profile)
    if as_json:
        print(json.dumps(inspection_json(prepared.analysis, prepared.profile, shares), indent=2))
    else:
        print_table(inspection_tables(prepared.analysis, prepared.profile, shares))


@contextmanager
def _display(quiet: bool, json_lines: bool, interruption: Interruption) -> Iterator[Progress]:
    """What shows the search while it runs, and where it was interrupted before any trial."""
    from autocompress.report import JsonLinesProgress, Progress, shown_progress

    if quiet and json_lines:
        raise SettingsError("--quiet and --json-lines must not be given together.")
    # As Python advises for applications: warnings of libraries are their authors' to read, or who asks.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    progress = JsonLinesProgress() if json_lines else Progress() if quiet else shown_progress()
    try:
        yield progress
    except KeyboardInterrupt:
        progress.close()
        print_error("interrupted before any trial; the same command starts again")
        raise typer.Exit(INTERRUPTED + (interruption.signum or signal.SIGINT)) from None
    finally:
        progress.close()


def _end_at_once(signum: int) -> None:
    """End this process, and Ray's with it, which do not outlive it."""
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\n")  # the live display hides the cursor
        sys.stderr.flush()
    os._exit(INTERRUPTED + signum)
