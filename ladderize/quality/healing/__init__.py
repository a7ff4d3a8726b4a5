"""Healing: the trainer, its losses and its teacher."""
