r"""Blurring and polyphase sampling.

axes: what an output reads. blur, windows: the two filters. custom_ops: operators of torch. selection: which polyphase
component. gather: taking it and putting it back.
"""
