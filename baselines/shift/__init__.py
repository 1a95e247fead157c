r"""Shift invariance: command, scenes, models, measures, runs, tables, figures."""
