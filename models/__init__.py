"""OneRec-V2 in PyTorch, the reference for everything else, and the data it is trained and tested on."""
