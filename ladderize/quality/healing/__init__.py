"""Healing: the trainer, its losses and its teacher, and a whole run from a folder to a folder."""
