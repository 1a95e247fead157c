r"""The study of Moskalev et al. 2023.

command, config: what is asked for. runner, runs, training: carrying it out. models, measures: the
networks and their errors. tables, report: what is shown. parts: its parts one by one.
"""
