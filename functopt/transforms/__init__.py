"""The links that chains are made of, one file per idea."""
