"""Built-in models, any torchvision classification model, and models of the user's own."""

from autocompress.models.registry import BUILT_IN, model_factory

__all__ = ["BUILT_IN", "model_factory"]
