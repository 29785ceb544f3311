"""Figures of tuning."""
