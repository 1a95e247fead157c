r"""Blurring and polyphase sampling.

axes: what an output reads. blur, windows: the two filters. custom_ops: operators of torch. selection: which polyphase
component. gather: taking it and putting it back.
"""

from equilayers.functional._resample.axes import ALGORITHMS as ALGORITHMS
from equilayers.functional._resample.axes import Ints as Ints
from equilayers.functional._resample.axes import Taps as Taps
