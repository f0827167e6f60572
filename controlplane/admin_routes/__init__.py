"""The admin API's routes, one module for each subject."""
