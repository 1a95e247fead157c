r"""Shift invariance of max, blur and polyphase pooling.

command, runs: what is trained and kept. scenes, models, measures: data, networks, errors. tables, figures: what is
shown. toy_signal: pooling of a signal by hand.
"""
