r"""The measures as torchmetrics classes."""
