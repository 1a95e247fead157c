r"""What every command of the package uses: data, downloads, files, terminal, worker processes, distributed runs."""
