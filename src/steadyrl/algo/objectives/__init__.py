"""Objectives, a module for each family; `base` says what an objective is."""
