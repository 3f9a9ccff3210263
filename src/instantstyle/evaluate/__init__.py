"""Measuring what a model and a method do."""
