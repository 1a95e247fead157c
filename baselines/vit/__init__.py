r"""Vision transformers (`models`), and their training on images turned by quarter turns and mirrors (`runs`)."""

from baselines.vit.models import vit

__all__ = ["vit"]
