"""Object stores and other file systems that pyarrow knows: the only code that imports it."""

from autocompress.remote.address import is_address, normal_address, refuse_address, secrets_of_address, shown

__all__ = ["is_address", "normal_address", "refuse_address", "secrets_of_address", "shown"]
