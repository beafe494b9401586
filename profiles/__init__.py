"""Measures anything that looks like a `Runner`: latency, memory, energy, heat, operations, size. Knows no exporter, no
recipe.

Importing this package is free; each probe is its own module (`profiles.latency`, `profiles.flops`, ...).
"""
