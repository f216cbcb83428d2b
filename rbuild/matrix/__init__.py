"""Many builds: every combination, on this machine or on a Dask cluster.

It imports ``bench`` for the modes, and starts rbuild's own command line for each build.
"""
