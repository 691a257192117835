"""Survival analysis without PyTorch: how a cohort's visits become predictions, and how good predictions are.

Here are landmarks and the preparation of visits, the Cox model and the link, the predictor, metrics with their
intervals, rivals, and both kinds of cross-validation. The T-LSTM itself is in `tlstm.py`, what reads a cohort in
`cohort`, and what shows results in `reporting`.
"""
