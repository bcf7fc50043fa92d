"""Measurements and demonstrations; each module is a command of its own."""
