r"""Hypothesis strategies: groups, their elements, images, regular features, and layers with inputs they accept.

A property test of a layer of your own, for every group, size and element:

    import torch
    from hypothesis import given
    from hypothesis import strategies as st
    from equilayers.groups import CyclicRotation, Dihedral
    from equilayers.testing.strategies import elements, groups, images

    def my_layer(x):
        return x - x.mean((-2, -1), keepdim=True)

    @given(st.data(), groups(CyclicRotation, Dihedral))
    def test_my_layer_is_equivariant(data, group):
        x, g = data.draw(images(group)), data.draw(elements(group))
        torch.testing.assert_close(my_layer(group.act(g, x)), group.act(g, my_layer(x)), rtol=0, atol=1e-5)

What fails is shrunk: to a small group and image, of zeros and small whole numbers if they will do.
"""

try:
    from equilayers.testing.strategies._layers import conv_settings, layers
    from equilayers.testing.strategies._tensors import elements, features, groups, images, spaces
except ImportError as error:
    hint = "Run pip install 'equilayers[hypothesis]'."
    raise ImportError(f"equilayers.testing.strategies: expected hypothesis to be installed. {hint}") from error

__all__ = ["conv_settings", "elements", "features", "groups", "images", "layers", "spaces"]
