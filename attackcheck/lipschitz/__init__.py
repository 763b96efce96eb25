"""Rigorous upper bounds of Lipschitz constants, from the weights alone: see `bounds` for single operations."""
