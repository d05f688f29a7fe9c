"""The mathematics of the Hierarchical Reasoning Model (arXiv 2506.21734): no files, no logging, no global state."""
