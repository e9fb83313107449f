"""Sizes that modules of the user's own classes know by attributes follow what is cut."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from autocompress.graph import analyse
from autocompress.surgery import apply, check_equal, edits_from_json, joined, keep_units
from tests.graph.zoo import Projection, Projections


def test_a_class_that_keeps_its_sizes_stays_itself_and_says_the_new_ones(images: Tensor) -> None:
    model = Projections().eval()
    cut = keep_units(model, analyse(model, images), {"enter": [0, 3, 4], "wide": range(7)}, images)
    assert type(cut.model) is Projections
    sizes = {name: (layer.nx, layer.nf) for name, layer in cut.model.named_children()}
    assert sizes == {"enter": (24, 3), "wide": (3, 7), "narrow": (7, 3), "head": (3, 5)}
    again = apply(
        Projections().eval(), edits_from_json(json.loads(json.dumps([cut.edits[0].to_json()]))), images
    )
    again.load_state_dict(cut.model.state_dict())
    check_equal(again, cut.model, images, "rebuilding")


def test_later_cuts_say_the_last_sizes(images: Tensor) -> None:
    model = Projections().eval()
    first = keep_units(model, analyse(model, images), {"wide": range(9)}, images)
    second = keep_units(first.model, analyse(first.model, images), {"wide": range(4)}, images)
    (edit,) = joined((*first.edits, *second.edits))
    again = apply(Projections().eval(), [edit], images)
    assert (again.wide.nf, again.narrow.nx) == (4, 4)
    again.load_state_dict(second.model.state_dict())
    check_equal(again, second.model, images, "rebuilding")


def test_a_size_that_may_be_another_leaves_the_graph(images: Tensor) -> None:
    class Square(nn.Module):
        """Its first layer reads as many features as it makes: which of them `nf` is cannot be known."""

        def __init__(self) -> None:
            super().__init__()
            self.enter, self.head = Projection(24, 24), nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.enter(x.flatten(2).reshape(-1, 8, 24)))).mean(1)

    model = Square().eval()
    cut = keep_units(model, analyse(model, images), {"enter": [0, 5, 9]}, images)
    assert type(cut.model) is not Square
    assert check_equal(cut.model, cut.masked, images, "surgery") < 1e-5
    assert cut.model.head.in_features == 3


def test_gpt2s_own_layers_are_cut_within_their_class() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = {"input_ids": torch.randint(1, 50, (2, 6))}
    config = GPT2Config(
        vocab_size=50, n_embd=24, n_layer=1, n_head=3, n_positions=8, bos_token_id=1, eos_token_id=1
    )
    model = GPT2LMHeadModel(config).eval()
    analysis = analyse(model, tokens)
    stream, heads, hidden = (group.name for group in analysis.groups)
    assert [group.width for group in analysis.groups] == [24, 3, 96]
    keep = {stream: range(0, 24, 2), hidden: range(10)}
    cut = keep_units(model, analysis, keep, tokens)
    assert type(cut.model) is GPT2LMHeadModel
    mlp = cut.model.transformer.h[0].mlp
    assert [(mlp.c_fc.nx, mlp.c_fc.nf), (mlp.c_proj.nx, mlp.c_proj.nf)] == [(12, 10), (10, 12)]
    # How many heads there are is written in its code: their graph is cut.
    without_heads = keep_units(model, analysis, {heads: [1]}, tokens)
    assert check_equal(without_heads.model, without_heads.masked, tokens, "surgery") < 1e-5
    assert without_heads.model.transformer.h[0].attn.c_attn.nf == 3 * 8
