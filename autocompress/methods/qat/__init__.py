"""QAT: fine-tuning at the numbers that an int8 file will have (Jacob et al., arXiv 1712.05877)."""

from autocompress.methods.qat.config import Config
from autocompress.methods.qat.session import Qat

__all__ = ["Config", "Qat"]
