"""One rule per operator: how units travel through it. Importing this package registers them all."""

from autocompress.graph.rules import elements, layers, products, recurrent, views

__all__ = ["elements", "layers", "products", "recurrent", "views"]
