"""The data path: listeners, the decision core, and carrying decisions out."""
