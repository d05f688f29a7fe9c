"""The Universal Reasoning Model. Named like the package of its PyTorch code."""
