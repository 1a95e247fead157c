r"""A pretrained vision transformer made equivariant: trained on (`runs`), its command and its pictures (`curves`)."""
