r"""What every command of the package uses.

runner: jobs, executors, resuming. data, download, idx: data sets. files, tables, figures: what is written. terminal:
command lines. distributed: processes of torchrun.
"""
