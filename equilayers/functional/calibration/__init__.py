r"""The constants of the cost model, measured on this machine: `_cases` has what is timed, `_fit` what comes of it."""
