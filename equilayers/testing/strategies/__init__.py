r"""Hypothesis strategies: groups, their elements, images, regular features, and layers with inputs they accept.

What fails is shrunk: to a small group and image, of zeros and small whole numbers if they will do.
"""

try:
    from equilayers.testing.strategies._layers import conv_settings, layers
    from equilayers.testing.strategies._tensors import elements, features, groups, images, spaces, vectors
except ImportError as error:
    hint = "Run pip install 'equilayers[hypothesis]'."
    raise ImportError(f"equilayers.testing.strategies: expected hypothesis to be installed. {hint}") from error

__all__ = ["conv_settings", "elements", "features", "groups", "images", "layers", "spaces", "vectors"]
