"""OneRec-V2 in PyTorch, the truth everything else is held against, and the data it is trained and asked with."""
