"""Rehearsing any rank of any cluster: the run itself, over a world and a GPU that only answer."""
