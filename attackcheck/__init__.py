"""attackcheck tries to break robustness certificates of semantic-segmentation networks."""
