"""The arguments and options of the commands; `autocompress COMMAND --help` prints their texts."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from autocompress.cli.short_help import show_all


def whole(text: object) -> int:
    """A whole number, or an error that names what was given."""
    try:
        return int(str(text))
    except ValueError:
        raise typer.BadParameter(f"must be a whole number but got {text!r}.") from None


def number(text: object) -> float:
    """A number, or an error that names what was given."""
    try:
        return float(str(text))
    except ValueError:
        raise typer.BadParameter(f"must be a number but got {text!r}.") from None


def Whole(help: str | None = None) -> Any:
    """An option that takes a whole number."""
    return typer.Option(help=help, parser=whole, metavar="N")


def Number(help: str | None = None) -> Any:
    """An option that takes a number."""
    return typer.Option(help=help, parser=number, metavar="X")


Run = Annotated[
    str, typer.Argument(help="Folder that a search wrote, or its address, as s3://bucket/run.", metavar="RUN")
]
_TASK = typer.Argument(
    metavar="TASK",
    help="digits, mnist, fashion_mnist, cifar10, npz:FILE, imagefolder:DIR, random:3x224x224, "
    "package.module:function or path/file.py:function.",
)
TaskName = Annotated[str, _TASK]
TaskNameOrNone = Annotated[str | None, _TASK]
Model = Annotated[
    str | None,
    typer.Option(
        help="mlp, lenet300, small_cnn, resnet20, resnet56, a torchvision model or module:function."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="File of trained weights (.pt, .pth, .ckpt, .safetensors, .npz); validation is then half "
        "of the test split."
    ),
]
DataRoot = Annotated[str | None, typer.Option(help="Folder of data sets. [default: $AUTOCOMPRESS_DATA]")]
ImageSize = Annotated[int, Whole(help="Side of an image folder's images, in pixels.")]
Methods = Annotated[
    str | None, typer.Option(help="Comma-separated. [default: all that fit the model and the artifact]")
]
Space = Annotated[
    list[str] | None,
    typer.Option(help="FILE.py or module with suggest(trial, profile); repeatable."),
]
Objectives = Annotated[
    str,
    typer.Option(
        help="At most 3 of accuracy, bytes, params, macs, latency, memory, acc_comp, or metrics of the "
        "task, as 'f1:max'."
    ),
]
Constraints = Annotated[
    list[str] | None,
    typer.Option(
        help="'accuracy>=ref-0.005', 'bytes<=0.5*ref', 'none'; repeatable. [default: accuracy>=0.9*ref, "
        "and one of the costs <=ref]"
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="Spend the trials on the cheapest model with 'accuracy>=ref-0.01', or the best one with "
        "'bytes<=0.2*ref'.",
    ),
]
Trials = Annotated[
    int,
    Whole(help="Compressed models to try."),
]
Timeout = Annotated[
    str | None,
    typer.Option(
        help="Time limit: 90s, 30m, 2h. Trials end a tenth of it before, at most a minute, so that "
        "the front can be measured."
    ),
]
TrialTimeout = Annotated[
    str | None,
    typer.Option(help="Time limit of one trial, which fails where it takes longer; the reference has none."),
]
Epochs = Annotated[int | None, Whole(help="Of one trial. [default: the task's]")]
StepsPerEpoch = Annotated[
    int | None,
    Whole(
        help="Batches of an epoch, as training data without a length or an end need. [default: the task's]"
    ),
]
Workers = Annotated[int | None, Whole(help="Trials at a time. [default: as many as there are CPUs]")]
CpusPerTrial = Annotated[float, Number("CPUs of one trial; also its threads.")]
GpusPerTrial = Annotated[float, Number("GPUs of one trial.")]
Sampler = Annotated[str, typer.Option(help="auto, tpe, nsga2, gp or random.")]
EarlyStopping = Annotated[
    bool, typer.Option(help="Stop trials that others are ahead of in the objectives after 1, 3, 9, … epochs.")
]
Distillation = Annotated[
    bool,
    typer.Option(help="Let trials learn from a teacher too: the best model so far, or the task's own."),
]
Seed = Annotated[int, Whole("Of everything random.")]
Artifact = Annotated[
    str,
    typer.Option(
        help="What is deployed, and measured: pt2, onnx, onnx-int8, onnx-int4, openvino or openvino-int8."
    ),
]
LatencyBatchSize = Annotated[int, Whole(help="Inputs per measured call.")]
LatencyThreads = Annotated[int, Whole(help="Threads of the measured process, at most.")]
LatencyBy = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FUNCTION",
        help="Your own function of an artefact's path that returns the milliseconds of a call, on a board, a "
        "GPU or a server; it gets batch_size and threads too where it takes arguments of these names.",
    ),
]
Tau = Annotated[float, Number(help="Weight of accuracy in acc_comp, 0 to 1.")]
WarmStart = Annotated[
    str | None,
    typer.Option(
        metavar="RUN",
        help="Start from another run's front: of the same model and data its models are measured again and "
        "may be started from; of a similar model its moves come first.",
    ),
]
Keep = Annotated[
    str,
    typer.Option(
        help="Which checkpoints stay in RUN: near (of the front, what is within noise of it, and what trials "
        "may start from), front (at the end that alone) or all."
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LAYERS",
        help="Layers that no method changes: names, patterns as 'layer1.*', or classes as BatchNorm2d.",
    ),
]
AtLeast = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LAYERS=SHARE",
        help="The least share of layers' channels, or of their rank, that stays: 'layer2.*=0.5'.",
    ),
]
Out = Annotated[
    str | None, typer.Option(help="RUN: a folder, or s3://bucket/run. [default: runs/<task>-<model>]")
]
Storage = Annotated[
    str | None,
    typer.Option(
        envvar="AUTOCOMPRESS_STORAGE",
        help="Optuna storage URL, such as postgresql://user@host/name; its password is not written anywhere. "
        "[default: SQLite in RUN]",
    ),
]
RayAddress = Annotated[
    str | None, typer.Option(help="Of a running Ray cluster; its machines need not see the folder RUN.")
]
MlflowUri = Annotated[
    str | None, typer.Option("--mlflow", metavar="URI", help="Log trials to this MLflow server or folder.")
]
WandbProject = Annotated[
    str | None,
    typer.Option("--wandb", metavar="PROJECT", help="Log trials to this project of Weights & Biases."),
]
ConfigFile = Annotated[str | None, typer.Option(help="TOML file of these options; the command line wins.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress, only the front at the end.")]
JsonLines = Annotated[
    bool,
    typer.Option("--json-lines", help="Print events, and the front at the end, as JSON objects, one a line."),
]
HelpAll = Annotated[
    bool, typer.Option("--help-all", is_eager=True, callback=show_all, help="Show every option and exit.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Output = Annotated[str | None, typer.Option("-o", "--output", help="File to write.")]
Folder = Annotated[
    str | None,
    typer.Option(help="Folder to write: the model, a model card, predict.py, labels, preprocessing."),
]
TrialOfFront = Annotated[int | None, Whole(help="Number of a trial of the front.")]
PickRule = Annotated[str | None, typer.Option("--pick", help="knee or target")]
Format = Annotated[
    str | None,
    typer.Option(
        help="pt2 (PyTorch, in Python), onnx (ONNX Runtime and others, in C++ and more), openvino (in "
        "Python and C++, a .xml with a .bin) or safetensors (tensors for ac.rebuild; a file's alone). "
        "[default: by the file's ending; of a folder what was measured]"
    ),
]
Opset = Annotated[int | None, Whole(help="Of ONNX's operators. [default: 18 to 20]")]
InputNames = Annotated[str | None, typer.Option(help="Of an ONNX file, comma-separated.")]
OutputNames = Annotated[str | None, typer.Option(help="Of an ONNX file, comma-separated.")]
ClassNames = Annotated[
    str | None, typer.Option(help="In an ONNX file's metadata, comma-separated. [default: the task's]")
]
EmbedPreprocessing = Annotated[
    bool,
    typer.Option(
        "--embed-preprocessing",
        help="Normalise inputs inside of an ONNX file: it takes them as the data have them, such as "
        "pixels of 0 to 255, as floats.",
    ),
]
DynamicSize = Annotated[
    bool, typer.Option("--dynamic-size", help="Leave height and width of an ONNX file's images free.")
]
