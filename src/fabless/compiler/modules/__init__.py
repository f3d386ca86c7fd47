"""Modules that are no language model: from `model.module.Module` to one program of a tile."""
