"""A cohort's tables and scans: files read and checked, subjects split into parts, voxels placed on a grid.

The simulated cohort lives here too. Not here: how a scan becomes the network's volume (`data`), and any setting or
model. Nothing in this package imports TensorFlow or PyTorch.
"""
