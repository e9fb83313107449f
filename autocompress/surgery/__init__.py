"""Surgery: edits as data, a kind in each file, and how each is carried out on any model."""

from autocompress.surgery.biases import absorb_biases
from autocompress.surgery.branches import AddAttention, DropBranches, GateBranches, RemoveGates
from autocompress.surgery.bridges import BridgeEnds, BridgeLayers
from autocompress.surgery.channels import KeepChannels, KeptPositions, groups_to_rewrite, keep_units
from autocompress.surgery.codecs import Encode
from autocompress.surgery.edits import Edit, apply, edits_from_json, joined
from autocompress.surgery.equivalence import check_equal
from autocompress.surgery.factors import Factorize
from autocompress.surgery.untouched import Untouched

__all__ = [
    "AddAttention",
    "BridgeEnds",
    "BridgeLayers",
    "DropBranches",
    "Edit",
    "Encode",
    "Factorize",
    "GateBranches",
    "KeepChannels",
    "KeptPositions",
    "RemoveGates",
    "Untouched",
    "absorb_biases",
    "apply",
    "check_equal",
    "edits_from_json",
    "groups_to_rewrite",
    "joined",
    "keep_units",
]
