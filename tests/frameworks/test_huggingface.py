"""Tasks of Hugging Face models, made from configurations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import autocompress as ac
from autocompress.engine.prepare import prepare
from autocompress.engine.settings import Settings
from autocompress.errors import TaskError
from autocompress.training.loop import Trainer

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}


class Rows(Dataset[dict[str, Any]]):
    """Rows by name, of `length` tokens or of several lengths; with a column that no model knows."""

    def __init__(self, labels: Tensor, lengths: tuple[int, ...] = (8,)) -> None:
        self.labels, self.lengths = labels, lengths
        self.tokens = torch.randint(1, 50, (len(labels), 16), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> dict[str, Any]:
        length = self.lengths[position % len(self.lengths)]
        tokens = self.tokens[position, :length]
        label = self.labels[position]
        row = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "row": position, "text": "a"}
        return row | {"labels": label[:length] if label.dim() and len(label) == 16 else label}


def bert(head: str = "SequenceClassification", **config: Any) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, f"BertFor{head}")(transformers.BertConfig(**SMALL, **config)).eval()


def gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    return transformers.GPT2LMHeadModel(config).eval()


CLASSES = torch.arange(48) % 3
TOKENS = torch.randint(0, 5, (48, 16), generator=torch.Generator().manual_seed(1))


def own_loss(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """What the model computes itself of its labels."""
    loss: Tensor = model(**batch).loss
    return loss


@pytest.mark.parametrize(
    ("model", "labels"),
    [
        (bert(num_labels=3), CLASSES),
        (bert(num_labels=1), torch.randn(48)),
        (bert(num_labels=2, problem_type="regression"), torch.randn(48, 2)),
        (bert(num_labels=4, problem_type="multi_label_classification"), torch.rand(48, 4).round()),
        (bert("TokenClassification", num_labels=5), TOKENS),
        (bert("MaskedLM"), TOKENS.where(TOKENS > 1, -100)),
        (gpt2(), TOKENS),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_loss_is_the_models_own(model: Any, labels: Tensor) -> None:
    options = {"metrics": {"size": lambda outputs, targets: float(outputs.abs().mean())}}
    task = ac.from_transformers(model, Rows(labels), Rows(labels), **options)
    batch = next(iter(task.train))
    assert task.inputs_of(batch).keys() == {"input_ids", "attention_mask"}
    known = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        wanted = model(**known).loss
        answer = task.answer(model(**task.inputs_of(batch)))
        assert task.loss(answer, task.targets_of(batch)).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_metrics_see_classes_of_tokens_beside_the_tokens_that_follow() -> None:
    model = gpt2()
    task = ac.from_transformers(model, Rows(TOKENS), Rows(TOKENS))
    batch = next(iter(task.val))
    with torch.no_grad():
        seen = task.seen(model(**task.inputs_of(batch)))
    assert seen.shape == (16, 50, 8)
    targets = task.targets_of(batch)
    assert torch.equal(targets[:, :-1], batch["labels"][:, 1:])
    assert (targets[:, -1] == -100).all()
    prepare(task, Settings())


def test_loaders_batch_rows_as_transformers_does_and_given_ones_stay() -> None:
    train, given = Rows(CLASSES), DataLoader(Rows(CLASSES), 4)
    task = ac.from_transformers(bert(num_labels=3), train, given, batch_size=12)
    assert (task.train.batch_size, task.train.dataset) == (12, train)
    assert task.val is given
    orders = [torch.cat([batch["labels"] for batch in task.train]) for _ in range(2)]
    assert not torch.equal(*orders)

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        tokens = nn.utils.rnn.pad_sequence([row["input_ids"] for row in rows], batch_first=True)
        mask = (tokens > 0).long()
        return {
            "input_ids": tokens,
            "attention_mask": mask,
            "labels": torch.stack([r["labels"] for r in rows]),
        }

    varying = Rows(CLASSES, lengths=(4, 7, 9))
    task = ac.from_transformers(bert(num_labels=3), varying, varying, collate=collate, batch_size=2)
    assert {batch["input_ids"].shape[1] for batch in task.train} <= {4, 7, 9}


def test_its_weights_are_the_references_unless_it_is_to_be_trained() -> None:
    model, rows = bert(num_labels=3), Rows(CLASSES)
    for trained in (True, False):
        task = ac.from_transformers(model, rows, rows, trained=trained)
        assert torch.equal(task.model().classifier.weight, model.classifier.weight)
        assert (task.weights is not None) is trained
    assert (task.name, task.model_name) == ("bertforsequenceclassification", "BertForSequenceClassification")


def test_names_of_its_labels_are_the_classes_unless_they_are_placeholders() -> None:
    rows = Rows(CLASSES)
    named = bert(id2label={0: "good", 1: "bad", 2: "ugly"}, label2id={"good": 0, "bad": 1, "ugly": 2})
    assert ac.from_transformers(named, rows, rows).classes == ("good", "bad", "ugly")
    assert ac.from_transformers(bert(num_labels=3), rows, rows).classes is None


def test_what_is_not_known_of_a_model_is_asked_for() -> None:
    rows = Rows(CLASSES)
    with pytest.raises(TaskError, match="loss must be given for a BertForQuestionAnswering"):
        ac.from_transformers(bert("QuestionAnswering"), rows, rows)
    with pytest.raises(TaskError, match="model must be a Hugging Face model but is a Linear"):
        ac.from_transformers(nn.Linear(2, 2), rows, rows)
    several = Rows(torch.rand(48, 3).round())
    task = ac.from_transformers(bert(num_labels=3), several, several)
    with pytest.raises(TaskError, match=r"need config\.problem_type = 'multi_label_classification'"):
        prepare(task, Settings())


def test_a_step_that_has_the_model_compute_its_loss_trains_it() -> None:
    rows = Rows(CLASSES)

    def step(model: Any, batch: Mapping[str, Any]) -> Tensor:
        return own_loss(
            model, {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "labels")}
        )

    task = ac.from_transformers(bert(num_labels=3), rows, rows, recipe=ac.Recipe(epochs=1), step=step)
    Trainer(task, 1).fit(model := task.model(), 1)
    assert not torch.equal(model.classifier.weight, bert(num_labels=3).classifier.weight)
    prepared = prepare(task, Settings())
    # Its graph does not know of labels.
    assert "depth" not in prepared.spaces
    assert any("does not train the model's graph" in note for note in prepared.notes)


@pytest.mark.usefixtures("shared_ray")
def test_a_search_runs_to_a_front(tmp_path: Path) -> None:
    rows = Rows(CLASSES)
    task = ac.from_transformers(bert(num_labels=3), rows, rows, recipe=ac.Recipe(epochs=1))
    options = {"methods": ["alcn"], "trials": 1, "workers": 1, "constraints": [], "progress": ac.Progress()}
    result = ac.search(task, out=tmp_path / "run", **options)
    point = result.front[-1]
    assert point.ratios["bytes"] < 1
    inputs = task.inputs_of(next(iter(task.val)))
    logits = point.load()(**inputs)
    logits = logits["logits"] if isinstance(logits, Mapping) else logits
    assert F.softmax(logits, 1).shape == (16, 3)
