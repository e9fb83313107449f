"""How a plan is carried out: one file per kind of edit, each proven against the masked model."""

from autocompress.surgery.carry_out import Materialized, materialize

__all__ = ["Materialized", "materialize"]
