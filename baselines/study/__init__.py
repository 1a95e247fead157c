r"""The study of Moskalev et al. 2023.

command, config, protocols: what is asked for. runner, jobs, runs, training: carrying it out. measures, tables, report:
what is shown. parts: its parts one by one.
"""
