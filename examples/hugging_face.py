"""A Hugging Face model that names the tokens of a text: batches are dictionaries, lengths vary."""

import os

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from transformers import (
    DataCollatorForTokenClassification,
    DistilBertConfig,
    DistilBertForTokenClassification,
)

import autocompress as ac

IGNORED = -100  # the label of what is padded
WORDS, KINDS = 60, 3


class Pad:
    """What a tokenizer does for the collator: fills rows up to the longest of a batch."""

    padding_side = "right"

    def pad(self, rows: list[dict[str, list[int]]], **options: object) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        ids = [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]
        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def sentences(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Words, and of which kind each is."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(6, 13, (), generator=generator))
        words = torch.randint(1, WORDS, (length,), generator=generator)
        rows.append({"input_ids": words.tolist(), "labels": (words % KINDS).tolist()})
    return rows


def make_model() -> nn.Module:
    sizes = {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": 16}
    return DistilBertForTokenClassification(DistilBertConfig(vocab_size=WORDS, num_labels=KINDS, **sizes))


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


class Accuracy(MulticlassAccuracy):
    """Takes logits as Hugging Face's models return them, `(N, tokens, kinds)`."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        super().update(logits.movedim(-1, 1), labels)


def loader(count: int, seed: int) -> DataLoader[dict[str, list[int]]]:
    collate = DataCollatorForTokenClassification(Pad(), label_pad_token_id=IGNORED)
    return DataLoader(sentences(count, seed), batch_size=32, collate_fn=collate)


task = ac.Task(
    model=make_model,
    train=loader(512, 0),
    val=loader(128, 1),
    test=loader(128, 2),
    loss=loss,
    metrics={"accuracy": Accuracy(KINDS, average="micro", ignore_index=IGNORED)},
    recipe=ac.Recipe(epochs=4, lr=3e-3),
    dynamic={"input_ids": {1: "length"}, "attention_mask": {1: "length"}},
    name="tokens",
)
result = ac.search(
    task,
    objectives=["accuracy", "bytes"],
    trials=int(os.environ.get("EXAMPLE_TRIALS", "12")),
)
for point in result.front:
    accuracy = point.test_metrics["accuracy"]
    print(f"trial {point.trial}: accuracy {accuracy:.3f}, {point.ratios['bytes']:.0%} of the bytes")
