r"""What a layer costs: ratios of medians against a peer in the same run."""
