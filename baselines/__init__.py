r"""The study of weight tying against augmentation and regularisation, and further experiments.

study: of Moskalev et al. 2023. shift: shift invariance. rotmnist: rotated MNIST. common: what every command uses.
templates: the page of `report`.
"""
