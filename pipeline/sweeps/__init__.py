"""Many runs of one recipe, one table.

`grid.py` reads the grid, `points.py` makes and validates its points before anything is computed, `run.py` runs them one
after another in one store, `on_ray.py` trains them side by side on a cluster first, `table.py` sums up over seeds and
`page.py` draws it.
"""
