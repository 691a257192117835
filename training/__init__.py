"""Stage 1's training: one step, the loop over them, weights, devices, augmentation, and the features of every scan.

The network itself is in `model.py`, the losses in `loss.py`, what happens at the end of an epoch in `callbacks.py`.
"""
