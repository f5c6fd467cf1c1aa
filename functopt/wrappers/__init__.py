"""Transforms of transforms."""
