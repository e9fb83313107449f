"""What the tests of several methods do with a session's edits."""

from __future__ import annotations

import json

from torch import Tensor, nn

from autocompress.methods.base import Finished
from autocompress.surgery import apply, edits_from_json


def rebuilt(finished: Finished, fresh: nn.Module, example: Tensor) -> nn.Module:
    """A fresh model after the session's edits, as read from JSON, with the tensors of the finished one."""
    edits = edits_from_json(json.loads(json.dumps([edit.to_json() for edit in finished.edits])))
    assert edits == finished.edits
    again = apply(fresh, edits, example)
    again.load_state_dict(finished.model.state_dict())
    return again
