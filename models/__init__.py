"""The mathematics of recursive reasoning models, such as HRM (arXiv 2506.21734): no files, no logging."""
