"""Architectures of timm and Hugging Face, random weights: is each analysed, compressed, rebuilt and exported?

    python examples/benchmarks/every_family.py [NAME ...]

One line a model as it is done: how many of its parameters ALCN can reach, how many LC; then what is left
after ALCN was asked to keep half of the MACs that groups can shrink and LC has stored the rest at 4 bits: of
the parameters, and of the bytes of `model.pt2`. The compressed model is rebuilt from its folder into a new
one of its class and must put out the same, and its file is loaded again. Two training steps for each method
are all the training there is: accuracy is not what this is about. Ends with 1 where a model fails.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from torch import nn

import autocompress as ac
from autocompress.checkpoint import export_program
from autocompress.checkpoint.program import load_program
from autocompress.errors import AutocompressError, one_line
from autocompress.graph.costs import count_params
from autocompress.graph.proof import relative_difference
from autocompress.task.inputs import call

CLASSES, ROWS, WORDS = 10, 4, 100
TIMM = (
    "resnet10t", "resnet18", "resnext26ts", "seresnext26t_32x4d", "resnetv2_18", "regnety_002",
    "mobilenetv2_035", "mobilenetv3_small_050", "mobilenetv4_conv_small_035", "efficientnet_lite0",
    "tf_efficientnetv2_b0",
    "ghostnet_050", "mnasnet_small", "densenet121", "vgg11_bn", "dla46_c", "convnext_atto", "convnextv2_atto",
    "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224", "mobilevit_xxs", "repvgg_a0",
    "mobileone_s0", "fastvit_t8", "edgenext_xx_small", "poolformerv2_s12", "lcnet_035", "levit_128s",
    "pvt_v2_b0",
)  # fmt: skip
# What these take; the others run at 64 × 64.
SIDES = {
    "vit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224, "mixer_s32_224": 224, "levit_128s": 224,
}  # fmt: skip
TEXT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
HUGGING_FACE: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("ForSequenceClassification", TEXT),
    "Roberta": ("ForSequenceClassification", TEXT),
    "Electra": ("ForSequenceClassification", {**TEXT, "embedding_size": 32}),
    "Albert": ("ForSequenceClassification", {**TEXT, "embedding_size": 32}),
    "DistilBert": ("ForTokenClassification", {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}),
    "GPT2": ("LMHeadModel", {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 32}),
    "Llama": ("ForCausalLM", {**TEXT, "num_key_value_heads": 2}),
    "ViT": ("ForImageClassification", {**TEXT, "image_size": 32, "patch_size": 8}),
}


def timm_task(name: str) -> ac.Task:
    side = SIDES.get(name, 64)
    images = torch.randn(ROWS, 3, side, side, generator=torch.Generator().manual_seed(0))
    return _task(lambda: timm.create_model(name, num_classes=CLASSES), images, (ROWS,), CLASSES)


def hugging_face_task(name: str) -> ac.Task:
    head, options = HUGGING_FACE[name]
    vision = name == "ViT"
    words = {} if vision else {"vocab_size": WORDS, "pad_token_id": 0}
    config = getattr(transformers, f"{name}Config")(**options, **words, num_labels=CLASSES)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, WORDS, (ROWS, 12), generator=generator)
    images = torch.randn(ROWS, 3, 32, 32, generator=generator)
    inputs = {"pixel_values": images} if vision else {"input_ids": tokens}
    each_token = head in ("ForTokenClassification", "LMHeadModel", "ForCausalLM")
    classes = CLASSES if head.endswith("Classification") else WORDS
    model_class = getattr(transformers, f"{name}{head}")
    return _task(lambda: model_class(config), inputs, (ROWS, 12) if each_token else (ROWS,), classes)


def _task(make: Callable[[], nn.Module], inputs: Any, shape: tuple[int, ...], classes: int) -> ac.Task:
    labels = torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(1))

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())

    batches = [(inputs, labels)] * 2
    return ac.Task(make, batches, batches, loss=loss, recipe=ac.Recipe(epochs=2, lr=1e-4))


def measure(name: str) -> tuple[str, float]:
    """One line of the table, and the bytes that are left, relative to the dense model's file."""
    start = time.perf_counter()
    task = hugging_face_task(name) if name in HUGGING_FACE else timm_task(name)
    torch.manual_seed(0)
    model, example = task.model().eval(), task.example()
    params = count_params(model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export_program(model, example, folder / "dense.pt2")
        dense = (folder / "dense.pt2").stat().st_size
        seen = ac.inspect(model, example)
        methods = [ac.Alcn(budget=0.5)] if seen.groups else []
        done = ac.compress(model, task, [*methods, ac.Lc(schemes={"*": ac.Codebook(k=16)})])
        done.save(folder / "saved")
        rebuilt = ac.rebuild(task.model(), folder / "saved").eval()
        with torch.no_grad():
            expected = call(done.model, example)
            equal = relative_difference(expected, call(rebuilt, example))
            loaded = relative_difference(expected, load_program(folder / "saved" / "model.pt2")(example))
        if max(equal, loaded) > 1e-3:
            raise AutocompressError(f"rebuilt {equal:.1e}, loaded {loaded:.1e} from what was compressed")
        left = (folder / "saved" / "model.pt2").stat().st_size / dense
    reach = "  ".join(f"{share:6.0%}" for share in (seen.reach["alcn"].params, seen.reach["lc"].params))
    parameters = count_params(done.model) / params
    seconds = time.perf_counter() - start
    return f"{name:32} {params / 1e6:6.2f} M  {reach}  {parameters:6.0%}  {left:6.0%}  {seconds:5.0f} s", left


def main() -> int:
    """Print the table; 1 where a model fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=[*TIMM, *HUGGING_FACE], metavar="NAME")
    names = parser.parse_args().names
    print(f"{'':32} {'params':>8}  {'ALCN':>6}  {'LC':>6}  {'params':>6}  {'bytes':>6}", flush=True)
    failed, halved = 0, 0
    for name in names:
        try:
            line, left = measure(name)
            halved += left <= 0.5
        except AutocompressError as error:
            line, failed = f"{name:32} {one_line(error)}", failed + 1
        print(line, flush=True)
    print(f"{len(names)} models: {failed} failed, {halved} have at most half of the bytes")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
