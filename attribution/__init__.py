"""What explanations are made of: gradients of the network, regions with Shapley values, histories, evidence for a map.

The methods for one scan, SHAP and Grad-CAM, are in `explain.py`. Pictures, files and the choice of the scans to explain
are in `reporting`.
"""
