"""The study: weight tying against augmentation and regularisation."""
