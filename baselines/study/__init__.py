r"""The study of Moskalev et al. 2023.

command, config, protocols: what is asked for. runner, jobs, runs, training: carrying it out. models, measures: the
networks and their errors. tables, report: what is shown. parts: its parts one by one. deform: a command of its own.
"""
