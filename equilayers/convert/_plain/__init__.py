r"""`to_plain`: layers folded into torch's own modules, and torch.fx graphs for pools and blurs."""
