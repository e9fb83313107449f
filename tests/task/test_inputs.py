"""Inputs and outputs of any plain shape."""

from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.task.batches import split_batch
from autocompress.task.inputs import (
    Returned,
    Varying,
    answer,
    call,
    concatenated,
    dynamic_shapes,
    from_json,
    plain,
    repeated_rows,
    rows,
    sizes,
    split_rows,
    take,
    to_json,
)

X, Z, Y = torch.arange(6.0).reshape(3, 2), torch.arange(3), torch.tensor([0, 1, 0])
Pair = namedtuple("Pair", "x y")


class Added(nn.Module):
    def forward(self, a: Tensor, b: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return scale * (a if b is None else a + b)


@dataclass
class Output:
    logits: Tensor
    cache: object = None


@pytest.mark.parametrize(
    ("batch", "inputs"),
    [
        ((X, Y), X),
        ([X, Y], X),
        (Pair(X, Y), X),
        (((X, Z), Y), (X, Z)),
        ([[X, Z], Y], (X, Z)),
        ((X, Z, Y), (X, Z)),
        (({"a": X, "b": Z}, Y), {"a": X, "b": Z}),
        ({"a": X, "labels": Y}, {"a": X}),
        ({"a": X, "target": Y}, {"a": X}),
        (UserDict(a=X, b=Z, label=Y), {"a": X, "b": Z}),
    ],
)
def test_a_batch_is_inputs_and_targets(batch: Any, inputs: Any) -> None:
    assert split_batch(batch) == (inputs, Y)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, r"batches must be \(inputs, targets\) pairs, or mappings with labels, but one is a Tensor"),
        ((X,), "but one is a tuple"),
        ({"a": X}, "batches that are mappings must have one of labels, label, targets, target but have a"),
    ],
)
def test_other_batches_are_refused_with_the_remedy(batch: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message) as caught:
        split_batch(batch)
    assert "inputs=fn(batch) and targets=fn(batch)" in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (X, X),
        ((X, X), 2 * X),
        ({"a": X, "scale": 3.0}, 3 * X),
        (Varying((X, X), None), 2 * X),
    ],
)
def test_a_model_is_called_with_arguments(inputs: Any, expected: Tensor) -> None:
    assert torch.equal(call(Added(), inputs), expected)


def test_outputs_are_plain_containers_of_tensors() -> None:
    assert plain(X) is X
    assert plain(Output(X, object())) == {"logits": X}
    assert plain({"logits": X, "loss": None, "cache": [object()]}) == {"logits": X}
    assert plain((X, None, [Z, {"a": X}])) == (X, [Z, {"a": X}])
    named = plain(Pair(X, Z))
    assert type(named) is tuple
    assert named[1] is Z
    assert plain(None) is None


def test_the_answer_is_the_only_tensor_or_logits_or_the_first() -> None:
    assert answer(X) is X
    assert answer(Output(X)) is X
    assert answer({"features": Z, "logits": X}) is X
    assert answer((X, Z)) is X
    with pytest.raises(
        TaskError, match="the model must return a tensor, or several in a tuple or a dict, but"
    ):
        answer(3)


def test_named_outputs_can_be_asked_for_as_a_hugging_face_model_has_them() -> None:
    outputs = Returned({"logits": X, "hidden": Z})
    assert outputs.logits is outputs["logits"] is outputs[0] is X
    assert outputs[:1] == [X]
    with pytest.raises(AttributeError, match="loss"):
        _ = outputs.loss


def test_the_loss_sees_what_outputs_makes_of_several_tensors() -> None:
    def task(outputs: Any) -> ac.Task:
        return ac.Task(Added, [(X, Y)], outputs=outputs)

    assert task(None).answer((X, 2 * X)) is X
    assert torch.equal(task(lambda out: out[1]).answer((X, 2 * X)), 2 * X)
    assert torch.equal(task(lambda out: out.main).answer({"aux": X, "main": 2 * X}), 2 * X)
    # Labels have no gradient, and a single answer is the loss's as it is.
    assert task(lambda out: out[1].argmax(1)).answer((X, 2 * X)) is X
    assert task(lambda out: out.softmax(1)).answer(X) is X
    assert task(lambda out: out.hidden).answer({"logits": X, "hidden": 2 * X}) is X


def test_rows_are_taken_of_what_runs_over_the_batch() -> None:
    positions = torch.arange(7)
    inputs = {"a": X, "positions": positions, "scale": 2.0}
    assert rows(inputs) == 3
    two = take(inputs, slice(2))
    assert torch.equal(two["a"], X[:2])
    assert two["positions"] is positions
    assert two["scale"] == 2.0
    assert torch.equal(repeated_rows(X, 5), X[[0, 1, 2, 0, 1]])
    assert [rows(part) for part in split_rows((X, Z), 2)] == [2, 1]
    assert sizes((X, positions)) == [(2,), (7,)]
    with pytest.raises(TaskError, match="inputs must hold a tensor whose first dimension is the batch"):
        rows((2.0,))


def test_batches_of_one_size_are_joined_and_others_left_out() -> None:
    joined = concatenated([(X, Z), (torch.zeros(4, 5), Z), (2 * X, Z + 3)])
    assert torch.equal(joined[0], torch.cat([X, 2 * X]))
    assert joined[1].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "inputs",
    [
        X,
        (X, Z),
        {"a": X, "b": X, "scale": 0.5},
        Varying({"a": X}, {"a": {"1": "length"}}),
        ([X, X],),
    ],
)
def test_inputs_of_the_same_shapes_are_made_from_json(inputs: Any) -> None:
    made = from_json(to_json(inputs), batch_size=3)
    assert type(made) is type(inputs)
    assert sizes(made) == sizes(inputs)
    assert rows(made) == 3
    if isinstance(inputs, Varying):
        assert made.dynamic == {"a": {"1": "length"}}


def test_integers_are_filled_with_one_that_the_model_is_known_to_take() -> None:
    assert from_json(to_json((X, Z + 4)))[1].tolist() == [4, 4]


def test_the_batch_is_free_and_so_are_sizes_that_vary() -> None:
    seen = dynamic_shapes(Added(), (X, X), 1)
    assert seen["a"].keys() == {0}
    assert seen["a"][0] is seen["b"][0]
    seen = dynamic_shapes(Added(), Varying({"b": X, "a": X, "scale": 2.0}, {"a": {1: "length"}}), 1)
    assert seen["a"].keys() == {0, 1}
    assert seen["b"].keys() == {0}
    assert seen["scale"] is None


@pytest.mark.parametrize(
    ("inputs", "dynamic", "message"),
    [
        ((X, X), {1: "length"}, "dynamic must be a tuple of 2 entries, one for each input, but is a mapping"),
        ((X, X), ({1: "length"},), "dynamic must have an entry for each of 2 inputs but has 1"),
    ],
)
def test_dynamic_sizes_must_fit_the_inputs(inputs: Any, dynamic: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        dynamic_shapes(Added(), Varying(inputs, dynamic), 1)
