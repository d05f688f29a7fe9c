"""The Tiny Recursive Model. Named like the package of its PyTorch code, so that `arch.name` of a configuration fits."""
