"""Which rank of an expert-parallel engine holds which experts: loads, ranks and the last plan in, a plan out. Pure."""
