"""Layers from and to other libraries' descriptions of batch normalization."""
